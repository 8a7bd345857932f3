// Decode with the KV cache on disk, at the shape of Llama-3.1-8B's attention (32 query / 8 KV heads
// x 128, bf16: 4 KiB a token and layer): a step that reads what attention selects, against reading
// the whole cache sequentially per step from the same file.
//
//   bench_disk_decode DIR [TOKENS [LAYERS [RAM_PERCENT [layer|tidal|TRACE]]]]
//
// LAYERS: by default as many, up to 32, as half of the free disk holds. RAM_PERCENT: of the cache,
// for rows in RAM; 0 (default): as little as works, so that nearly every selected row is read.
// tidal: layers 2 and 13 select, the others reuse that (as TidalDecode has Llama-3-8B); each is
// measured with and without reading ahead what is known.
// TRACE: `layer`, and what is attended is what a real model selected (bench/llama_trace.cpp),
// spread over TOKENS as bench/replay_selector.hpp says, after scoring and selecting as without; the
// first third of its steps fill the cache and are not counted.
// Without one, keys are random and queries new in every step: neighbouring steps select nothing in
// common but by chance, which is the worst case for a cache.
#include <sys/statvfs.h>

#include <cmath>
#include <random>

#include <fmt/format.h>

#include "bench/replay_selector.hpp"
#include "bench/support.hpp"
#include "offload/disk_tier.hpp"
#include "runtime/session_maker.hpp"
#include "shoal/text.hpp"

namespace shoal::bench {
namespace {

constexpr uint32_t kKvHeads = 8;
constexpr uint32_t kQHeads = 32;
constexpr uint32_t kDim = 128;
constexpr uint64_t kTokenBytes = 2 * kKvHeads * kDim * sizeof(uint16_t);
constexpr uint32_t kLearnTokens = 256;
constexpr uint32_t kPutTokens = 1024;
constexpr uint32_t kRowsMax = 2048;
constexpr uint32_t kSteps = 7;

struct Args {
    std::string dir;
    uint32_t tokens = 262144;
    uint32_t layers = 0;
    uint32_t ram_percent = 0;
    SharingKind sharing = SharingKind::layer;
    std::string trace;
};

// bf16 numbers in (-2, 2), every seventh channel four times larger.
class Random {
public:
    void fill(std::vector<uint16_t>& rows) {
        for (size_t i = 0; i < rows.size(); i += 4) {
            uint64_t bits = next();
            for (size_t j = 0; j < 4; ++j, bits >>= 16) {
                const uint16_t loud = (i + j) % kDim % 7 == 0 ? 2 << 7 : 0;
                rows[i + j] = static_cast<uint16_t>((bits & 0x80ff) | (125U << 7)) + loud;
            }
        }
    }
    void fill(std::vector<float>& rows) {
        for (float& x : rows) {
            x = static_cast<float>(static_cast<int64_t>(next() >> 32) - (int64_t{1} << 31)) /
                static_cast<float>(int64_t{1} << 30);
        }
    }

private:
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        return state_ ^= state_ << 17;
    }
    uint64_t state_ = 88172645463325252ULL;
};

[[noreturn]] void fail(const std::string& text) {
    fmt::print(stderr, "bench_disk_decode: {}\n", text);
    std::exit(1);
}

void check(const Status& status) {
    if (!status) fail(status.message());
}

ConstTensor rows_tensor(const std::vector<uint16_t>& rows, uint32_t n) {
    return {reinterpret_cast<const std::byte*>(rows.data()), DType::bf16, n, kKvHeads, kDim,
            size_t{kKvHeads} * kDim * 2, size_t{kDim} * 2};
}

class DiskDecode {
public:
    explicit DiskDecode(const Args& args) : args_(args) {
        for (uint32_t l = 0; l < args.layers; ++l) {
            shape_.layers.push_back({LayerKind::full, kKvHeads, kDim, kDim, 0});
        }
        shape_.q_head_count = kQHeads;
        shape_.rows = {DType::bf16, DType::bf16};
        config_.disk.dir = args.dir;
        config_.budget.rows = kRowsMax;
        config_.profile.tokens = kLearnTokens;
        config_.sharing.kind = args.sharing;
        if (args.sharing == SharingKind::tidal) config_.sharing.anchors = {2, 13};
        options_.slots_per_store = args.tokens + 1024;
        options_.queries_per_step_max = 512;
        if (!args.trace.empty()) {
            replay_ = std::make_unique<Replay>(args.trace, args.tokens, 2);
        }
        const Result<MemoryPlan> plan = Session::plan(config_, shape_, options_);
        if (!plan) fail(plan.status().message());
        const uint64_t rows = plan->disk_bytes * args.ram_percent / 100;
        config_.host.kv_bytes = plan->least_bytes + rows;
        const Result<MemoryPlan> made = Session::plan(config_, shape_, options_);
        if (!made) fail(made.status().message());
        const auto percent = [&](uint64_t bytes) {
            return 100.0 * static_cast<double>(bytes) / static_cast<double>(made->disk_bytes);
        };
        fmt::print("{} tokens, {} layers: {} on disk; in RAM {} ({:.1f} % of that), of it rows {} "
                   "({:.1f} %), labels {}\n",
                   grouped(args.tokens), args.layers, bytes_text(made->disk_bytes),
                   bytes_text(made->total_bytes), percent(made->total_bytes),
                   bytes_text(made->kv_bytes), percent(made->kv_bytes),
                   bytes_text(made->label_bytes));
        const double started = now_s();
        auto session = SessionMaker::create(
            config_, shape_, options_, [this](const SessionState& state, uint64_t bytes) {
                return open(state, bytes);
            },
            [this](Selector asked) {
                if (!replay_) return asked;
                return Selector(std::make_unique<ReplaySelector>(*replay_, std::move(asked)));
            });
        if (!session) fail(session.status().message());
        session_ = std::move(*session);
        store_ = *session_->open();
        fmt::print("made in {:.3f} s, through {}\n", now_s() - started, disk_->path().text);
    }

