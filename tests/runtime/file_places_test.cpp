// Where rows lie on disk: those of layers that attend one selection beside each other, token by
// token, so that one read of the device gets a token's rows of all of them.
#include <gtest/gtest.h>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;

constexpr uint32_t kLayers = 6;
constexpr uint32_t kSlots = 1300;
constexpr uint32_t kSteps = 6;

// Of kSteps steps of one token after a prompt, with RAM for what a step reads some times over.
Stats stats_of(PrefetchKind prefetch) {
    // 4 KiB a token and layer: a block each.
    const ModelShape shape = testing::small_model(kLayers, 8, 2, 128);
    Config config = testing::test_config(64);
    config.disk.dir = ::testing::TempDir();
    config.prefetch.kind = prefetch;
    config.sharing.kind = SharingKind::tidal;
    config.sharing.anchors = {1};
    SessionOptions options;
    options.slots_per_store = kSlots;
    options.queries_per_step_max = 1024;
    const Result<MemoryPlan> plan = Session::plan(config, shape, options);
    EXPECT_TRUE(plan) << plan.status().message();
    config.host.kv_bytes = plan->least_bytes + (4 << 20);
    Driver driver(config, shape, kSlots);
    driver.step(900);
    driver.step(300);
    for (uint32_t i = 0; i < 2; ++i) driver.step(1);
    driver.session().reset_stats();
    const uint64_t before = driver.session().stats().disk_reads;
    for (uint32_t i = 0; i < kSteps; ++i) driver.step(1);
    Stats stats = driver.session().stats();
    stats.disk_reads -= before;
    return stats;
}

uint64_t blocks_read(const Stats& stats) {
    return stats.block_misses + stats.blocks_prefetched;
}

TEST(FilePlaces, OneReadGetsATokensRowsOfLayersThatReuseASelection) {
    SHOAL_SKIP_IN_RERUNS();
    const Stats apart = stats_of(PrefetchKind::none);
    const Stats together = stats_of(PrefetchKind::known);
    ASSERT_GT(apart.disk_reads, 100U);
    ASSERT_GT(together.blocks_prefetched, 100U);
    // Layer by layer only tokens that are neighbours are read together; token by token all that is
    // missing of four layers of six, which reuse what a fifth selected: half the reads.
    EXPECT_LT(static_cast<double>(together.disk_reads) /
                  static_cast<double>(blocks_read(together)),
              0.75 * static_cast<double>(apart.disk_reads) /
                  static_cast<double>(blocks_read(apart)));
}

}  // namespace
}  // namespace shoal
