// A property test: any order of takes and give-backs, against a plain model of who holds what.
#include "offload/block_pool.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "tests/offload/support.hpp"

namespace shoal::offload {
namespace {

struct Held {
    std::byte* run;
    uint64_t bytes;
    std::byte mark;
};

bool is_all(const Held& held, std::byte value) {
    return held.run[0] == value && std::memcmp(held.run, held.run + 1, held.bytes - 1) == 0;
}

class BlockPoolTest : public ::testing::TestWithParam<HugePages> {};
INSTANTIATE_TEST_SUITE_P(Pages, BlockPoolTest,
                         ::testing::Values(HugePages::off, HugePages::advise));

TEST_P(BlockPoolTest, RunsAreZeroApartAndKept) {
    constexpr uint64_t kSizes[] = {61440, 65536, 4096, 262144};
    Budget budget("host.kv_bytes", uint64_t{1} << 30);
    Arena arena = Arena::real(budget, GetParam());
    BlockPool& pool = arena.block_pool();
    for (uint32_t seed = 1; seed <= 4; ++seed) {
        std::mt19937 random(seed);
        std::vector<Held> held;
        uint64_t held_bytes = 0;
        for (int step = 0; step < 500; ++step) {
            const bool filling = (step / 100) % 2 == 0;
            if (held.empty() || random() % 10 < (filling ? 7U : 3U)) {
                const uint64_t bytes = kSizes[random() % 4];
                const Result<std::byte*> run = pool.take(bytes);
                ASSERT_TRUE(run) << "seed " << seed;
                held.push_back({*run, bytes, static_cast<std::byte>(1 + step % 255)});
                ASSERT_TRUE(is_all(held.back(), std::byte{0})) << seed << ", step " << step;
                std::memset(*run, static_cast<int>(held.back().mark), bytes);
                held_bytes += bytes;
            } else {
                const size_t index = random() % held.size();
                ASSERT_TRUE(is_all(held[index], held[index].mark)) << "seed " << seed;
                pool.give_back(held[index].run);
                held_bytes -= held[index].bytes;
                std::swap(held[index], held.back());
                held.pop_back();
            }
            ASSERT_GE(arena.committed_bytes(), held_bytes);
        }
        for (const Held& last : held) {
            ASSERT_TRUE(is_all(last, last.mark)) << "seed " << seed;
            pool.give_back(last.run);
        }
        EXPECT_EQ(arena.committed_bytes(), 0U);
    }
}

TEST_P(BlockPoolTest, GrowsByWholeHugePages) {
    Budget budget("host.kv_bytes", (uint64_t{1} << 30) - 4096);
    Arena arena = Arena::real(budget, GetParam());
    BlockPool& pool = arena.block_pool();
    Result<Reservation> claim = pool.claim(uint64_t{100} << 20, 61440);
    ASSERT_TRUE(claim);
    const Result<std::byte*> run = pool.take(61440);
    ASSERT_TRUE(run);
    EXPECT_EQ(arena.committed_bytes(), kHugePageBytes);
    EXPECT_EQ(resident_bytes(*run, kHugePageBytes), kHugePageBytes);
    ASSERT_TRUE(pool.prepare(uint64_t{10} << 20, nullptr));
    EXPECT_EQ(arena.committed_bytes(), 6 * kHugePageBytes);
    pool.give_back(*run);
    EXPECT_EQ(arena.committed_bytes(), 0U);
    pool.drop_claim(*claim);
}

TEST_P(BlockPoolTest, ClaimsAreTheBudgetsAndTheCountersTheSame) {
    Arena counter = Arena::counting();
    EXPECT_TRUE(counter.block_pool().claim(12345 * 4096, 65536));
    Budget budget("host.kv_bytes", 12345 * 4096);
    Arena arena = Arena::real(budget, GetParam());
    Result<Reservation> claim = arena.block_pool().claim(12345 * 4096, 65536);
    ASSERT_TRUE(claim);
    EXPECT_EQ(arena.reserved_bytes(MemoryTag::kv), counter.reserved_bytes(MemoryTag::kv));
    EXPECT_FALSE(arena.block_pool().claim(1, 1));
    arena.block_pool().drop_claim(*claim);
    EXPECT_EQ(arena.reserved_bytes(), 0U);
    EXPECT_EQ(budget.used_bytes(), 0U);
}

}  // namespace
}  // namespace shoal::offload
