// bench_limits: read bandwidth and multiply-add peak of this machine with 1 thread and with all.
// Samples of the two are interleaved. Prints median, best and worst.
#include "bench/limits.hpp"

#include <cstdio>
#include <memory>
#include <utility>

namespace {

using shoal::bench::Fma;
using shoal::bench::LimitProbe;

void print(const char* what, const char* unit, uint32_t threads, std::vector<double> values) {
    std::sort(values.begin(), values.end());
    std::printf("%-18s %3u thread%s  %8.1f %s  (%.1f .. %.1f, %zu samples)\n", what, threads,
                threads == 1 ? " " : "s", shoal::bench::median_of(values), unit, values.front(),
                values.back(), values.size());
}

}  // namespace

int main() {
    constexpr int kSamples = 41;
    const auto own = shoal::offload::OwnExecutor::create({});
    if (!own) {
        std::fprintf(stderr, "%s\n", own.status().message().c_str());
        return 1;
    }
    const shoal::Executor executors[] = {shoal::Executor{}, (*own)->executor()};
    LimitProbe probes[] = {LimitProbe(executors[0]), LimitProbe(executors[1])};
    std::vector<double> read[2];
    for (int sample = 0; sample < kSamples; ++sample) {
        for (int i = 0; i < 2; ++i) read[i].push_back(probes[i].read_gb_per_s());
    }
    const uint32_t threads[] = {1, (*own)->thread_count()};
    for (int i = 0; i < 2; ++i) print("sequential read", "GB/s", threads[i], read[i]);

    for (const Fma fma : {Fma::f32_avx2, Fma::f32_avx512, Fma::bf16_avx512}) {
        std::vector<double> rate[2];
        for (int sample = 0; sample < kSamples; ++sample) {
            for (int i = 0; i < 2; ++i) rate[i].push_back(probes[i].gflop_per_s(fma));
        }
        if (rate[0].front() == 0) continue;
        for (int i = 0; i < 2; ++i) {
            print(shoal::bench::fma_name(fma), "GFLOP/s", threads[i], rate[i]);
        }
    }
    return 0;
}