    void fill() {
        const double started = now_s();
        step(kLearnTokens);  // channel statistics, from queries too
        std::vector<uint16_t> k(size_t{kPutTokens} * kKvHeads * kDim);
        std::vector<uint16_t> v(k.size());
        std::vector<int64_t> slots;
        for (uint32_t begin = kLearnTokens; begin < args_.tokens; begin += kPutTokens) {
            const uint32_t n = std::min(kPutTokens, args_.tokens - begin);
            slots.resize(n);
            for (uint32_t i = 0; i < n; ++i) slots[i] = begin + i;
            for (uint32_t l = 0; l < args_.layers; ++l) {
                random_.fill(k);
                if (l == 0) random_.fill(v);
                check(session_->put({l}, store_, slots, rows_tensor(k, n), rows_tensor(v, n)));
            }
        }
        token_count_ = args_.tokens;
        const double seconds = now_s() - started;
        const double bytes = static_cast<double>(args_.tokens) * args_.layers * kTokenBytes;
        fmt::print("filled in {:.1f} s ({:.2f} GB/s, labels made on the way)\n", seconds,
                   bytes / seconds * 1e-9);
    }

    // Seconds to read the whole file in pieces of 1 MiB, 32 in flight.
    double read_all() {
        constexpr uint32_t kPiece = 1 << 20;
        constexpr uint32_t kPieces = 32;
        const uint64_t bytes = uint64_t{args_.tokens} * args_.layers * kTokenBytes;
        std::byte* memory = static_cast<std::byte*>(std::aligned_alloc(4096, kPiece * kPieces));
        std::vector<offload::Transfer> transfers(kPieces);
        const double started = now_s();
        for (uint64_t piece = 0; piece < bytes / kPiece + kPieces; ++piece) {
            offload::Transfer* transfer = &transfers[piece % kPieces];
            if (piece >= kPieces && piece - kPieces < bytes / kPiece) {
                check(disk_->wait({&transfer, 1}));
            }
            if (piece >= bytes / kPiece) continue;
            transfer->offset = piece * kPiece;
            transfer->data = memory + piece % kPieces * kPiece;
            transfer->bytes = kPiece;
            disk_->start({&transfer, 1});
        }
        const double seconds = now_s() - started;
        std::free(memory);
        return seconds;
    }

