// The two limits that figures are held against, measured where they are needed.
#pragma once

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/memory.cuh"

namespace shoal::gpu {

inline constexpr uint32_t kStreamThreads = 256;

inline uint32_t stream_blocks(const DeviceFacts& device) { return device.processor_count * 8; }

inline void enqueue_read(const DeviceFacts& device, const uint4* from, uint64_t bytes,
                         uint32_t* sum, cudaStream_t stream) {
    launch(stream, {stream_blocks(device), kStreamThreads}, read_stream<kStreamThreads>,
           from, bytes / 16, sum);
}

// The same by blocks that read 32 KiB each and are gone after some ten microseconds: a neighbour
// whose blocks fill the machine until its end would keep a gather from starting beside it.
inline void enqueue_read_shortly(const uint4* from, uint64_t bytes, uint32_t* sum,
                                 cudaStream_t stream) {
    const auto blocks = static_cast<uint32_t>((bytes + 32767) / 32768);
    launch(stream, {blocks, kStreamThreads}, read_stream<kStreamThreads>, from, bytes / 16, sum);
}

inline void enqueue_fill_rows(const DeviceFacts& device, uint4* to, uint64_t bytes, uint32_t seed,
                              cudaStream_t stream) {
    launch(stream, {stream_blocks(device), kStreamThreads}, fill_rows<kStreamThreads>,
           to, bytes / 16, seed);
}

// HBM read-only, GB/s.
inline Summary measure_read(const Context& context, cudaStream_t stream) {
    const DeviceArray<uint4> buffer(context.plan.stream_bytes / 16);
    DeviceArray<uint32_t> sum(1);
    sum.fill_bytes(0);
    enqueue_fill_rows(context.device, buffer.data(), buffer.bytes(), 1, stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    const Summary us = time_stream(context, stream, [&](cudaStream_t s) {
        enqueue_read(context.device, buffer.data(), buffer.bytes(), sum.data(), s);
    });
    return gb_per_s(us, static_cast<double>(buffer.bytes()));
}

// Host to device by DMA in the largest piece, GB/s.
inline Summary measure_bulk_h2d(const Context& context, const void* pinned, void* device,
                                uint64_t bytes, cudaStream_t stream) {
    const Summary us = time_stream(context, stream, [&](cudaStream_t s) {
        SHOAL_CUDA(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, s));
    });
    return gb_per_s(us, static_cast<double>(bytes));
}

// Fills pinned memory with row words by way of the device (far faster than by one CPU). The seed
// changes every chunk.
inline void fill_host_rows(const Context& context, void* host, uint64_t bytes,
                           cudaStream_t stream) {
    const uint64_t chunk = std::min(bytes, kFillChunk);
    const DeviceArray<uint4> staging(chunk / 16);
    uint32_t seed = 100;
    for (uint64_t at = 0; at < bytes; at += chunk) {
        enqueue_fill_rows(context.device, staging.data(), chunk, seed++, stream);
        SHOAL_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(host) + at, staging.data(), chunk,
                                   cudaMemcpyDeviceToHost, stream));
    }
    SHOAL_CUDA(cudaStreamSynchronize(stream));
}

}  // namespace shoal::gpu
