// New rows to pinned memory from a captured kernel, how soon the host knows, and what a host node
// in a graph would cost instead.
#include "bench/gpu/write_back.cuh"

#include <atomic>

#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kRingSlots = 64;
constexpr uint32_t kNodes = 32;
constexpr uint64_t kTimeoutNs = 2000000000;

uint32_t read_sequence(const PinnedArray<uint32_t>& word) {
    return std::atomic_ref<uint32_t>(word[0]).load(std::memory_order_acquire);
}

// Spins until the word is at least `wanted`; false after kTimeoutNs.
bool wait_for(const PinnedArray<uint32_t>& word, uint32_t wanted) {
    const double begin = now_s();
    while (read_sequence(word) < wanted) {
        if (now_s() - begin > 1e-9 * kTimeoutNs) return false;
    }
    return true;
}

struct Writer {
    Writer(const Context& context, uint32_t batch_size)
        : batch(batch_size), unit_count(batch_size * kPieceBytes / 16), rows(unit_count),
          ring(size_t{kRingSlots} * unit_count), written(1), arrived(1), sequence(1) {
        const Stream stream;
        enqueue_fill_rows(context.device, rows.data(), rows.bytes(), 41, stream);
        stream.wait_idle();
        written.fill_bytes(0);
        arrived.fill_bytes(0);
        sequence[0] = 0;
    }
    void enqueue(cudaStream_t stream) const {
        WriteBackArgs args;
        args.rows = rows.data();
        args.ring = ring.device_data();
        args.unit_count = unit_count;
        args.ring_slots = kRingSlots;
        args.written = written.data();
        args.arrived = arrived.data();
        args.sequence = sequence.device_data();
        write_back<kThreads><<<batch, kThreads, 0, stream>>>(args);
        SHOAL_LAUNCHED();
    }
    bool ring_holds(uint32_t writes) const {
        const std::vector<uint4> want = rows.download();
        for (uint32_t i = writes > kRingSlots ? writes - kRingSlots : 0; i < writes; ++i) {
            const uint4* got = ring.data() + size_t{i % kRingSlots} * unit_count;
            if (std::memcmp(got, want.data(), rows.bytes()) != 0) return false;
        }
        return true;
    }
    uint32_t batch;
    uint32_t unit_count;
    DeviceArray<uint4> rows;
    PinnedArray<uint4> ring;
    DeviceArray<uint32_t> written;
    DeviceArray<uint32_t> arrived;
    PinnedArray<uint32_t> sequence;
};

void time_write_back(Context& context, uint32_t batch, const Stream& stream) {
    const Writer writer(context, batch);
    std::memset(writer.ring.data(), 0, writer.ring.count() * 16);
    const Graph graph(stream, [&] {
        for (uint32_t i = 0; i < kNodes; ++i) writer.enqueue(stream);
    });
    graph.launch(stream);
    // The host may read rows as soon as it sees their number, before the graph has ended.
    const bool seen = wait_for(writer.sequence, kNodes);
    const bool whole = writer.ring_holds(kNodes);
    stream.wait_idle();
    context.report.check("write-back, batch " + std::to_string(batch), seen && whole,
                         seen ? "rows behind their number" : "no acknowledgement in 2 s");
    const Params params = {{"batch", std::to_string(batch)}};
    context.add(make_row("write-back of a layer's rows, captured", params,
                         time_captured(context, stream, kNodes,
                                       [&](cudaStream_t s, uint32_t) { writer.enqueue(s); }),
                         "us"));
    const Graph one(stream, [&] { writer.enqueue(stream); });
    uint32_t expected = read_sequence(writer.sequence);
    std::vector<double> samples;
    const double begin = now_s();
    while (context.another(static_cast<uint32_t>(samples.size()), begin)) {
        const double start = now_s();
        one.launch(stream);
        if (!wait_for(writer.sequence, ++expected)) break;
        samples.push_back(1e6 * (now_s() - start));
        stream.wait_idle();
    }
    context.add(make_row("graph launch to acknowledgement", params, summarise(samples), "us"));
}

