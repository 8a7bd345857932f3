// DMA by piece size and direction, from memory pinned in two ways; how long pinning takes; what
// HBM gives to a kernel that only reads.
#include <thread>

#include "bench/gpu/host_memory.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

struct Buffers {
    std::byte* host;
    std::byte* device_in;   // dma_sample_bytes
    std::byte* device_out;  // dma_sample_bytes
    uint64_t host_bytes;    // at least 2 x dma_sample_bytes
};

// One sample: pieces one after another until dma_sample_bytes are moved, at most 512 of them: the
// driver takes 2 us to accept each.
uint32_t piece_count(const Plan& plan, uint64_t piece) {
    return static_cast<uint32_t>(std::min<uint64_t>(512, plan.dma_sample_bytes / piece));
}

void enqueue_h2d(const Buffers& b, uint64_t piece, uint32_t count, cudaStream_t stream) {
    for (uint32_t i = 0; i < count; ++i) {
        SHOAL_CUDA(cudaMemcpyAsync(b.device_in + i * piece, b.host + i * piece, piece,
                                   cudaMemcpyHostToDevice, stream));
    }
}
void enqueue_d2h(const Buffers& b, uint64_t piece, uint32_t count, cudaStream_t stream) {
    std::byte* to = b.host + b.host_bytes / 2;
    for (uint32_t i = 0; i < count; ++i) {
        SHOAL_CUDA(cudaMemcpyAsync(to + i * piece, b.device_out + i * piece, piece,
                                   cudaMemcpyDeviceToHost, stream));
    }
}

void time_dma(Context& context, const char* memory, const Buffers& b) {
    const Stream in, out;
    const Event fork(Event::Timing::off), join(Event::Timing::off);
    for (uint64_t piece = 4096; piece <= context.plan.dma_bytes_max; piece *= 4) {
        const uint32_t count = piece_count(context.plan, piece);
        const double bytes = static_cast<double>(piece) * count;
        const Params params = {{"piece", bytes_text(piece)}, {"memory", memory}};
        const auto h2d = [&](cudaStream_t s) { enqueue_h2d(b, piece, count, s); };
        const auto d2h = [&](cudaStream_t s) { enqueue_d2h(b, piece, count, s); };
        const auto both = [&](cudaStream_t s) {
            fork.record(s);
            fork.hold(out);
            // Interleaved, so that neither direction waits for the host to submit the other.
            for (uint32_t i = 0; i < count; ++i) {
                const Buffers one = {b.host + i * piece, b.device_in + i * piece,
                                     b.device_out + i * piece, b.host_bytes};
                enqueue_h2d(one, piece, 1, s);
                enqueue_d2h(one, piece, 1, out);
            }
            join.record(out);
            join.hold(s);
        };
        context.add(make_row("dma h2d", params, gb_per_s(time_stream(context, in, h2d), bytes),
                             "GB/s"));
        context.add(make_row("dma d2h", params, gb_per_s(time_stream(context, in, d2h), bytes),
                             "GB/s"));
        context.add(make_row("dma both at once", params,
                             gb_per_s(time_stream(context, in, both), 2 * bytes), "GB/s"));
    }
}

// Small pieces as nodes of a graph: the driver has done its part before they start, so what is left
// is the link and the device's own time for a node.
void time_dma_nodes(Context& context, const Buffers& b) {
    const Stream stream;
    for (const uint64_t piece : {4096, 16384, 65536}) {
        const uint32_t nodes = context.calls(
            static_cast<uint32_t>(std::min<uint64_t>(256, context.plan.dma_sample_bytes / piece)));
        const auto bytes = static_cast<double>(piece);
        const Params params = {{"piece", bytes_text(piece)}, {"nodes", std::to_string(nodes)}};
        const auto add = [&](const char* what, const Summary& us) {
            Row row = make_row(what, params, gb_per_s(us, bytes), "GB/s");
            row.note = number_text(us.median) + " us a node";
            context.add(std::move(row));
        };
        add("dma h2d, graph nodes",
            time_captured(context, stream, nodes, [&](cudaStream_t s, uint32_t i) {
                SHOAL_CUDA(cudaMemcpyAsync(b.device_in + i * piece, b.host + i * piece, piece,
                                           cudaMemcpyHostToDevice, s));
            }));
        add("dma d2h, graph nodes",
            time_captured(context, stream, nodes, [&](cudaStream_t s, uint32_t i) {
                SHOAL_CUDA(cudaMemcpyAsync(b.host + b.host_bytes / 2 + i * piece,
                                           b.device_out + i * piece, piece,
                                           cudaMemcpyDeviceToHost, s));
            }));
    }
}