    void measure(uint32_t rows, PrefetchKind prefetch, double whole_s) {
        Config config = session_->config();
        config.budget.rows = rows;
        config.prefetch.kind = prefetch;
        check(session_->reconfigure(config));
        const uint32_t warm = replay_ ? replay_->step_count() / 3 : 1;
        const uint32_t steps = replay_ ? replay_->step_count() - warm : kSteps;
        for (uint32_t i = 0; i < warm; ++i) replayed_step(i);
        std::vector<double> seconds;
        session_->reset_stats();
        const uint64_t read_before = session_->stats().disk_read_bytes;
        const uint64_t reads_before = session_->stats().disk_reads;
        const uint64_t cpu_before = disk_->counters().cpu_ns;
        const double process_before = cpu_s();
        for (uint32_t i = 0; i < steps; ++i) {
            const double started = now_s();
            replayed_step(warm + i);
            seconds.push_back(now_s() - started);
        }
        const double process_s = cpu_s() - process_before;
        const Stats stats = session_->stats();
        const auto io_cpu_ns = static_cast<double>(disk_->counters().cpu_ns - cpu_before);
        const double each = 1.0 / steps;
        const double read = each * static_cast<double>(stats.disk_read_bytes - read_before);
        const double reads = each * static_cast<double>(stats.disk_reads - reads_before);
        const double attended = each * static_cast<double>(stats.kv_bytes_read);
        const double all = static_cast<double>(args_.tokens) * args_.layers * kTokenBytes;
        const auto hits = static_cast<double>(stats.block_hits);
        const double found =
            hits / (hits + static_cast<double>(stats.block_misses + stats.blocks_prefetched_used +
                                               stats.blocks_prefetched_late));
        const auto per_step = [&](uint64_t count) { return each * static_cast<double>(count); };
        fmt::print("{:5} rows, ahead {:5}: {:7.1f} ms a step, waits {:7.1f}; reads {:6.1f} MB "
                   "({:.2f} % of the KV, {:.3f} of what is attended and not in RAM) in {:.0f} "
                   "reads, {:.0f} a second, {:.2f} us of the I/O thread each, {:.1f} ms CPU a "
                   "step; {:.1f} % found in RAM; read ahead {:.0f} used, {:.0f} "
                   "late, {:.0f} wasted; whole KV / step {:.1f}x\n",
                   rows, prefetch == PrefetchKind::none ? "none" : "known",
                   1e3 * median(seconds), 1e-6 * per_step(stats.exposed_wait_ns), 1e-6 * read,
                   100 * read / all, read / (attended * (1 - found)), reads,
                   reads / median(seconds), 1e-3 * each * io_cpu_ns / reads,
                   1e3 * each * process_s, 100 * found, per_step(stats.blocks_prefetched_used),
                   per_step(stats.blocks_prefetched_late),
                   per_step(stats.blocks_prefetched_wasted), whole_s / median(seconds));
    }

private:
    Result<std::unique_ptr<offload::Tier>> open(const SessionState& state, uint64_t bytes) {
        Result<offload::SpillFile> file = offload::SpillFile::create(state.config.disk.dir, bytes);
        if (!file) return file.status();
        Result<std::unique_ptr<offload::DiskTier>> disk =
            offload::DiskTier::create(std::move(*file));
        if (!disk) return disk.status();
        disk_ = disk->get();
        return std::unique_ptr<offload::Tier>(std::move(*disk));
    }