// Host asks, a running kernel writes a row and acknowledges, host sees: no launch in between.
void time_ping_pong(Context& context, const Stream& stream) {
    const uint32_t rounds = context.small ? 20 : 2000;
    const uint32_t unit_count = kPieceBytes / 16;
    const DeviceArray<uint4> rows(unit_count);
    enqueue_fill_rows(context.device, rows.data(), rows.bytes(), 42, stream);
    stream.wait_idle();
    const PinnedArray<uint4> ring(unit_count);
    std::memset(ring.data(), 0, kPieceBytes);
    const PinnedArray<uint32_t> go(1), sequence(1), failed(1);
    go[0] = sequence[0] = failed[0] = 0;
    PingPongArgs args;
    args.rows = rows.data();
    args.ring = ring.device_data();
    args.unit_count = unit_count;
    args.rounds = rounds;
    args.go = go.device_data();
    args.sequence = sequence.device_data();
    args.failed = failed.device_data();
    args.timeout_ns = kTimeoutNs;
    ping_pong<kThreads><<<1, kThreads, 0, stream>>>(args);
    SHOAL_LAUNCHED();
    std::vector<double> samples;
    bool answered = true;
    for (uint32_t round = 0; round < rounds && answered; ++round) {
        const double start = now_s();
        std::atomic_ref<uint32_t>(go[0]).store(round + 1, std::memory_order_release);
        answered = wait_for(sequence, round + 1);
        samples.push_back(1e6 * (now_s() - start));
    }
    stream.wait_idle();
    const std::vector<uint4> want = rows.download();
    context.report.check("acknowledged row",
                         answered && failed[0] == 0 &&
                             std::memcmp(ring.data(), want.data(), kPieceBytes) == 0,
                         answered ? "4 KiB" : "no answer in 2 s");
    Row row = make_row("host asks, row written, host sees", {}, summarise(samples), "us");
    row.note = "round trip of a running kernel, 4 KiB";
    context.add(std::move(row));
}

void count_call(void* counter) {
    static_cast<std::atomic<uint32_t>*>(counter)->fetch_add(1, std::memory_order_relaxed);
}

void time_nodes(Context& context, const Stream& stream) {
    DeviceArray<uint32_t> word(1);
    word.fill_bytes(0);
    std::atomic<uint32_t> calls{0};
    const auto kernel = [&](cudaStream_t s) {
        touch<32><<<1, 32, 0, s>>>(word.data());
        SHOAL_LAUNCHED();
    };
    const Summary kernels = time_captured(context, stream, 8 * kNodes,
                                          [&](cudaStream_t s, uint32_t) { kernel(s); });
    context.add(make_row("empty kernel node", {}, kernels, "us"));
    const Summary loose = time_stream(context, stream, [&](cudaStream_t s) {
        for (uint32_t i = 0; i < 8 * kNodes; ++i) kernel(s);
    });
    const double each = 8 * kNodes;
    context.add(make_row("empty kernel, not captured", {},
                         {loose.median / each, loose.p10 / each, loose.p90 / each, loose.count},
                         "us"));
    Summary host = time_captured(context, stream, kNodes, [&](cudaStream_t s, uint32_t) {
        kernel(s);
        SHOAL_CUDA(cudaLaunchHostFunc(s, count_call, &calls));
    });
    stream.wait_idle();
    context.report.check("host nodes ran",
                         host.count == 0 || calls == kNodes * (2 * host.count + 1),
                         std::to_string(calls.load()) + " calls");
    host.median -= kernels.median;
    host.p10 -= kernels.median;
    host.p90 -= kernels.median;
    Row row = make_row("host node after a kernel", {}, host, "us");
    row.note = "less the kernel's own";
    context.add(std::move(row));
}

}  // namespace

void run_write_back(Context& context) {
    const Stream stream;
    time_nodes(context, stream);
    for (const uint32_t batch : context.plan.batches) time_write_back(context, batch, stream);
    time_ping_pong(context, stream);
}

}  // namespace shoal::gpu
