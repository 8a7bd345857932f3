// Streams over device memory, and the data that everything is measured on: never zeros, and the
// same on CPU and GPU.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

// Two bf16 numbers of [-1, 1) in steps of 1/128, which bf16 holds exactly.
__host__ __device__ inline uint32_t row_word(uint32_t seed, uint32_t index) {
    const uint32_t random = mix(index + seed * 0x9e3779b9U);
    union {
        float f;
        uint32_t u;
    } low, high;
    low.f = static_cast<float>(static_cast<int>(random & 255U) - 128) * 0.0078125F;
    high.f = static_cast<float>(static_cast<int>(random >> 24) - 128) * 0.0078125F;
    return (low.u >> 16) | (high.u & 0xffff0000U);
}

// A dword of one span of one KV head: f16 scales of 0.047 to 0.14, f16 centres of +-0.25 to 0.5,
// then codes. `parameter_count`: label_parameter_count() of the format.
__host__ __device__ inline uint32_t label_word(uint32_t seed, uint64_t index, uint32_t span_words,
                                               uint32_t parameter_count) {
    const auto in_span = static_cast<uint32_t>(index % span_words);
    const uint32_t random =
        mix(static_cast<uint32_t>(index) + seed * 0x9e3779b9U + static_cast<uint32_t>(index >> 32));
    if (in_span >= parameter_count) return random;
    const uint32_t pair = random & 0x03ff03ffU;
    if (in_span < parameter_count / 2) return pair + 0x2a002a00U;
    return (pair + 0x34003400U) | (random & 0x80008000U);
}
// The largest scale that label_word() gives, 0x2dff.
inline constexpr float kLabelScaleMax = 0.09369F;

template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads)
    fill_rows(uint4* to, uint64_t count, uint32_t seed) {
    const uint64_t stride = uint64_t{kThreads} * gridDim.x;
    for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
        const auto first = static_cast<uint32_t>(i * 4);
        to[i] = make_uint4(row_word(seed, first), row_word(seed, first + 1),
                           row_word(seed, first + 2), row_word(seed, first + 3));
    }
}

template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads)
    fill_labels(uint32_t* to, uint64_t count, uint32_t span_words, uint32_t parameter_count,
                uint32_t seed) {
    const uint64_t stride = uint64_t{kThreads} * gridDim.x;
    for (uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
        to[i] = label_word(seed, i, span_words, parameter_count);
    }
}

// Reads `count` x 16 bytes once; *sum becomes itself xor all dwords. Stands for any kernel that is
// bound by memory: the read limit, and the weights of a layer at batch 1.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads)
    read_stream(const uint4* from, uint64_t count, uint32_t* sum) {
    constexpr uint32_t kInFlight = 8;
    const uint64_t stride = uint64_t{kThreads} * gridDim.x;
    uint32_t x = 0;
    uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    // No condition between the loads: a branch would make them wait for each other.
    for (; i + (kInFlight - 1) * stride < count; i += kInFlight * stride) {
        uint4 v[kInFlight];
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kInFlight; ++j) v[j] = load_once(from + i + j * stride);
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kInFlight; ++j) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += stride) {
        const uint4 v = load_once(from + i);
        x ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
        x ^= __shfl_xor_sync(kAllLanes, x, flip);
    }
    if (threadIdx.x % kWarp == 0) atomicXor(sum, x);
}

}  // namespace shoal::gpu
