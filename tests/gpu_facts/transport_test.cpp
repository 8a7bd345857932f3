// The emulator itself, streams, gather and write-back of bench/gpu.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bench/gpu/gather.cuh"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/plan.hpp"
#include "bench/gpu/write_back.cuh"
#include "tests/gpu_facts/support.hpp"

namespace shoal::gpu {
namespace {

using test::kSeeds;
using test::launch;

TEST(Emulator, NoticesWhatAGpuWouldNot) {
    const auto skips = [] {
        if (threadIdx.x == 5) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    };
    EXPECT_THROW(launch(1, 1, 64, 0, skips), std::runtime_error) << "one thread waits elsewhere";
    struct Word {
        uint32_t value;
    };
    uint32_t seen = 0;
    launch(1, 1, 32, 0, [&] {
        SHOAL_SHARED(Word, word);
        if (threadIdx.x == 0) seen = word.value;
    });
    EXPECT_EQ(seen, 0xcdcdcdcdU) << "shared memory starts as garbage";
    // A value that another warp writes, read without a barrier.
    std::vector<uint32_t> results;
    for (uint32_t seed = 0; seed < 2; ++seed) {
        launch(1, 1, 64, seed, [&] {
            SHOAL_SHARED(Word, word);
            if (threadIdx.x == 0) word.value = 1;
            if (threadIdx.x == 40) results.push_back(word.value);
        });
    }
    EXPECT_NE(results[0], results[1]);
}

TEST(Emulator, OrderOfThreadsDependsOnTheSeed) {
    std::vector<std::vector<uint32_t>> orders(3);
    for (uint32_t seed = 0; seed < 3; ++seed) {
        launch(1, 1, 64, seed, [&] { orders[seed].push_back(threadIdx.x); });
    }
    EXPECT_TRUE(std::is_sorted(orders[0].begin(), orders[0].end()));
    EXPECT_TRUE(std::is_sorted(orders[1].rbegin(), orders[1].rend()));
    EXPECT_NE(orders[2], orders[0]);
}

TEST(BlockSum, MatchesALoop) {
    for (const uint32_t threads : {32U, 96U, 512U, 1024U}) {
        for (uint32_t seed = 0; seed < kSeeds; ++seed) {
            std::vector<uint32_t> before(threads), totals(threads);
            launch(1, 1, threads, seed, [&] {
                SHOAL_SHARED(ScanScratch, scratch);
                for (uint32_t call = 0; call < 2; ++call) {  // the scratch is used again
                    before[threadIdx.x] = block_exclusive_sum(
                        mix(threadIdx.x + call) % 7, scratch, totals[threadIdx.x]);
                }
            });
            uint32_t sum = 0;
            for (uint32_t i = 0; i < threads; ++i) {
                ASSERT_EQ(before[i], sum);
                sum += mix(i + 1) % 7;
            }
            for (const uint32_t total : totals) ASSERT_EQ(total, sum);
        }
    }
}

TEST(Memory, ReadXorsEverything) {
    std::vector<uint4> data(1237);
    launch(3, 1, 64, 0, [&] { fill_rows<64>(data.data(), data.size(), 5); });
    uint32_t expected = 0;
    for (size_t i = 0; i < data.size(); ++i) {
        EXPECT_EQ(data[i].z, row_word(5, static_cast<uint32_t>(4 * i + 2)));
        expected ^= data[i].x ^ data[i].y ^ data[i].z ^ data[i].w;
    }
    for (const uint32_t grid : {1U, 2U, 40U}) {
        uint32_t sum = 0;
        launch(grid, 1, 64, 2, [&] { read_stream<64>(data.data(), data.size(), &sum); });
        EXPECT_EQ(sum, expected);
    }
}

TEST(Memory, RowWordsAreSmallExactNumbers) {
    for (uint32_t i = 0; i < 1000; ++i) {
        const uint32_t word = row_word(1, i);
        for (const uint32_t bits : {word << 16, word & 0xffff0000U}) {
            const float value = __uint_as_float(bits);
            EXPECT_EQ(value * 128.0F, std::nearbyint(value * 128.0F));
            EXPECT_LE(std::abs(value), 1.0F);
        }
    }
}

struct GatherCase {
    uint32_t piece_log2;
    uint32_t count;
    uint32_t blocks;
    bool bulk;
    bool scattered;  // with to_index
};

class GatherTest : public ::testing::TestWithParam<GatherCase> {};

TEST_P(GatherTest, BytesArriveAndNothingElseIsTouched) {
    const GatherCase c = GetParam();
    constexpr uint32_t kUniverseLog2 = 6;
    const size_t piece = size_t{1} << c.piece_log2;
    std::vector<uint4> from((piece << kUniverseLog2) / 16);
    launch(4, 1, 64, 0, [&] { fill_rows<64>(from.data(), from.size(), 9); });
    const auto index = make_indices(c.count, kUniverseLog2, Order::random, 1);
    const auto to_index = make_indices(c.count, kUniverseLog2, Order::random, 2);
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
        const uint4 untouched = make_uint4(1, 2, 3, 4);
        std::vector<uint4> to(from.size(), untouched);
        GatherArgs args;
        args.from = reinterpret_cast<const std::byte*>(from.data());
        args.to = reinterpret_cast<std::byte*>(to.data());
        args.from_index = index.data();
        args.to_index = c.scattered ? to_index.data() : nullptr;
        args.count = &c.count;
        args.piece_log2 = c.piece_log2;
        if (c.bulk) {
            launch(c.blocks, 1, 32, seed, [&] { gather_bulk<kBulkStages>(args); });
        } else {
            launch(c.blocks, 1, 64, seed, [&] { gather_plain<64>(args); });
        }
        std::vector<uint4> expected(from.size(), untouched);
        for (uint32_t i = 0; i < c.count; ++i) {
            const size_t at = (c.scattered ? to_index[i] : i) * piece / 16;
            std::copy_n(&from[index[i] * piece / 16], piece / 16, &expected[at]);
        }
        ASSERT_EQ(std::memcmp(to.data(), expected.data(), to.size() * 16), 0) << "seed " << seed;
    }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, GatherTest,
    ::testing::Values(GatherCase{7, 64, 3, false, false}, GatherCase{7, 61, 3, true, true},
                      GatherCase{9, 33, 2, false, true}, GatherCase{9, 33, 2, true, false},
                      GatherCase{12, 64, 1, false, true}, GatherCase{12, 64, 1, true, true},
                      GatherCase{12, 63, 5, true, false}, GatherCase{13, 31, 4, true, true},
                      GatherCase{16, 7, 2, false, false}, GatherCase{16, 11, 3, true, true},
                      GatherCase{12, 0, 2, false, false}, GatherCase{12, 0, 2, true, false},
                      GatherCase{16, 1, 8, true, false}));

TEST(WriteBack, RowsThenTheirNumber) {
    constexpr uint32_t kUnits = 300, kRing = 3;
    std::vector<uint4> rows(kUnits), ring(kRing * kUnits);
    uint32_t written = 0, arrived = 0, sequence = 0;
    for (uint32_t step = 0; step < 5; ++step) {
        launch(2, 1, 64, 0, [&] { fill_rows<64>(rows.data(), rows.size(), step); });
        WriteBackArgs args{rows.data(), ring.data(), kUnits, kRing, &written, &arrived, &sequence};
        launch(2, 1, 64, step, [&] { write_back<64>(args); });
        EXPECT_EQ(sequence, step + 1);
        const uint4* slot = &ring[ring_unit(step + 1, kUnits, kRing)];
        EXPECT_EQ(wrong_units(slot, rows.data(), kUnits, step + 1), 0U);
        EXPECT_EQ(wrong_units(slot, rows.data(), kUnits, step + 2), kUnits) << "not there yet";
    }
}

TEST(WriteBack, ARowThatIsNotThereYetIsFoundInAnyUnit) {
    constexpr uint32_t kUnits = 64;
    std::vector<uint4> rows(kUnits), slot(kUnits);
    launch(1, 1, 64, 0, [&] { fill_rows<64>(rows.data(), rows.size(), 6); });
    launch(1, 1, 64, 0, [&] { write_rows<64>(rows.data(), slot.data(), kUnits, 9); });
    EXPECT_EQ(wrong_units(slot.data(), rows.data(), kUnits, 9), 0U);
    for (const uint32_t late : {0U, 31U, 63U}) {
        const uint4 there = slot[late];
        slot[late] = stamped(rows[late], 8);  // of the write before
        EXPECT_EQ(wrong_units(slot.data(), rows.data(), kUnits, 9), 1U);
        slot[late] = there;
    }
}

TEST(WriteBack, PingPongAnswersOrGivesUp) {
    constexpr uint32_t kUnits = 100;
    std::vector<uint4> rows(kUnits), ring(kUnits);
    launch(1, 1, 64, 0, [&] { fill_rows<64>(rows.data(), rows.size(), 6); });
    uint32_t go = 4, sequence = 0, failed = 0;
    PingPongArgs args{rows.data(), ring.data(), kUnits, 4, &go, &sequence, &failed, 1000000};
    launch(1, 1, 64, 2, [&] { ping_pong<64>(args); });
    EXPECT_EQ(sequence, 4U);
    EXPECT_EQ(failed, 0U);
    EXPECT_EQ(wrong_units(ring.data(), rows.data(), kUnits, 4), 0U);
    args.rounds = 6;
    launch(1, 1, 64, 2, [&] { ping_pong<64>(args); });
    EXPECT_EQ(sequence, 4U);
    EXPECT_EQ(failed, 1U) << "the host asked for four rounds only";
}

}  // namespace
}  // namespace shoal::gpu
