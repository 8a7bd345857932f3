// Any number of seeds, from any first one: SHOAL_TEST_RUNS=100000 SHOAL_TEST_SEED=1 test_sim
#include <gtest/gtest.h>

#include <cstdlib>

#include <fmt/format.h>

#include "tests/sim/session_sim.hpp"

namespace shoal::sim {
namespace {

uint64_t number_from(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

constexpr uint64_t kManyRuns = 2000;
#ifdef SHOAL_SANITIZED
constexpr uint64_t kRuns = 200;
#else
constexpr uint64_t kRuns = kManyRuns;
#endif

// What all seeds came to together.
struct Total {
    Outcome sum;
    uint64_t seeds_that_read = 0;
    uint64_t seeds_exact_under_faults = 0;

    void add(const Outcome& one) {
        sum.answers += one.answers;
        sum.answers_after_loss += one.answers_after_loss;
        sum.corrupt += one.corrupt;
        sum.unavailable += one.unavailable;
        sum.reads += one.reads;
        sum.kept_in_ram += one.kept_in_ram;
        sum.hints += one.hints;
        sum.reconfigured += one.reconfigured;
        sum.given_up += one.given_up;
        seeds_that_read += one.reads > 0 ? 1 : 0;
        uint64_t faults = 0;
        for (size_t kind = 1; kind < kFaultKinds; ++kind) {
            sum.injected.of[kind] += one.injected.of[kind];
            if (static_cast<Fault>(kind) >= Fault::error) faults += one.injected.of[kind];
        }
        seeds_exact_under_faults += faults > 0 && one.refused() == 0 ? 1 : 0;
    }

    std::string text(uint64_t first, uint64_t runs) const {
        std::string out = fmt::format(
            "seeds {} to {}: {} answers as in RAM, {} of them after a loss; refused: {} corrupt, "
            "{} unavailable; {} seeds exact under faults; {} blocks read, {} "
            "kept in RAM that disk refused; {} hints, {} policies changed, {} steps given up\n"
            "injected:",
            first, first + runs - 1, sum.answers, sum.answers_after_loss, sum.corrupt,
            sum.unavailable, seeds_exact_under_faults, sum.reads,
            sum.kept_in_ram, sum.hints, sum.reconfigured, sum.given_up);
        for (size_t kind = 1; kind < kFaultKinds; ++kind) {
            out += fmt::format("{} {} {}", kind == 1 ? "" : ",",
                               fault_name(static_cast<Fault>(kind)), sum.injected.of[kind]);
        }
        return out;
    }
};

TEST(Simulation, AnswersAsInRamOrSaysWhatItLost) {
    const uint64_t runs = number_from("SHOAL_TEST_RUNS", kRuns);
    const uint64_t first = number_from("SHOAL_TEST_SEED", 1);
    Total all;
    for (uint64_t seed = first; seed < first + runs; ++seed) {
        const Outcome one = run_seed(seed);
        ASSERT_EQ(one.difference, "")
            << "seed " << seed << ", again: SHOAL_TEST_SEED=" << seed
            << " SHOAL_TEST_RUNS=1 test_sim --gtest_filter='Simulation.Answers*'";
        all.add(one);
    }
    fmt::print("{}\n", all.text(first, runs));
    if (runs < kManyRuns) return;
    // A simulation in which nothing happens proves nothing.
    EXPECT_GT(all.seeds_that_read, runs / 2);
    EXPECT_GT(all.seeds_exact_under_faults, runs / 20);
    EXPECT_GT(all.sum.answers_after_loss, runs / 2);
    EXPECT_GT(all.sum.corrupt, runs / 40);
    EXPECT_GT(all.sum.unavailable, runs / 40);
    EXPECT_GT(all.sum.kept_in_ram, runs / 40);
    EXPECT_GT(all.sum.hints, runs / 4);
    EXPECT_GT(all.sum.reconfigured, runs / 2);
    EXPECT_GT(all.sum.given_up, runs / 2);
    for (size_t kind = 1; kind < kFaultKinds; ++kind) {
        EXPECT_GT(all.sum.injected.of[kind], runs / 40) << fault_name(static_cast<Fault>(kind));
    }
}

TEST(Simulation, SameSeedSameHistory) {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        const Outcome one = run_seed(seed);
        const Outcome again = run_seed(seed);
        ASSERT_EQ(one.digest, again.digest) << "seed " << seed;
        ASSERT_EQ(one.refused(), again.refused()) << "seed " << seed;
        ASSERT_NE(one.digest, run_seed(seed + 1).digest) << "seed " << seed;
    }
}

}  // namespace
}  // namespace shoal::sim
