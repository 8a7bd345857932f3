// Sessions whose rows lie on disk: the same answers, bit for bit, with little RAM.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "offload/memory_tier.hpp"
#include "runtime/session_maker.hpp"
#include "shoal/text.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using ::testing::AllOf;
using ::testing::HasSubstr;

Config disk_config(const Config& config) {
    Config spilled = config;
    spilled.disk.dir = ::testing::TempDir();
    return spilled;
}

// A disk in memory whose bytes a test can change.
class OpenDisk {
public:
    DiskMaker maker() {
        return [this](const SessionState&, uint64_t bytes) {
            memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
            bytes_ = bytes;
            return Result<std::unique_ptr<offload::Tier>>(std::make_unique<offload::MemoryTier>(
                std::span(memory_.get(), bytes), 4096));
        };
    }
    void damage() {
        for (uint64_t at = 100; at < bytes_; at += 4096) memory_.get()[at] ^= std::byte{1};
    }

private:
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    uint64_t bytes_ = 0;
};

struct DiskCase {
    const char* name;
    SharingKind sharing = SharingKind::layer;
    SelectorKind selector = SelectorKind::labels;
    DType dtype = DType::f16;
    uint32_t kv_heads = 3;
    uint32_t head_dim = 64;
    uint32_t rows = 48;
};

class SessionOnDisk : public ::testing::TestWithParam<DiskCase> {
protected:
    static Config config() {
        Config made = testing::test_config(GetParam().rows);
        made.disk = {};
        made.selector.kind = GetParam().selector;
        made.sharing.kind = GetParam().sharing;
        if (made.sharing.kind == SharingKind::tidal) made.sharing.anchors = {0, 2};
        made.host.rows = testing::host_rows(GetParam().dtype);
        return made;
    }
    static ModelShape shape() {
        return small_model(4, GetParam().kv_heads, 2, GetParam().head_dim,
                           testing::engine_dtype(GetParam().dtype));
    }
};

