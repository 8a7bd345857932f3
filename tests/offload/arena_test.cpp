#include "offload/arena.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "offload/executor.hpp"
#include "tests/offload/support.hpp"

namespace shoal::offload {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

struct Layout {
    std::vector<Region> regions;
};

// What a session does, with awkward sizes.
Status lay_out(Arena& arena, Layout& out) {
    const std::pair<MemoryTag, uint64_t> wanted[] = {
        {MemoryTag::kv, 5 * kMiB + 1}, {MemoryTag::labels, 1},        {MemoryTag::index, 4095},
        {MemoryTag::index, 4096},      {MemoryTag::workspace, 4097},  {MemoryTag::kv, 0},
        {MemoryTag::kv, 2 * kMiB},     {MemoryTag::labels, 2 * kMiB - 1},
    };
    for (const auto& [tag, bytes] : wanted) {
        Result<Region> region = arena.region(tag, bytes);
        if (!region) return region.status();
        out.regions.push_back(std::move(*region));
    }
    return Status::ok();
}

TEST(Arena, CountingEqualsReal) {
    Arena counter = Arena::counting();
    {
        Layout plan;
        ASSERT_TRUE(lay_out(counter, plan));
        EXPECT_EQ(plan.regions.front().data(), nullptr);
        EXPECT_EQ(plan.regions.front().bytes(), 5 * kMiB + 4096);
    }
    const uint64_t total = counter.reserved_bytes();
    EXPECT_EQ(total, 5 * kMiB + 4096 + 4096 + 2 * 4096 + 2 * 4096 + 4 * kMiB);

    Budget budget("host.kv_bytes", total);
    Arena arena = Arena::real(budget, HugePages::advise);
    {
        Layout layout;
        ASSERT_TRUE(lay_out(arena, layout));
        for (size_t i = 0; i < kMemoryTagCount; ++i) {
            const auto tag = static_cast<MemoryTag>(i);
            EXPECT_EQ(arena.reserved_bytes(tag), counter.reserved_bytes(tag)) << i;
            EXPECT_EQ(budget.used_bytes(tag), counter.reserved_bytes(tag)) << i;
        }
        EXPECT_EQ(arena.committed_bytes(), 0U);
        EXPECT_EQ(budget.left_bytes(), 0U);
        for (Region& region : layout.regions) ASSERT_TRUE(region.touch_all());
        EXPECT_EQ(arena.committed_bytes(), total);
    }
    EXPECT_EQ(budget.used_bytes(), 0U);
    EXPECT_EQ(arena.reserved_bytes(), 0U);
    EXPECT_EQ(arena.committed_bytes(), 0U);
}

TEST(Arena, OneByteTooFewTakesNothing) {
    Arena counter = Arena::counting();
    Layout plan;
    ASSERT_TRUE(lay_out(counter, plan));
    Budget budget("host.kv_bytes", counter.reserved_bytes() - 1);
    Arena arena = Arena::real(budget, HugePages::off);
    {
        Layout layout;
        const Status status = lay_out(arena, layout);
        EXPECT_EQ(status.code(), StatusCode::out_of_memory);
        EXPECT_NE(status.message().find("host.kv_bytes"), std::string::npos) << status.message();
    }
    EXPECT_EQ(budget.used_bytes(), 0U);
}

TEST(Arena, SystemRefusalIsAStatus) {
    Budget budget("host.kv_bytes", UINT64_MAX);
    Arena arena = Arena::real(budget, HugePages::advise);
    const Result<Region> region = arena.region(MemoryTag::kv, uint64_t{1} << 60);
    ASSERT_FALSE(region);
    EXPECT_EQ(region.status().code(), StatusCode::out_of_memory);
    EXPECT_EQ(budget.used_bytes(), 0U);
}

class RegionTest : public ::testing::TestWithParam<HugePages> {
protected:
    Region make(uint64_t bytes) {
        Result<Region> region = arena_.region(MemoryTag::kv, bytes);
        EXPECT_TRUE(region);
        return std::move(*region);
    }
    Budget budget_{"host.kv_bytes", uint64_t{1} << 40};
    Arena arena_ = Arena::real(budget_, GetParam());
};

INSTANTIATE_TEST_SUITE_P(Pages, RegionTest, ::testing::Values(HugePages::off, HugePages::advise),
                         [](const auto& p) {
                             return p.param == HugePages::off ? "small" : "huge";
                         });

TEST_P(RegionTest, AlignmentFollowsSize) {
    const bool huge = GetParam() == HugePages::advise;
    for (const uint64_t bytes : {uint64_t{1}, 4096 * uint64_t{3}, 2 * kMiB, 7 * kMiB + 5}) {
        const Region region = make(bytes);
        const uint64_t alignment = huge && bytes >= 2 * kMiB ? 2 * kMiB : 4096;
        EXPECT_EQ(reinterpret_cast<uintptr_t>(region.data()) % alignment, 0U) << bytes;
    }
}

TEST_P(RegionTest, ReservingTakesNoMemory) {
    const Region region = make(uint64_t{8} << 30);
    EXPECT_EQ(region.committed_bytes(), 0U);
    EXPECT_EQ(resident_bytes(region.data(), 64 * kMiB), 0U);
}

TEST_P(RegionTest, CommittedIsWhatIsResident) {
    Region region = make(9 * kMiB + 12288);
    uint64_t before = 0;
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{4096}, uint64_t{4097}, kMiB, 2 * kMiB - 1,
                                 2 * kMiB, 2 * kMiB + 1, 6 * kMiB + 5, region.bytes()}) {
        ASSERT_TRUE(region.touch_until(bytes));
        EXPECT_GE(region.committed_bytes(), bytes);
        EXPECT_LE(region.committed_bytes(), std::max(before, bytes + 4095 + 65536));
        EXPECT_EQ(resident_bytes(region.data(), region.bytes()), region.committed_bytes()) << bytes;
        EXPECT_EQ(arena_.committed_bytes(MemoryTag::kv), region.committed_bytes());
        before = region.committed_bytes();
    }
    EXPECT_EQ(region.committed_bytes(), region.bytes());
}

