// Top-k of stored scores, one thread, in microseconds: with the candidates of a good threshold,
// without any, and std::nth_element for comparison. Scores lie in the cache, as a scan leaves them.
#include <cmath>
#include <random>

#include "bench/support.hpp"

namespace shoal::bench {
namespace {

constexpr uint32_t kTop = 1024;

struct Scores {
    explicit Scores(uint32_t count) : values(count) {
        std::minstd_rand random(5);
        std::normal_distribution<float> normal(0.0F, 2.0F);
        for (float& value : values) value = std::exp2(normal(random));
        std::vector<float> sorted = values;
        std::nth_element(sorted.begin(), sorted.begin() + kTop - 1, sorted.end(),
                         std::greater<>());
        for (uint32_t slot = 0; slot < count; ++slot) {
            if (values[slot] >= 0.85F * sorted[kTop - 1]) candidates.push_back(slot);
        }
    }
    std::vector<float> values;
    std::vector<uint32_t> candidates;
};

template <typename F>
double median_us(uint32_t rounds, const F& fn) {
    std::vector<double> us;
    for (uint32_t round = 0; round < rounds; ++round) {
        const double start = now_s();
        fn();
        us.push_back((now_s() - start) * 1e6);
    }
    return median(us);
}

void measure(const Scores& scores, uint32_t rounds, int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    const auto count = static_cast<uint32_t>(scores.values.size());
    std::vector<std::byte> workspace(kernels::topk_workspace_bytes(count));
    std::vector<uint32_t> chosen(kTop);
    kernels::TopkOutput out;
    out.slots = chosen.data();
    const kernels::CandidatePart part = {scores.candidates.data(),
                                         static_cast<uint32_t>(scores.candidates.size())};
    const auto run = [&](uint32_t part_count) {
        kernels::cpu_backend().topk({scores.values.data(), count, kTop, &part, part_count}, out,
                                    workspace.data());
    };
    std::vector<std::pair<float, uint32_t>> pairs(count);
    const double guessed = median_us(rounds, [&] { run(1); });
    const double blind = median_us(rounds, [&] { run(0); });
    const double sorting = median_us(rounds, [&] {
        for (uint32_t slot = 0; slot < count; ++slot) pairs[slot] = {scores.values[slot], ~slot};
        std::nth_element(pairs.begin(), pairs.begin() + kTop - 1, pairs.end(), std::greater<>());
    });
    std::printf("%8u %-8s %10u %9.1f %9.1f %12.1f\n", count, kernels::cpu_target_name().c_str(),
                part.count, guessed, blind, sorting);
    hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    using namespace shoal::bench;
    const BenchArgs args = parse_args(argc, argv);
    const uint32_t rounds = args.quick ? 5 : 101;
    std::printf("   slots target   candidates   guessed     blind  nth_element   (us, k = 1024)\n");
    for (const uint32_t count : {8192U, 32768U, 131072U, 262144U}) {
        const Scores scores(count);
        for (const int64_t target : bench_targets(args.target)) measure(scores, rounds, target);
    }
    return 0;
}