INSTANTIATE_TEST_SUITE_P(
    Policies, SessionOnDisk,
    ::testing::Values(DiskCase{"layer"}, DiskCase{"head", SharingKind::head},
                      DiskCase{"tidal", SharingKind::tidal},
                      DiskCase{"pages", SharingKind::layer, SelectorKind::page_bounds},
                      DiskCase{"hybrid", SharingKind::layer, SelectorKind::hybrid},
                      DiskCase{"dense", SharingKind::layer, SelectorKind::dense},
                      DiskCase{"f32", SharingKind::layer, SelectorKind::labels, DType::f32},
                      DiskCase{"token_of_one_block", SharingKind::layer, SelectorKind::labels,
                               DType::bf16, 8, 128},
                      DiskCase{"q8", SharingKind::layer, SelectorKind::labels, DType::q8, 8, 128},
                      DiskCase{"few_rows", SharingKind::layer, SelectorKind::labels, DType::f16, 3,
                               64, 3}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(SessionOnDisk, AnswersAsInRamBitForBit) {
    const ModelShape shape = SessionOnDisk::shape();
    const uint32_t slots = 3000;
    Driver ram(config(), shape, slots);
    Driver disk(disk_config(config()), shape, slots);
    const std::vector<uint32_t> steps = {1, 127, 300, 1, 2, 700, 129, 1, 512, 3};
    for (const uint32_t n : steps) ASSERT_EQ(ram.step(n), disk.step(n)) << n << " tokens";
    for (uint32_t i = 0; i < 40; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << i;
    for (const uint32_t kept : {1500U, 1409U, 1U}) {
        ram.truncate(kept);
        disk.truncate(kept);
        ASSERT_EQ(ram.step(1), disk.step(1)) << kept;
        ASSERT_EQ(ram.step(200), disk.step(200)) << kept;
        for (uint32_t i = 0; i < 5; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << kept;
    }
    const Stats stats = disk.session().stats();
    EXPECT_GT(stats.block_misses, 0U);
    EXPECT_GT(stats.blocks_written, 0U);
    EXPECT_GT(stats.disk_read_bytes, 0U);
    EXPECT_EQ(stats.disk_checksum_mismatches, 0U);
    EXPECT_EQ(stats.block_write_failures, 0U);
    EXPECT_LT(stats.host_kv_bytes, stats.disk_kv_bytes);
}

TEST_P(SessionOnDisk, TakesWhatThePlanSays) {
    const ModelShape shape = SessionOnDisk::shape();
    SessionOptions options;
    options.slots_per_store = 6000;
    const Config config = disk_config(SessionOnDisk::config());
    const Result<MemoryPlan> plan = Session::plan(config, shape, options);
    ASSERT_TRUE(plan) << plan.status().message();
    EXPECT_LT(plan->least_bytes, plan->total_bytes);
    for (const uint64_t bytes : {plan->least_bytes, plan->least_bytes + (1 << 20)}) {
        Config little = config;
        little.host.kv_bytes = bytes;
        const Result<MemoryPlan> least = Session::plan(little, shape, options);
        ASSERT_TRUE(least);
        EXPECT_LE(least->total_bytes, bytes);
        EXPECT_GT(least->total_bytes + (256 << 10), bytes);
        EXPECT_EQ(least->disk_bytes, plan->disk_bytes);
        EXPECT_TRUE(Session::create(little, shape, options));
    }
    Config less = config;
    less.host.kv_bytes = plan->least_bytes - 4096;
    const auto refused = Session::create(less, shape, options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::out_of_memory);
    EXPECT_THAT(refused.status().message(), HasSubstr(bytes_text(plan->least_bytes)));
    EXPECT_THAT(refused.status().message(), HasSubstr("host.kv_bytes"));
}

TEST(SessionOnDiskRefuses, WhatItCannotUse) {
    SessionOptions options;
    options.slots_per_store = 1000;
    Config config = testing::test_config();
    config.disk.dir = ::testing::TempDir() + "no/such/folder";
    auto made = Session::create(config, small_model(), options);
    ASSERT_FALSE(made);
    EXPECT_THAT(made.status().message(), HasSubstr("no/such/folder"));
    config.disk.dir = ::testing::TempDir();
    config.disk.kv_bytes = 4096;
    made = Session::create(config, small_model(), options);
    ASSERT_FALSE(made);
    EXPECT_THAT(made.status().message(), HasSubstr("disk.kv_bytes = 4.0 KiB: 1000 slots take "));
}

TEST(SessionOnDiskDamage, IsSaidAndTheSessionGoesOn) {
    const ModelShape shape = small_model(2, 3, 2);
    Config config = testing::test_config(200);
    config.disk.dir = ::testing::TempDir();
    SessionOptions options;
    options.slots_per_store = 4000;
    options.queries_per_step_max = 1024;
    OpenDisk disk;
    auto made = SessionMaker::create(testing::with_least_memory(config, shape, options), shape,
                                     options, disk.maker());
    ASSERT_TRUE(made) << made.status().message();
    Driver driver(std::move(*made), shape);
    for (uint32_t i = 0; i < 3; ++i) driver.step(1000);
    disk.damage();
    Session& session = driver.session();
    // By hand: the driver expects answers.
    const StoreId stores[1] = {driver.store()};
    const uint32_t offsets[2] = {0, 1};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    ASSERT_TRUE(session.begin_step(input));
    const std::vector<float> row(size_t{3} * 64, 0.5F);
    const std::vector<float> q(size_t{6} * 64, 0.5F);
    std::vector<float> out(size_t{6} * 64);
    const uint32_t range_offsets[2] = {0, 1};
    const SlotRange ranges[1] = {{0, 3001}};
    // The block that the token belongs to may be on disk already.
    Status attended = session.append({0}, testing::tensor_of(row, 1, 3, 64),
                                     testing::tensor_of(row, 1, 3, 64));
    if (attended) {
        attended = session.attend({0}, testing::tensor_of(q, 1, 6, 64),
                                  {offsets, range_offsets, ranges, 9999},
                                  {out.data(), 1, 6, 64, size_t{6} * 64 * 4, size_t{64} * 4});
    }
    ASSERT_FALSE(attended);
    EXPECT_EQ(attended.code(), StatusCode::corrupt);
    EXPECT_THAT(attended.message(), AllOf(HasSubstr("store 0, layer 0, "), HasSubstr("block ")));
    EXPECT_THAT(attended.message(), HasSubstr("is not what was written there"));
    EXPECT_GT(session.stats().disk_checksum_mismatches, 0U);
    // What was not on disk is still right, and new rows are.
    ASSERT_TRUE(session.clear(driver.store()));
    driver.truncate(0);
    const std::vector<std::vector<float>> outs = driver.step(600);
    EXPECT_EQ(outs.size(), 2U);
}

}  // namespace
}  // namespace shoal
