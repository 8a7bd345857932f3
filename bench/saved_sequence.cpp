// Saving and loading a sequence, beside the disk's own sequential rate in the same round: the file
// written by Session::save is read in 1 MiB requests with O_DIRECT, one and four at a time, then
// loaded, in turns. Ratios are to the faster of the two reads.
//
// A load fills memory that the process has not had before, so what the system takes to give as much
// memory is measured too: one thread writing to a new mapping. A load into a session whose rows lie
// on disk writes as much as it reads: beside it, the file copied in requests of 1 MiB, four at a
// time, into space that was allocated and never written, as a spill file's is.
//
// Shape of Llama-3.1-8B's attention (8 KV heads x 128, bf16), 4 layers. Without labels, with labels
// from statistics in the file, and with a tenth of the rows in RAM.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>

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

struct Case {
    const char* name;
    SelectorKind kind;
    bool on_disk;
};

std::string folder() {
    const char* named = std::getenv("TMPDIR");
    return named == nullptr ? "/tmp" : named;
}

std::unique_ptr<Session> make_session(const Case& what, uint32_t slots) {
    Config config;
    config.selector.kind = what.kind;
    config.profile.tokens = kStep;
    config.host.threads = 2;
    SessionOptions options;
    options.slots_per_store = slots;
    options.queries_per_step_max = kStep;
    if (what.on_disk) {
        config.disk.dir = folder();
        const Result<MemoryPlan> plan = Session::plan(config, model(), options);
        if (!plan) fail(plan.status().message());
        config.host.kv_bytes = plan->least_bytes + plan->disk_bytes / 10;
    }
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

// The file in requests of 1 MiB by several threads, read, and written to `copy` unless that is -1.
double read_seconds(const std::string& path, uint32_t threads, int copy) {
    constexpr size_t kPiece = 1 << 20;
    const auto bytes = static_cast<size_t>(std::filesystem::file_size(path));
    const int file = ::open(path.c_str(), O_RDONLY | O_DIRECT);
    if (file < 0) fail(path + ": no O_DIRECT here");
    std::atomic<size_t> next{0};
    const double start = now_s();
    std::vector<std::thread> running;
    for (uint32_t i = 0; i < threads; ++i) {
        running.emplace_back([&] {
            auto* buffer = static_cast<char*>(std::aligned_alloc(4096, kPiece));
            for (size_t at = 0; (at = next.fetch_add(kPiece)) < bytes;) {
                const auto offset = static_cast<off_t>(at);
                const ssize_t got = ::pread(file, buffer, kPiece, offset);
                if (got <= 0) fail(path + ": cannot be read");
                if (copy < 0) continue;
                if (::pwrite(copy, buffer, static_cast<size_t>(got), offset) != got) {
                    fail(path + ": cannot be copied");
                }
            }
            std::free(buffer);
        });
    }
    for (std::thread& thread : running) thread.join();
    const double seconds = now_s() - start;
    ::close(file);
    return seconds;
}

double copy_seconds(const std::string& path) {
    const int copy = ::open(folder().c_str(), O_RDWR | O_TMPFILE | O_DIRECT, 0600);
    const auto bytes = static_cast<off_t>(std::filesystem::file_size(path));
    if (copy < 0 || ::fallocate(copy, 0, 0, bytes) != 0) fail(folder() + ": no room for a copy");
    const double seconds = read_seconds(path, 4, copy);
    ::close(copy);
    return seconds;
}

double touch_seconds(size_t bytes) {
    const double start = now_s();
    const HugeBuffer memory(bytes);  // writes to all of it
    return now_s() - start;
}

void measure(const Case& what, uint32_t slots, uint32_t rounds) {
    const std::string path = folder() + "/shoal_bench_" + std::to_string(::getpid());
    double save_s = 0.0;
    {
        const auto session = make_session(what, slots);
        const StoreId store = fill(*session, slots);
        const double start = now_s();
        check(session->save(store, path));
        save_s = now_s() - start;
    }
    const auto bytes = static_cast<double>(std::filesystem::file_size(path));
    std::vector<double> load;
    std::vector<double> read_one;
    std::vector<double> read_four;
    std::vector<double> beside;  // new memory, or a copy of the file
    std::vector<double> of_read;
    std::vector<double> of_beside;
    for (uint32_t round = 0; round < rounds; ++round) {
        read_one.push_back(read_seconds(path, 1, -1));
        read_four.push_back(read_seconds(path, 4, -1));
        beside.push_back(what.on_disk ? copy_seconds(path)
                                      : touch_seconds(static_cast<size_t>(bytes)));
        const auto session = make_session(what, slots);
        const double start = now_s();
        const Result<StoreId> store = session->load(path);
        load.push_back(now_s() - start);
        check(store.status());
        of_read.push_back(std::min(read_one.back(), read_four.back()) / load.back());
        of_beside.push_back(beside.back() / load.back());
    }
    ::unlink(path.c_str());
    const auto rate = [bytes](double seconds) { return bytes * 1e-6 / seconds; };
    std::printf("%-6s %7u tokens  %6.0f MB  MB/s: save %5.0f  read %5.0f, by four %5.0f  %s %5.0f  "
                "load %5.0f = %.2f of read, %.2f of %s\n",
                what.name, slots, bytes * 1e-6, rate(save_s), rate(median(read_one)),
                rate(median(read_four)), what.on_disk ? "copy" : "new memory",
                rate(median(beside)), rate(median(load)), median(of_read), median(of_beside),
                what.on_disk ? "copy" : "new memory");
    std::fflush(stdout);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    using namespace shoal::bench;
    const BenchArgs args = parse_args(argc, argv);
    const uint32_t slots = args.quick ? 4096 : 131072;
    for (const Case& what : {Case{"dense", shoal::SelectorKind::dense, false},
                             Case{"labels", shoal::SelectorKind::labels, false},
                             Case{"disk", shoal::SelectorKind::labels, true}}) {
        measure(what, slots, args.rounds);
    }
    return 0;
}
