// Sequences in shared and separate stores under random operations: append, decode, share, fork,
// copy, remove, shift, truncate, save and restore, steps that are refused or given up, against a
// plain model.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tests/runtime/random_operations.hpp"

namespace shoal {
namespace {

using testing::OperationsPolicy;
using testing::RandomOperations;

// Channels that one session learnt, for those that start with some.
std::string make_profile() {
    const std::string path = ::testing::TempDir() + "shoal_operations_" +
                             std::to_string(getpid()) + ".profile";
    testing::Driver driver(RandomOperations::config(), RandomOperations::shape(), 512);
    driver.step(300);
    EXPECT_TRUE(driver.session().write_profile(path, "random rows"));
    return path;
}

// One run in four learns its channels on the way; in every other one, values name their sequence.
void run_seeds(uint64_t first, uint64_t count, uint32_t operations,
               const OperationsPolicy& policy = {}) {
    std::printf("%s, %u operations, seeds %llu to %llu\n", policy.name, operations,
                static_cast<unsigned long long>(first),
                static_cast<unsigned long long>(first + count - 1));
    const std::string profile = make_profile();
    RandomOperations::Counts counts;
    for (uint64_t seed = first; seed < first + count && !::testing::Test::HasFailure(); ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        RandomOperations run(seed, seed % 4 == 0 ? "" : profile, seed % 2 == 1, policy);
        run.run(operations);
        run.add_to(counts);
    }
    std::filesystem::remove(profile);
    std::printf("%llu steps, %llu answers compared, %llu channels of others empty; forks %llu, "
                "copies %llu, shifts %llu, restores %llu\n",
                static_cast<unsigned long long>(counts.steps),
                static_cast<unsigned long long>(counts.answers),
                static_cast<unsigned long long>(counts.zeros),
                static_cast<unsigned long long>(counts.forks),
                static_cast<unsigned long long>(counts.copies),
                static_cast<unsigned long long>(counts.shifts),
                static_cast<unsigned long long>(counts.restores));
    const uint64_t least = count * operations / 200;
    EXPECT_GT(counts.stats.queries_sparse, 20 * least);
    EXPECT_GT(counts.stats.queries_exact, 20 * least);
    EXPECT_GT(counts.zeros, 1000 * least);
    EXPECT_GT(counts.forks, 5 * least);
    EXPECT_GT(counts.copies, least);
    EXPECT_GT(counts.shifts, 2 * least);
    EXPECT_GT(counts.restores, 2 * least);
    EXPECT_GT(counts.refused, 5 * least);
    EXPECT_GT(counts.given_up, 2 * least);
    if (policy.on_disk) {
        EXPECT_GT(counts.stats.prefetch_guesses, 20 * least);
        EXPECT_GT(counts.stats.prefetch_hints, least);
    }
    EXPECT_EQ(counts.stats.selections + counts.stats.selections_reused,
              counts.stats.queries_sparse);
    if (policy.sharing != SharingKind::tidal) {
        EXPECT_EQ(counts.stats.selections_reused, 0U);
        return;
    }
    // A step that was given up may lack the layer that reuses.
    EXPECT_LE(counts.stats.selections_reused, counts.stats.selections);
    EXPECT_GT(counts.stats.selections_reused, counts.stats.selections * 9 / 10);
}

const OperationsPolicy kOtherPolicies[] = {
    {"page_bounds", SelectorKind::page_bounds},
    {"hybrid", SelectorKind::hybrid},
    {"tidal", SelectorKind::labels, SharingKind::tidal},
    {"tidal, a set per head", SelectorKind::labels, SharingKind::tidal, SharingHeads::index},
    {"tidal over page bounds", SelectorKind::page_bounds, SharingKind::tidal},
    {.name = "adaptive", .adaptive = true},
    {.name = "q8", .rows = HostRows::q8},
};

#ifdef SHOAL_SANITIZED  // 6 to 12 times slower
constexpr uint64_t kSeeds = 15;
constexpr uint64_t kSeedsOfPolicy = 4;
#else
constexpr uint64_t kSeeds = 60;
constexpr uint64_t kSeedsOfPolicy = 12;
#endif

TEST(RandomSessionOperations, AnswerAsThePlainModel) { run_seeds(1, kSeeds, 200); }

TEST(RandomSessionOperations, UnderOtherPolicies) {
    uint64_t first = 1000;
    for (const OperationsPolicy& policy : kOtherPolicies) {
        run_seeds(first, kSeedsOfPolicy, 200, policy);
        first += 100;
    }
}

TEST(RandomSessionOperations, OnDisk) {
    SHOAL_SKIP_IN_RERUNS();
    run_seeds(2000, kSeedsOfPolicy, 200, {.name = "on disk", .on_disk = true});
    run_seeds(2100, kSeedsOfPolicy, 200,
              {.name = "pages on disk", .selector = SelectorKind::page_bounds, .on_disk = true});
}

TEST(LongRandomSessionOperations, UnderOtherPolicies) {
    uint64_t first = 100'000;
    for (const OperationsPolicy& policy : kOtherPolicies) {
        run_seeds(first, 60, 200, policy);
        first += 1000;
    }
}

// 10,000 runs take 204 s: SHOAL_TEST_RUNS=10000 test_runtime --gtest_filter='LongRandomS*'
TEST(LongRandomSessionOperations, AnswerAsThePlainModel) {
    const char* runs = std::getenv("SHOAL_TEST_RUNS");
    run_seeds(10'000, runs != nullptr ? std::strtoull(runs, nullptr, 10) : 1'500, 200);
}

}  // namespace
}  // namespace shoal