    void replayed_step(uint32_t i) {
        if (replay_) replay_->go_to(i);
        step(1);
    }

    // A causal step of n random tokens.
    void step(uint32_t n) {
        const StoreId stores[1] = {store_};
        const uint32_t offsets[2] = {0, n};
        StepInput input;
        input.stores = stores;
        input.token_offsets = offsets;
        check(session_->begin_step(input));
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (uint32_t i = 0; i < n; ++i) {
            ranges.push_back({0, token_count_ + i + 1});
            range_offsets.push_back(i + 1);
        }
        token_count_ += n;
        std::vector<uint16_t> rows(size_t{n} * kKvHeads * kDim);
        std::vector<float> q(size_t{n} * kQHeads * kDim);
        std::vector<float> out(q.size());
        ++version_;
        for (uint32_t l = 0; l < args_.layers; ++l) {
            random_.fill(rows);
            random_.fill(q);
            check(session_->append({l}, rows_tensor(rows, n), rows_tensor(rows, n)));
            const ConstTensor query{reinterpret_cast<const std::byte*>(q.data()), DType::f32, n,
                                    kQHeads, kDim, size_t{kQHeads} * kDim * 4, size_t{kDim} * 4};
            check(session_->attend({l}, query, {offsets, range_offsets, ranges, version_},
                                   {out.data(), n, kQHeads, kDim, size_t{kQHeads} * kDim * 4,
                                    size_t{kDim} * 4}));
        }
        check(session_->end_step());
    }

    const Args args_;
    ModelShape shape_;
    Config config_;
    SessionOptions options_;
    std::unique_ptr<Replay> replay_;  // or null
    std::unique_ptr<Session> session_;
    offload::DiskTier* disk_ = nullptr;  // of the session
    StoreId store_;
    Random random_;
    uint32_t token_count_ = 0;
    uint64_t version_ = 0;
};

uint32_t layers_that_fit(const Args& args) {
    struct statvfs space = {};
    if (statvfs(args.dir.c_str(), &space) != 0) fail(args.dir + ": " + std::strerror(errno));
    const uint64_t half = uint64_t{space.f_bavail} * space.f_frsize / 2;
    return static_cast<uint32_t>(
        std::min<uint64_t>(32, half / (uint64_t{args.tokens + 1024} * kTokenBytes)));
}

void run(Args args) {
    if (args.layers == 0) args.layers = layers_that_fit(args);
    if (args.layers < 3) fail("half of the free disk holds fewer than 3 layers");
    DiskDecode bench(args);
    bench.fill();
    for (uint32_t i = 0; i < 2; ++i) {
        const double whole = bench.read_all();
        fmt::print("whole KV, sequentially: {:.2f} s ({:.2f} GB/s)\n", whole,
                   static_cast<double>(args.tokens) * args.layers * kTokenBytes / whole * 1e-9);
        for (const uint32_t rows : {1024U, 2048U}) {
            bench.measure(rows, PrefetchKind::none, whole);
            bench.measure(rows, PrefetchKind::known, whole);
        }
    }
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    shoal::bench::Args args;
    if (argc < 2 || argc > 6) {
        fmt::print(stderr, "usage: {} DIR [TOKENS [LAYERS [RAM_PERCENT [layer|tidal|TRACE]]]]\n",
                   argv[0]);
        return 2;
    }
    args.dir = argv[1];
    if (argc > 2) args.tokens = static_cast<uint32_t>(std::atoi(argv[2]));
    if (argc > 3) args.layers = static_cast<uint32_t>(std::atoi(argv[3]));
    if (argc > 4) args.ram_percent = static_cast<uint32_t>(std::atoi(argv[4]));
    const std::string last = argc > 5 ? argv[5] : "layer";
    if (last == "tidal") args.sharing = shoal::SharingKind::tidal;
    if (last != "tidal" && last != "layer") args.trace = last;
    shoal::bench::run(args);
    return 0;
}
