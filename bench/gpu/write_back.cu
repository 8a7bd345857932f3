// New rows to pinned memory from a captured kernel, how soon the host knows, and what a host node
// in a graph would cost instead.
#include "bench/gpu/write_back.cuh"

#include <atomic>

#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

constexpr uint32_t kThreads = 256;
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

// What the host saw when it was told that rows are there.
struct AckCheck {
    uint32_t acknowledged = 0;
    uint32_t early = 0;  // acknowledgements with rows of another write behind them
    bool silent = false;

    void compare(const uint4* slot, const std::vector<uint4>& rows, uint32_t number) {
        ++acknowledged;
        const auto units = static_cast<uint32_t>(rows.size());
        if (wrong_units(slot, rows.data(), units, number) != 0) ++early;
    }
    void report_to(Report& report, const std::string& what) const {
        report.check(what, early == 0 && !silent && acknowledged != 0,
                     silent ? "no acknowledgement in 2 s after " + std::to_string(acknowledged)
                            : std::to_string(early) + " of " + std::to_string(acknowledged) +
                                  " acknowledgements came before their rows");
    }
};

struct Writer {
    Writer(const Context& context, uint32_t batch_size)
        : batch(batch_size), unit_count(batch_size * kPieceBytes / 16), rows(unit_count),
          ring(size_t{kRingSlots} * unit_count), written(1), arrived(1), sequence(1) {
        const Stream stream;
        enqueue_fill_rows(context.device, rows.data(), rows.bytes(), 41, stream);
        stream.wait_idle();
        host_rows = rows.download();
        std::memset(ring.data(), 0, ring.count() * 16);
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
        launch(stream, {batch, kThreads}, write_back<kThreads>, args);
    }
    // Waits for the acknowledgement of write `number` and compares its rows at once: from then on
    // the host may read them. False after kTimeoutNs.
    bool wait(uint32_t number, AckCheck& check) const {
        if (!wait_for(sequence, number)) {
            check.silent = true;
            return false;
        }
        check.compare(ring.data() + ring_unit(number, unit_count, kRingSlots), host_rows, number);
        return true;
    }
    uint32_t batch;
    uint32_t unit_count;
    DeviceArray<uint4> rows;
    std::vector<uint4> host_rows;
    PinnedArray<uint4> ring;
    DeviceArray<uint32_t> written;
    DeviceArray<uint32_t> arrived;
    PinnedArray<uint32_t> sequence;
};

void time_write_back(Context& context, uint32_t batch, const Stream& stream) {
    const Writer writer(context, batch);
    const std::string name = "write-back, batch " + std::to_string(batch);
    AckCheck check;
    {
        const Graph graph(stream, [&] {
            for (uint32_t i = 0; i < kNodes; ++i) writer.enqueue(stream);
        });
        graph.launch(stream);
        // While the graph runs: the ring is longer than a graph, nothing is written over.
        static_assert(kNodes <= kRingSlots);
        for (uint32_t i = 1; i <= kNodes && writer.wait(i, check); ++i) {}
        stream.wait_idle();
    }
    const Params params = {{"batch", std::to_string(batch)}};
    const Graph one(stream, [&] { writer.enqueue(stream); });
    uint32_t expected = read_sequence(writer.sequence);
    std::vector<double> samples;
    const double begin = now_s();
    while (!check.silent && context.another(static_cast<uint32_t>(samples.size()), begin)) {
        const double start = now_s();
        one.launch(stream);
        wait_for(writer.sequence, ++expected);
        samples.push_back(1e6 * (now_s() - start));
        writer.wait(expected, check);
        stream.wait_idle();
    }
    context.add(make_row("graph launch to acknowledgement", params, summarise(samples), "us"));
    context.add(make_row("write-back of a layer's rows, captured", params,
                         time_captured(context, stream, kNodes,
                                       [&](cudaStream_t s, uint32_t) { writer.enqueue(s); }),
                         "us"));
    // What was written while nobody looked: the last round of the ring.
    const uint32_t written = read_sequence(writer.sequence);
    for (uint32_t i = written - std::min(written, kRingSlots) + 1; i <= written; ++i) {
        writer.wait(i, check);
    }
    check.report_to(context.report, name);
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
    const std::vector<uint4> host_rows = rows.download();
    launch(stream, {1, kThreads}, ping_pong<kThreads>, args);
    std::vector<double> samples;
    AckCheck check;
    for (uint32_t number = 1; number <= rounds && !check.silent; ++number) {
        const double start = now_s();
        std::atomic_ref<uint32_t>(go[0]).store(number, std::memory_order_release);
        check.silent = !wait_for(sequence, number);
        samples.push_back(1e6 * (now_s() - start));
        if (!check.silent) check.compare(ring.data(), host_rows, number);
    }
    stream.wait_idle();
    check.silent = check.silent || failed[0] != 0;
    check.report_to(context.report, "acknowledged row of a running kernel");
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
        launch(s, {1, 32}, touch<32>, word.data());
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