// Many copies in one call. It cannot be captured: a bulk path, not the decode path.
void time_batch_copy(Context& context, const Buffers& b) {
    const Stream stream;
    for (const uint64_t piece : {4096, 16384, 32768, 65536}) {
        const auto count =
            static_cast<uint32_t>(std::min<uint64_t>(4096, context.plan.dma_sample_bytes / piece));
        std::vector<void*> to;
        std::vector<const void*> from;
        for (uint32_t i = 0; i < count; ++i) {
            to.push_back(b.device_in + i * piece);
            from.push_back(b.host + uint64_t{(i * 7919U) % count} * piece);
        }
        const std::vector<size_t> sizes(count, piece);
        cudaMemcpyAttributes attributes = {};
        attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
        attributes.srcLocHint.type = cudaMemLocationTypeHost;
        attributes.dstLocHint.type = cudaMemLocationTypeDevice;
        size_t first = 0;
        const Summary us = time_stream(context, stream, [&](cudaStream_t s) {
            SHOAL_CUDA(cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), count,
                                            &attributes, &first, 1, s));
        });
        if (us.count != 0) {
            std::vector<std::byte> got(piece * count);
            SHOAL_CUDA(cudaMemcpy(got.data(), b.device_in, got.size(), cudaMemcpyDeviceToHost));
            uint32_t wrong = 0;
            for (uint32_t i = 0; i < count; ++i) {
                if (std::memcmp(&got[i * piece], from[i], piece) != 0) ++wrong;
            }
            context.report.check("batch copy, " + bytes_text(piece), wrong == 0,
                                 std::to_string(wrong) + " pieces differ");
        }
        context.add(make_row("batch copy h2d",
                             {{"piece", bytes_text(piece)}, {"pieces", std::to_string(count)}},
                             gb_per_s(us, static_cast<double>(piece) * count), "GB/s"));
    }
}

void check_dma(Context& context, const char* memory, const Buffers& b) {
    const Stream stream;
    const uint64_t bytes = context.plan.dma_bytes_max;
    auto* words = reinterpret_cast<uint32_t*>(b.host);
    for (uint64_t i = 0; i < bytes / 4; ++i) words[i] = mix(static_cast<uint32_t>(i));
    std::byte* back = b.host + b.host_bytes / 2;
    std::memset(back, 0, bytes);
    SHOAL_CUDA(cudaMemcpyAsync(b.device_in, b.host, bytes, cudaMemcpyHostToDevice, stream));
    SHOAL_CUDA(
        cudaMemcpyAsync(b.device_out, b.device_in, bytes, cudaMemcpyDeviceToDevice, stream));
    SHOAL_CUDA(cudaMemcpyAsync(back, b.device_out, bytes, cudaMemcpyDeviceToHost, stream));
    stream.wait_idle();
    context.report.check(std::string("bytes there and back, ") + memory,
                         std::memcmp(b.host, back, bytes) == 0, bytes_text(bytes));
}

