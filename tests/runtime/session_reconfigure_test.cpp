// Changes between steps: what a refused one leaves, and what the figures go on from.
#include <gtest/gtest.h>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using testing::test_config;

constexpr uint32_t kSlots = 4096;

Config config_within_plan() {
    Config config = test_config();
    config.profile.tokens = 256;
    SessionOptions options;
    options.slots_per_store = kSlots;
    options.queries_per_step_max = 1024;
    const Result<MemoryPlan> plan = Session::plan(config, small_model(), options);
    EXPECT_TRUE(plan) << plan.status().message();
    config.host.kv_bytes = plan->total_bytes;
    return config;
}

// Rows that need longer lists than the budget has room for: refused, and nothing is lost.
TEST(SessionReconfigure, TooLittleMemoryLeavesEverythingAsItWas) {
    const Config config = config_within_plan();
    Driver one(config, small_model(), kSlots, 7);
    Driver other(config, small_model(), kSlots, 7);
    for (Driver* driver : {&one, &other}) {
        driver->step(600);
        driver->step(1);
    }
    Config larger = config;
    larger.budget.rows = 3000;
    const Status refused = one.session().reconfigure(larger);
    EXPECT_EQ(refused.code(), StatusCode::out_of_memory) << refused.message();
    EXPECT_EQ(one.session().config().budget.rows, config.budget.rows);
    EXPECT_TRUE(one.session().attended_slots({1}, 0, 0).empty());
    for (int i = 0; i < 3; ++i) EXPECT_EQ(one.step(1), other.step(1));
    EXPECT_EQ(one.session().attended_slots({1}, 0, 0), other.session().attended_slots({1}, 0, 0));
    EXPECT_TRUE(one.session().reconfigure(config));
}

TEST(SessionReconfigure, WhatIsSetOnceIsRefused) {
    const Config config = test_config();
    Driver driver(config, small_model(), kSlots);
    const auto refused = [&](auto change) {
        Config changed = driver.session().config();
        change(changed);
        return driver.session().reconfigure(changed).message();
    };
    const std::string once = ": cannot change in a running session. Create a new one";
    EXPECT_EQ(refused([](Config& c) { c.host.threads = 7; }), "host.threads" + once);
    EXPECT_EQ(refused([](Config& c) { c.host.pin = false; }), "host.pin" + once);
    EXPECT_EQ(refused([](Config& c) { c.host.huge_pages = false; }), "host.huge_pages" + once);
    EXPECT_EQ(refused([](Config& c) { c.host.rows = HostRows::q8; }), "host.rows" + once);
    EXPECT_EQ(refused([](Config& c) { c.host.check_rows = true; }), "host.check_rows" + once);
    EXPECT_EQ(refused([](Config& c) { c.host.kv_bytes = 7; }), "host.kv_bytes" + once);
    EXPECT_EQ(refused([](Config& c) { c.disk.dir = "/"; }), "disk.dir" + once);
    EXPECT_EQ(refused([](Config& c) { c.disk.kv_bytes = 7; }), "disk.kv_bytes" + once);
    EXPECT_EQ(refused([](Config& c) { c.disk.deadline_ms = 7; }), "disk.deadline_ms" + once);
}

// Layers without KV, and windowed ones, are passed over: every other one has its turn.
TEST(SessionRecall, EveryLayerThatSelectsIsSampled) {
    SHOAL_SKIP_ON_DISK();
    Config config = test_config();
    config.stats.recall_every = 1;
    ModelShape shape = small_model(6);
    shape.layers[0] = shape.layers[3] = {.kind = LayerKind::none};
    shape.layers[4].kind = LayerKind::sliding;
    Driver driver(config, shape, kSlots);
    driver.step(600);
    driver.session().reset_stats();
    for (int i = 0; i < 9; ++i) driver.step(1);
    EXPECT_EQ(driver.session().stats().recall_samples, 9U);
}

TEST(SessionStats, ResetStartsAtZero) {
    Driver driver(test_config(), small_model(), kSlots);
    driver.step(600);
    driver.step(1);
    EXPECT_GT(driver.session().stats().spans_encoded, 0U);
    driver.session().reset_stats();
    EXPECT_EQ(driver.session().stats().spans_encoded, 0U);
    EXPECT_EQ(driver.session().stats().steps, 0U);
}

TEST(SessionErrors, QueriesThatAreNotThere) {
    Driver driver(test_config(), small_model(), kSlots);
    driver.step(3);
    const StoreId stores[] = {driver.store()};
    const uint32_t offsets[] = {0, 1};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    ASSERT_TRUE(driver.session().begin_step(input));
    const SlotRange range[] = {{0, 3}};
    Visibility visibility{offsets, offsets, range, 0};
    std::vector<float> out(9 * 64);
    std::vector<float> q(9 * 64 + 1);
    const Tensor to{out.data(), 1, 9, 64, 9 * 64 * 4, 64 * 4};
    ConstTensor none = testing::tensor_of(q, 1, 9, 64);
    none.data = nullptr;
    EXPECT_NE(driver.session().attend({0}, none, visibility, to).message().find("q: data null"),
              std::string::npos);
    ConstTensor odd = testing::tensor_of(q, 1, 9, 64);
    odd.head_stride_bytes = 257;
    EXPECT_NE(driver.session().attend({0}, odd, visibility, to).message().find("strides"),
              std::string::npos);
    SessionOptions options;
    options.slots_per_store = 1;
    options.queries_per_step_max = 1 << 28;
    EXPECT_EQ(Session::plan(test_config(), small_model(), options).status().message(),
              "options.queries_per_step_max = 268435456: must be 1 .. 1048576");
}

}  // namespace
}  // namespace shoal
