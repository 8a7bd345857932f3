// Saving and loading a sequence, beside the disk's own sequential rate in the same round: the file
// written by Session::save is read in 1 MiB requests with O_DIRECT, then loaded, in turns. A load
// fills memory that the process has not had before, so what the system takes to give as much memory
// is measured too: one thread writing to a new mapping.
//
// Shape of Llama-3.1-8B's attention (8 KV heads x 128, bf16), 4 layers. Without labels, then with
// labels from statistics in the file.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>

#include "bench/support.hpp"
#include "shoal/shoal.hpp"

namespace shoal::bench {
namespace {

constexpr uint32_t kHeads = 8;
constexpr uint32_t kDim = 128;
constexpr uint32_t kStep = 512;

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "bench_saved_sequence: %s\n", message.c_str());
    std::exit(1);
}
void check(const Status& status) {
    if (!status) fail(status.message());
}

ModelShape model() {
    ModelShape shape;
    shape.layers.assign(4, {LayerKind::full, kHeads, kDim, kDim, 0});
    shape.q_head_count = 4 * kHeads;
    shape.rows = {DType::bf16, DType::bf16};
    return shape;
}

std::unique_ptr<Session> make_session(SelectorKind kind, uint32_t slots) {
    Config config;
    config.selector.kind = kind;
    config.profile.tokens = kStep;
    config.host.threads = 2;
    SessionOptions options;
    options.slots_per_store = slots;
    options.queries_per_step_max = kStep;
    Result<std::unique_ptr<Session>> made = Session::create(config, model(), options);
    if (!made) fail(made.status().message());
    return std::move(*made);
}

// Fills a store; queries only as far as statistics want them.
StoreId fill(Session& session, uint32_t slots) {
    const Result<StoreId> store = session.open();
    if (!store) fail(store.status().message());
    std::minstd_rand random(1);
    std::normal_distribution<float> normal;
    std::vector<float> rows(size_t{kStep} * 4 * kHeads * kDim);
    for (float& value : rows) value = normal(random);
    std::vector<float> out(rows.size());
    const auto tensor = [&](uint32_t heads) {
        return ConstTensor{reinterpret_cast<const std::byte*>(rows.data()), DType::f32, kStep,
                           heads, kDim, size_t{heads} * kDim * 4, size_t{kDim} * 4};
    };
    const uint32_t offsets[2] = {0, kStep};
    for (uint32_t slot = 0; slot < slots; slot += kStep) {
        StepInput step;
        step.stores = {&*store, 1};
        step.token_offsets = offsets;
        check(session.begin_step(step));
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (uint32_t i = 0; i < kStep; ++i) {
            ranges.push_back({slot, slot + i + 1});
            range_offsets.push_back(i + 1);
        }
        for (uint32_t l = 0; l < 4; ++l) {
            check(session.append({l}, tensor(kHeads), tensor(kHeads)));
            if (slot >= 2 * kStep) continue;
            const Tensor to{out.data(), kStep, 4 * kHeads, kDim, size_t{4} * kHeads * kDim * 4,
                            size_t{kDim} * 4};
            check(session.attend({l}, tensor(4 * kHeads), {offsets, range_offsets, ranges, 0}, to));
        }
        check(session.end_step());
    }
    return *store;
}

double read_seconds(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_DIRECT);
    if (file < 0) fail(path + ": no O_DIRECT here");
    auto* buffer = static_cast<char*>(std::aligned_alloc(4096, 1 << 20));
    const double start = now_s();
    while (::read(file, buffer, 1 << 20) > 0) {
    }
    const double seconds = now_s() - start;
    std::free(buffer);
    ::close(file);
    return seconds;
}

double touch_seconds(size_t bytes) {
    const double start = now_s();
    const HugeBuffer memory(bytes);  // writes to all of it
    return now_s() - start;
}

void measure(SelectorKind kind, const char* name, uint32_t slots, uint32_t rounds) {
    const char* folder = std::getenv("TMPDIR");
    const std::string path = std::string(folder == nullptr ? "/tmp" : folder) + "/shoal_bench_" +
                             std::to_string(::getpid());
    double save_s = 0.0;
    {
        const auto session = make_session(kind, slots);
        const StoreId store = fill(*session, slots);
        const double start = now_s();
        check(session->save(store, path));
        save_s = now_s() - start;
    }
    const auto bytes = static_cast<double>(std::filesystem::file_size(path));
    std::vector<double> load;
    std::vector<double> read;
    std::vector<double> touch;
    std::vector<double> ratio;
    for (uint32_t round = 0; round < rounds; ++round) {
        read.push_back(read_seconds(path));
        touch.push_back(touch_seconds(static_cast<size_t>(bytes)));
        const auto session = make_session(kind, slots);
        const double start = now_s();
        const Result<StoreId> store = session->load(path);
        load.push_back(now_s() - start);
        check(store.status());
        ratio.push_back(100.0 * read.back() / load.back());
    }
    ::unlink(path.c_str());
    const auto rate = [bytes](double seconds) { return bytes * 1e-6 / seconds; };
    std::printf("%-6s %7u tokens  %6.0f MB  save %6.0f MB/s  read %6.0f MB/s  new memory %6.0f "
                "MB/s  load %6.0f MB/s  %5.1f %% of read\n",
                name, slots, bytes * 1e-6, rate(save_s), rate(median(read)), rate(median(touch)),
                rate(median(load)), median(ratio));
    std::fflush(stdout);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    using namespace shoal::bench;
    const BenchArgs args = parse_args(argc, argv);
    const uint32_t slots = args.quick ? 4096 : 131072;
    measure(shoal::SelectorKind::dense, "dense", slots, args.rounds);
    measure(shoal::SelectorKind::labels, "labels", slots, args.rounds);
    return 0;
}