// Milliseconds per GiB, a few runs each: a run takes a good part of a second.
void time_pinning(Context& context) {
    const uint64_t bytes = context.plan.register_bytes;
    const uint32_t runs = context.small ? 1 : 3;
    const double per_gib = 1e3 * 1024 * 1024 * 1024 / static_cast<double>(bytes);
    std::vector<double> samples;
    for (uint32_t run = 0; run < runs; ++run) {
        const double begin = now_s();
        const PinnedArray<std::byte> region(bytes);
        samples.push_back((now_s() - begin) * per_gib);
    }
    context.add(make_row("cudaHostAlloc", {}, summarise(samples), "ms/GiB"));
    const uint32_t processors = std::max(1U, std::thread::hardware_concurrency());
    for (const uint32_t threads : {1U, 4U, 16U}) {
        if (threads > processors && threads != 1) continue;
        std::vector<double> touch;
        for (const uint64_t part : {16, 4, 1}) {  // chunks of a sixteenth, a fourth, all of it
            if (part < threads) continue;         // somebody would have nothing to register
            const uint64_t chunk = bytes / part;
            std::vector<double> pin;
            for (uint32_t run = 0; run < runs; ++run) {
                if (now_s() - context.begin_s > context.budget_s) break;
                const RegisteredMap map(bytes, chunk, threads);
                touch.push_back(map.touch_s() * per_gib);
                pin.push_back(map.register_s() * per_gib);
            }
            context.add(make_row("cudaHostRegister",
                                 {{"threads", std::to_string(threads)},
                                  {"chunk", bytes_text(chunk)}},
                                 summarise(pin), "ms/GiB"));
        }
        context.add(make_row("mmap, first touch", {{"threads", std::to_string(threads)}},
                             summarise(touch), "ms/GiB"));
    }
}

void time_hbm(Context& context) {
    const Stream stream;
    const uint64_t bytes = context.plan.stream_bytes;
    const DeviceArray<uint4> from(bytes / 16), to(bytes / 16);
    DeviceArray<uint32_t> sum(1);
    enqueue_fill_rows(context.device, from.data(), bytes, 3, stream);
    stream.wait_idle();
    sum.fill_bytes(0);
    const uint64_t checked = std::min<uint64_t>(bytes, 4 * kMiB);
    enqueue_read(context.device, from.data(), checked, sum.data(), stream);
    stream.wait_idle();
    uint32_t expected = 0;
    for (uint64_t i = 0; i < checked / 4; ++i) expected ^= row_word(3, static_cast<uint32_t>(i));
    context.report.check("read kernel", sum.download()[0] == expected, bytes_text(checked));
    const Summary read = time_stream(context, stream, [&](cudaStream_t s) {
        enqueue_read(context.device, from.data(), bytes, sum.data(), s);
    });
    const Summary copy = time_stream(context, stream, [&](cudaStream_t s) {
        SHOAL_CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, s));
    });
    const double size = static_cast<double>(bytes);
    context.add(make_row("hbm read", {}, gb_per_s(read, size), "GB/s"));
    Row row = make_row("hbm copy", {}, gb_per_s(copy, 2 * size), "GB/s");
    row.note = "read and written bytes";
    context.add(row);
}

}  // namespace

void run_link(Context& context) {
    time_hbm(context);
    const uint64_t sample = std::max(context.plan.dma_sample_bytes, context.plan.dma_bytes_max);
    const DeviceArray<std::byte> in(sample), out(sample);
    {
        const PinnedArray<std::byte> region(2 * sample);
        std::memset(region.data(), 1, 2 * sample);
        const Buffers buffers = {region.data(), in.data(), out.data(), 2 * sample};
        check_dma(context, "cudaHostAlloc", buffers);
        time_dma(context, "cudaHostAlloc", buffers);
        time_dma_nodes(context, buffers);
    }
    {
        const RegisteredMap region(2 * sample, kRegisterChunk, 4);
        const Buffers buffers = {region.data(), in.data(), out.data(), 2 * sample};
        check_dma(context, "registered", buffers);
        time_dma(context, "registered", buffers);
    }
    time_pinning(context);
    {
        const PinnedArray<std::byte> region(sample);
        auto* words = reinterpret_cast<uint32_t*>(region.data());
        for (uint64_t i = 0; i < sample / 4; ++i) words[i] = mix(static_cast<uint32_t>(i));
        // Last, and no failure of the run: not every driver and system takes such a call.
        try {
            time_batch_copy(context, {region.data(), in.data(), out.data(), sample});
        } catch (const std::exception& error) {
            context.report.note(std::string("batch copy h2d: not run: ") + error.what());
        }
    }
}

}  // namespace shoal::gpu
