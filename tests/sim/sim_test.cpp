// SHOAL_TEST_RUNS=N test_sim: any number of seeds; SHOAL_TEST_SEED=S: from another first one.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/sim/session_sim.hpp"

namespace shoal::sim {
namespace {

uint64_t number_from(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

#ifdef SHOAL_SANITIZED
constexpr uint64_t kRuns = 200;
#else
constexpr uint64_t kRuns = 2000;
#endif

TEST(Simulation, AnswersAsInRamOrSaysThatItCannot) {
    const uint64_t runs = number_from("SHOAL_TEST_RUNS", kRuns);
    const uint64_t first = number_from("SHOAL_TEST_SEED", 1);
    Outcome all;
    uint64_t seeds_that_read = 0;
    for (uint64_t seed = first; seed < first + runs; ++seed) {
        const Outcome one = run_seed(seed);
        ASSERT_EQ(one.difference, "") << "seed " << seed;
        all.answers += one.answers;
        all.refused += one.refused;
        all.reads += one.reads;
        seeds_that_read += one.reads > 0 ? 1 : 0;
        all.injected.shorts += one.injected.shorts;
        all.injected.errors += one.injected.errors;
        all.injected.duplicates += one.injected.duplicates;
        all.injected.foreign += one.injected.foreign;
        all.injected.corrupt += one.injected.corrupt;
        all.injected.misdirected += one.injected.misdirected;
        all.injected.torn += one.injected.torn;
        all.injected.late += one.injected.late;
    }
    const auto n = [](uint64_t number) { return static_cast<unsigned long long>(number); };
    std::printf("seeds %llu to %llu: %llu answers as in RAM, %llu calls refused, %llu blocks read; "
                "short %llu, errors %llu, twice %llu, foreign %llu, corrupt %llu, misdirected "
                "%llu, torn %llu, late %llu\n",
                n(first), n(first + runs - 1), n(all.answers), n(all.refused), n(all.reads),
                n(all.injected.shorts), n(all.injected.errors), n(all.injected.duplicates),
                n(all.injected.foreign), n(all.injected.corrupt), n(all.injected.misdirected),
                n(all.injected.torn), n(all.injected.late));
    if (runs < 200) return;
    EXPECT_GT(seeds_that_read, runs / 2);
    EXPECT_GT(all.refused, runs / 100);
    for (const uint64_t count :
         {all.injected.shorts, all.injected.errors, all.injected.duplicates, all.injected.foreign,
          all.injected.corrupt, all.injected.misdirected, all.injected.torn, all.injected.late}) {
        EXPECT_GT(count, runs / 40);
    }
}

}  // namespace
}  // namespace shoal::sim
