// Slot lookup and attention of bench/gpu against their definitions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "bench/gpu/attend.cuh"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/reference.hpp"
#include "bench/gpu/resolve.cuh"
#include "tests/gpu_facts/support.hpp"

namespace shoal::gpu {
namespace {

using test::kSeeds;
using test::launch;

struct ResolveData {
    ResolveData(uint32_t batch, uint32_t token_log2, uint32_t hot, uint32_t ids)
        : table(batch << token_log2, -1), owner(batch * hot, -1), stamp(batch * hot, 0),
          hand(batch, 0), slots(batch * ids, -7), from(batch * ids, 7), to(batch * ids, 7),
          count(batch, 7) {
        args.id_count = ids;
        args.token_count_log2 = token_log2;
        args.hot_slot_count = hot;
        args.step = &step;
        args.table = table.data();
        args.owner = owner.data();
        args.stamp = stamp.data();
        args.hand = hand.data();
        args.slots = slots.data();
        args.miss_from = from.data();
        args.miss_to = to.data();
        args.miss_count = count.data();
    }
    uint32_t step = 0;
    std::vector<int32_t> table, owner;
    std::vector<uint32_t> stamp, hand;
    std::vector<int32_t> slots;
    std::vector<uint32_t> from, to, count;
    ResolveArgs args;
};

TEST(Resolve, FollowsTheModelStepByStep) {
    constexpr uint32_t kBatch = 2, kTokenLog2 = 9, kIds = 100, kHot = 130;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
        ResolveData data(kBatch, kTokenLog2, kHot, kIds);
        std::vector<ResolveModel> models(kBatch,
                                         ResolveModel(1 << kTokenLog2, kHot, kResolveGrace));
        std::vector<int32_t> ids(kBatch * kIds);
        data.args.ids = ids.data();
        for (uint32_t step = 0; step < 12; ++step) {
            for (uint32_t r = 0; r < kBatch; ++r) {
                // Half of the ids move on; some entries are empty; once all of them change.
                const auto fresh = make_indices(kIds, kTokenLog2, Order::random, step / 3 + r);
                const auto kept = make_indices(kIds, kTokenLog2, Order::random, 40);
                std::vector<bool> used(1 << kTokenLog2);
                for (uint32_t i = 0; i < kIds; ++i) {
                    const uint32_t id = step % 3 != 0 && i % 2 == 0 ? kept[i] : fresh[i];
                    ids[r * kIds + i] = used[id] || i % 17 == 3 ? -1 : static_cast<int32_t>(id);
                    used[id] = true;
                }
            }
            launch(kBatch, 1, 64, seed, [&] { resolve<64>(data.args); });
            for (uint32_t r = 0; r < kBatch; ++r) {
                std::vector<int32_t> slots;
                const std::vector<int32_t> own(&ids[r * kIds], &ids[r * kIds] + kIds);
                const ResolveModel::Misses misses = models[r].step(own, slots);
                const int32_t* got = &data.slots[r * kIds];
                ASSERT_EQ(std::vector<int32_t>(got, got + kIds), slots) << "step " << step;
                ASSERT_EQ(data.count[r], misses.from.size());
                for (uint32_t j = 0; j < data.count[r]; ++j) {
                    ASSERT_EQ(data.from[r * kIds + j], misses.from[j]);
                    ASSERT_EQ(data.to[r * kIds + j], misses.to[j]);
                }
                const int32_t* owner = &data.owner[r * kHot];
                ASSERT_EQ(std::vector<int32_t>(owner, owner + kHot), models[r].owner());
            }
            launch(1, 1, 32, seed, [&] { advance_step<32>(&data.step); });
        }
        EXPECT_EQ(data.step, 12U);
    }
}

TEST(Resolve, ModelKeepsItsPromises) {
    ResolveModel model(256, 40, 1);
    std::vector<int32_t> slots;
    for (uint32_t step = 0; step < 30; ++step) {
        std::vector<int32_t> ids;
        for (const uint32_t id : make_indices(40, 8, Order::random, step / 4)) {
            ids.push_back(static_cast<int32_t>(id));
        }
        model.step(ids, slots);
        std::vector<bool> taken(40);
        for (size_t i = 0; i < ids.size(); ++i) {
            ASSERT_FALSE(taken[slots[i]]) << "one slot for two tokens";
            taken[slots[i]] = true;
            ASSERT_EQ(model.owner()[slots[i]], ids[i]);
        }
        if (step % 4 != 0) {
            EXPECT_TRUE(model.step(ids, slots).from.empty()) << "what was just used stays";
        }
    }
}

TEST(Resolve, SyntheticIdsMissAsOftenAsTheySay) {
    constexpr uint32_t kTokenLog2 = 11, kIds = 128, kHot = 256;
    for (const uint32_t hits : {0U, 103U, 128U}) {
        ResolveData data(1, kTokenLog2, kHot, kIds);
        data.args.synthetic_hits = hits;
        for (uint32_t step = 0; step < 40; ++step) {
            launch(1, 1, 64, 0, [&] { resolve<64>(data.args); });
            std::vector<bool> seen(1 << kTokenLog2);
            for (uint32_t i = 0; i < kIds; ++i) {
                const uint32_t id = synthetic_id(i, hits, kIds, step, kTokenLog2);
                ASSERT_LT(id, 1U << kTokenLog2);
                ASSERT_FALSE(seen[id]);
                seen[id] = true;
            }
            EXPECT_EQ(data.count[0], step == 0 ? kIds : kIds - hits) << "step " << step;
            ++data.step;
        }
    }
}

struct AttendCase {
    uint32_t rows;
    uint32_t rows_per_split;
    uint32_t batch;
    uint32_t hidden_every;  // 0: none is -1
};

class AttendTest : public ::testing::TestWithParam<AttendCase> {};

TEST_P(AttendTest, MatchesTheReference) {
    const AttendCase c = GetParam();
    constexpr uint32_t kHotLog2 = 8;
    constexpr uint32_t kHot = 1U << kHotLog2;
    std::vector<uint4> rows(size_t{c.batch} * kHot * kPieceBytes / 16);
    launch(4, 1, 64, 0, [&] { fill_rows<64>(rows.data(), rows.size(), 21); });
    // Slot 0 holds poison, and no row: what is not attended must not matter.
    for (uint32_t r = 0; r < c.batch; ++r) {
        std::memset(&rows[size_t{r} * kHot * kPieceBytes / 16], 0xff, kPieceBytes);
    }
    const std::vector<float> q = make_queries(c.batch, 4);
    std::vector<int32_t> slots(size_t{c.batch} * c.rows);
    std::vector<float> expected(size_t{c.batch} * kQueryHeads * kHeadDim);
    std::vector<float> expected_lse(size_t{c.batch} * kQueryHeads);
    const float scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
    for (uint32_t r = 0; r < c.batch; ++r) {
        const auto order = make_indices(c.rows, kHotLog2, Order::random, r);
        std::vector<std::byte*> pieces;
        auto* base = reinterpret_cast<std::byte*>(rows.data()) + size_t{r} * kHot * kPieceBytes;
        for (uint32_t i = 0; i < c.rows; ++i) {
            const bool hidden =
                order[i] == 0 || (c.hidden_every != 0 && i % c.hidden_every == 0);
            slots[r * c.rows + i] = hidden ? -1 : static_cast<int32_t>(order[i]);
            if (!hidden) pieces.push_back(base + size_t{order[i]} * kPieceBytes);
        }
        attend_reference(pieces, &q[size_t{r} * kQueryHeads * kHeadDim], scale,
                         &expected[size_t{r} * kQueryHeads * kHeadDim],
                         &expected_lse[r * kQueryHeads]);
    }
    const uint32_t splits = attend_split_count(c.rows, c.rows_per_split);
    const size_t states = size_t{c.batch} * kKvHeads * splits * kQueryPerKv;
    std::vector<float> state(states * 2), partial(states * kHeadDim), first;
    std::vector<float> out(expected.size(), std::nanf("")), lse(expected_lse.size());
    std::vector<uint32_t> arrived(c.batch * kKvHeads, 0);
    AttendArgs args;
    args.rows = reinterpret_cast<const std::byte*>(rows.data());
    args.hot_slot_count = kHot;
    args.slots = slots.data();
    args.row_count = c.rows;
    args.rows_per_split = c.rows_per_split;
    args.q = q.data();
    args.scale_log2 = scale * 1.44269504F;
    args.state = state.data();
    args.partial = partial.data();
    args.arrived = arrived.data();
    args.out = out.data();
    args.lse = lse.data();
    for (uint32_t seed = 0; seed < 3; ++seed) {
        launch(splits, c.batch * kKvHeads, kAttendThreads, seed,
               [&] { attend<kAttendThreads>(args); });
        EXPECT_LT(relative_error(out.data(), expected.data(), out.size()), 1e-5);
        for (size_t h = 0; h < lse.size(); ++h) {
            if (std::isinf(expected_lse[h])) {
                EXPECT_EQ(lse[h], expected_lse[h]);
            } else {
                EXPECT_NEAR(lse[h], expected_lse[h], 1e-4);
            }
        }
        if (seed == 0) first = out;
        EXPECT_EQ(first, out) << "the order of blocks must not matter";
        EXPECT_EQ(arrived, std::vector<uint32_t>(arrived.size(), 0U));
    }
}

INSTANTIATE_TEST_SUITE_P(Sizes, AttendTest,
                         ::testing::Values(AttendCase{1, 32, 1, 0}, AttendCase{33, 32, 1, 0},
                                           AttendCase{100, 64, 2, 7}, AttendCase{200, 32, 1, 0},
                                           AttendCase{40, 32, 1, 1}, AttendCase{64, 64, 1, 2}));

TEST(Attend, SplitsFillTheProcessorsAndStayWithinTheirLimit) {
    for (const uint32_t rows : {1U, 1024U, 2048U, 4096U}) {
        for (const uint32_t batch : {1U, 8U}) {
            for (const uint32_t processors : {1U, 108U, 132U, 170U, 1000U}) {
                const uint32_t per_split = attend_rows_per_split(rows, batch, processors);
                const uint32_t splits = attend_split_count(rows, per_split);
                EXPECT_EQ(per_split % kAttendRound, 0U);
                EXPECT_GE(per_split * splits, rows);
                EXPECT_LT(per_split * (splits - 1), rows);
                EXPECT_LE(splits, kAttendSplitsMax);
            }
        }
    }
    EXPECT_EQ(attend_split_count(2048, attend_rows_per_split(2048, 1, 132)), 32U);
}

}  // namespace
}  // namespace shoal::gpu