// 30 layers x 768 B a token, room for 131,072 tokens, grown a few tokens at a time.
TEST_P(RegionTest, SmallContextStaysWithinThreePercent) {
    constexpr uint64_t kLayers = 30;
    constexpr uint64_t kPiece = 768;
    std::vector<Region> layers;
    for (uint64_t i = 0; i < kLayers; ++i) layers.push_back(make(kPiece * 131072));
    uint64_t tokens = 0;
    for (const uint64_t stop : {8000U, 8200U}) {
        for (; tokens < stop; tokens = std::min(stop, tokens + 100)) {
            for (Region& layer : layers) ASSERT_TRUE(layer.touch_until(tokens * kPiece));
        }
        uint64_t resident = 0;
        for (Region& layer : layers) {
            ASSERT_TRUE(layer.touch_until(tokens * kPiece));
            resident += resident_bytes(layer.data(), layer.bytes());
        }
        const double used = static_cast<double>(kLayers * kPiece * tokens);
        EXPECT_LE(static_cast<double>(resident), 1.03 * used) << tokens;
        EXPECT_EQ(resident, arena_.committed_bytes());
    }
}

TEST_P(RegionTest, MemoryIsZeroStaysPutAndSurvivesGrowth) {
    Region region = make(5 * kMiB);
    std::byte* const data = region.data();
    ASSERT_TRUE(region.touch_until(1000));
    data[0] = std::byte{7};
    data[999] = std::byte{9};
    ASSERT_TRUE(region.touch_until(kMiB + 1));  // fills up in small pages first
    for (uint64_t i = 4096; i < kMiB; i += 997) ASSERT_EQ(data[i], std::byte{0}) << i;
    data[kMiB] = std::byte{11};
    ASSERT_TRUE(region.touch_all());
    EXPECT_EQ(region.data(), data);
    EXPECT_EQ(data[0], std::byte{7});
    EXPECT_EQ(data[999], std::byte{9});
    EXPECT_EQ(data[kMiB], std::byte{11});
    EXPECT_EQ(data[5 * kMiB - 1], std::byte{0});
}

TEST_P(RegionTest, ReleaseGivesPagesBackAndTheyComeAgainAsZero) {
    Region region = make(64 * kMiB);
    ASSERT_TRUE(region.touch_all());
    for (uint64_t at = 0; at < region.bytes(); at += 4096) region.data()[at] = std::byte{1};
    region.release_from(64 * kMiB - 4096);  // less than a step: nothing happens
    EXPECT_EQ(region.committed_bytes(), 64 * kMiB);

    region.release_from(3 * kMiB + 1);
    EXPECT_GE(region.committed_bytes(), 3 * kMiB + 1);
    EXPECT_LE(region.committed_bytes(), 6 * kMiB);
    EXPECT_EQ(resident_bytes(region.data(), region.bytes()), region.committed_bytes());
    EXPECT_EQ(arena_.committed_bytes(), region.committed_bytes());
    EXPECT_EQ(region.data()[3 * kMiB], std::byte{1});

    const uint64_t kept = region.committed_bytes();
    ASSERT_TRUE(region.touch_until(20 * kMiB));
    for (uint64_t at = kept; at < 20 * kMiB; at += 4096) ASSERT_EQ(region.data()[at], std::byte{0});
    EXPECT_EQ(resident_bytes(region.data(), region.bytes()), region.committed_bytes());

    region.release_from(0);
    EXPECT_EQ(region.committed_bytes(), 0U);
    EXPECT_EQ(resident_bytes(region.data(), region.bytes()), 0U);
    EXPECT_EQ(budget_.used_bytes(), 64 * kMiB);  // the address range stays reserved
}

TEST_P(RegionTest, ExecutorTouchesTheSameBytes) {
    const auto own = OwnExecutor::create({.threads = 2});
    ASSERT_TRUE(own);
    const Executor executor = (*own)->executor();
    Region region = make(41 * kMiB + 4096);
    ASSERT_TRUE(region.touch_until(3 * kMiB + 1, &executor));
    ASSERT_TRUE(region.touch_all(&executor));
    EXPECT_EQ(resident_bytes(region.data(), region.bytes()), region.bytes());
    EXPECT_EQ(region.committed_bytes(), region.bytes());
}

TEST_P(RegionTest, MovesAndNeverCopies) {
    static_assert(!std::is_copy_constructible_v<Region>);
    static_assert(std::is_nothrow_move_constructible_v<Region>);
    Region a = make(4096);
    Region b = make(8192);
    ASSERT_TRUE(a.touch_all());
    std::byte* const data = a.data();
    Region moved(std::move(a));
    EXPECT_EQ(moved.data(), data);
    EXPECT_EQ(a.data(), nullptr);  // NOLINT: a moved-from region is empty
    EXPECT_EQ(a.bytes(), 0U);
    EXPECT_EQ(budget_.used_bytes(), 12288U);
    moved = std::move(b);
    EXPECT_EQ(budget_.used_bytes(), 8192U);
    EXPECT_EQ(arena_.committed_bytes(), 0U);
    moved = Region();
    EXPECT_EQ(budget_.used_bytes(), 0U);
}

}  // namespace
}  // namespace shoal::offload
