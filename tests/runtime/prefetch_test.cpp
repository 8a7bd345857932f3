// Reading ahead from disk: answers never depend on it, and what is known is read in time. Whether a
// guess pays: prefetch_trial_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/prefetch_trial.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using testing::tensor_of;
using ::testing::HasSubstr;

constexpr uint32_t kLayers = 6;
constexpr uint32_t kSlots = 2500;

ModelShape shape() { return small_model(kLayers, 4, 2, 128); }

// RAM for what a step reads some times over, on top of the least.
Config disk_config(PrefetchKind kind, uint64_t more_bytes = 2 << 20) {
    Config config = testing::test_config(64);
    config.disk.dir = ::testing::TempDir();
    config.prefetch.kind = kind;
    SessionOptions options;
    options.slots_per_store = kSlots;
    options.queries_per_step_max = 1024;
    const Result<MemoryPlan> plan = Session::plan(config, shape(), options);
    EXPECT_TRUE(plan) << plan.status().message();
    config.host.kv_bytes = plan->least_bytes + more_bytes;
    return config;
}

void fill(Driver& driver) {
    for (uint32_t i = 0; i < 4; ++i) driver.step(500);
    for (uint32_t i = 0; i < 2; ++i) driver.step(1);
    driver.session().reset_stats();
}

struct KindCase {
    const char* name;
    PrefetchKind kind;
    SharingKind sharing = SharingKind::layer;
    uint32_t percent = 100;
};

class Prefetch : public ::testing::TestWithParam<KindCase> {};

INSTANTIATE_TEST_SUITE_P(
    Kinds, Prefetch,
    ::testing::Values(KindCase{"none", PrefetchKind::none}, KindCase{"known", PrefetchKind::known},
                      KindCase{"steps", PrefetchKind::steps},
                      KindCase{"last_query", PrefetchKind::last_query},
                      KindCase{"query", PrefetchKind::query, SharingKind::layer, 150},
                      KindCase{"query_of_heads", PrefetchKind::query, SharingKind::head},
                      KindCase{"tidal", PrefetchKind::query, SharingKind::tidal, 400}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(Prefetch, AnswersDoNotDependOnIt) {
    SHOAL_SKIP_IN_RERUNS();
    Config config = disk_config(GetParam().kind, 256 << 10);
    config.prefetch.percent = GetParam().percent;
    config.sharing.kind = GetParam().sharing;
    if (config.sharing.kind == SharingKind::tidal) config.sharing.anchors = {1, 4};
    Config in_ram = config;
    in_ram.disk = {};
    in_ram.host.kv_bytes = 0;
    config.host.kv_bytes = 0;  // the least: with_least_memory()
    Driver ram(in_ram, shape(), kSlots);
    Driver disk(config, shape(), kSlots);
    ram.hint(0.25F);
    disk.hint(0.25F);
    for (uint32_t i = 0; i < 3; ++i) ASSERT_EQ(ram.step(300), disk.step(300));
    for (uint32_t i = 0; i < 20; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << i;
    for (const uint32_t n : {2U, 5U, 8U, 9U, 1U}) ASSERT_EQ(ram.step(n), disk.step(n)) << n;
    ram.truncate(700);
    disk.truncate(700);
    for (uint32_t i = 0; i < 5; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << i;
    const Stats stats = disk.session().stats();
    EXPECT_GT(stats.block_misses, 0U);
    EXPECT_EQ(stats.prefetch_guesses > 0, GetParam().kind > PrefetchKind::known);
    // Prompts are read ahead in any case, so that a count above zero says nothing here.
    EXPECT_EQ(stats.prefetch_hints > 0, GetParam().kind == PrefetchKind::query);
    EXPECT_LE(stats.blocks_prefetched_used + stats.blocks_prefetched_late +
                  stats.blocks_prefetched_wasted,
              stats.blocks_prefetched);
}

// Blocks whose reads began when attention needed them, of the steps with guesses after fill().
uint64_t misses(const Config& config, bool hints, Stats* stats = nullptr) {
    Driver driver(config, shape(), kSlots);
    if (hints) driver.hint(0.0F);
    fill(driver);
    for (uint32_t i = 2; i < PrefetchTrial::kRunSteps; ++i) driver.step(1);
    if (stats != nullptr) *stats = driver.session().stats();
    return driver.session().stats().block_misses;
}

TEST(PrefetchOf, ARightHintLeavesNothingToWaitFor) {
    SHOAL_SKIP_IN_RERUNS();
    Stats stats;
    const uint64_t without = misses(disk_config(PrefetchKind::none), false);
    const uint64_t with = misses(disk_config(PrefetchKind::query), true, &stats);
    EXPECT_GT(without, kLayers * 5U);
    EXPECT_LE(3 * with, without) << "only the first of six layers is not hinted";
    EXPECT_GT(stats.blocks_prefetched_used + stats.blocks_prefetched_late, 0U);
}

TEST(PrefetchOf, LayersThatReuseASelectionIsComplete) {
    SHOAL_SKIP_IN_RERUNS();
    Config config = disk_config(PrefetchKind::known);
    config.sharing.kind = SharingKind::tidal;
    config.sharing.anchors = {1};
    Config none = config;
    none.prefetch.kind = PrefetchKind::none;
    const uint64_t without = misses(none, false);
    const uint64_t with = misses(config, false);
    EXPECT_GT(without, 0U);
    EXPECT_LE(3 * with, 2 * without) << "only two of six layers select";
}

TEST(PrefetchHint, RefusesWhatIsNoQueryOfTheStep) {
    Driver driver(disk_config(PrefetchKind::query), shape(), kSlots);
    driver.step(300);
    Session& session = driver.session();
    const std::vector<float> q(size_t{2} * 8 * 128, 0.5F);
    EXPECT_THAT(session.hint_query({1}, tensor_of(q, 1, 8, 128)).message(),
                HasSubstr("call begin_step first"));
    const StoreId stores[1] = {driver.store()};
    const uint32_t offsets[2] = {0, 1};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    ASSERT_TRUE(session.begin_step(input));
    EXPECT_TRUE(session.wants_hint({1}));
    EXPECT_TRUE(session.hint_query({1}, tensor_of(q, 1, 8, 128)));
    EXPECT_FALSE(session.wants_hint({kLayers}));
    EXPECT_THAT(session.hint_query({kLayers}, tensor_of(q, 1, 8, 128)).message(),
                HasSubstr("layer = 6"));
    EXPECT_THAT(session.hint_query({1}, tensor_of(q, 2, 8, 128)).message(),
                HasSubstr("approximate_q: f32 [2, 8, 128]: must be f32 [1, 8, 128]"));
    EXPECT_THAT(session.hint_query({1}, tensor_of(q, 1, 4, 128)).message(), HasSubstr("[1, 4, "));
    EXPECT_FALSE(session.hint_query({1}, {}));
    std::vector<float> bad = q;
    bad[77] = NAN;
    EXPECT_THAT(session.hint_query({1}, tensor_of(bad, 1, 8, 128)).message(),
                HasSubstr("approximate_q holds NaN or Inf"));
}

TEST(PrefetchHint, IsOfNoUseInRam) {
    SHOAL_SKIP_ON_DISK();
    Driver driver(testing::test_config(64), shape(), kSlots);
    driver.hint(0.0F);
    driver.step(300);
    driver.step(1);
    EXPECT_FALSE(driver.session().wants_hint({1}));
    EXPECT_EQ(driver.session().stats().prefetch_guesses, 0U);
}

}  // namespace
}  // namespace shoal
