// host.check_rows: what it accepts, and that it sees a row that is not the slot's own.
#include "runtime/row_check.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "runtime/query_view.hpp"
#include "runtime/store.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal::testing {

namespace {

constexpr uint32_t kSlots = 300;
constexpr uint32_t kHeads = 2;
constexpr uint32_t kHeadDim = 64;

class RowChecks : public ::testing::Test {
protected:
    RowChecks() : groups_(small_model(1, kHeads, 1, kHeadDim, DType::f16), Config{}) {
        for (std::unique_ptr<Store>& store : stores_) {
            StoreOptions options;
            options.check_rows = true;
            Result<std::unique_ptr<Store>> made =
                Store::create(arena_, groups_, kSlots, options);
            EXPECT_TRUE(made) << made.status().message();
            store = std::move(*made);
        }
    }

    // Both parts of these slots, random.
    void write(uint32_t store_index, std::vector<int64_t> slots) {
        Store& store = *stores_[store_index];
        const auto n = static_cast<uint32_t>(slots.size());
        EXPECT_TRUE(store.ensure(kSlots, {}));
        EXPECT_TRUE(store.own(slots));
        for (const kernels::RowPart part : {kernels::RowPart::k, kernels::RowPart::v}) {
            const std::vector<float> rows = rows_.make(n, kHeads, kHeadDim);
            EXPECT_TRUE(store.write(0, groups_.all()[0], part, slots,
                                    tensor_of(rows, n, kHeads, kHeadDim), kernels::cpu_backend(),
                                    {}));
        }
        for (const int64_t slot : slots) store.order().write(static_cast<uint32_t>(slot));
    }
    void write(uint32_t store_index, uint32_t begin, uint32_t end) {
        std::vector<int64_t> slots(end - begin);
        std::iota(slots.begin(), slots.end(), int64_t{begin});
        write(store_index, slots);
    }

    uint32_t first_wrong(uint32_t store_index, uint32_t begin, uint32_t end) {
        std::vector<kernels::SpanMask> masks((kSlots + 127) / 128);
        mark_visible(masks, {begin, end});
        const GroupStore& group = stores_[store_index]->group(0);
        return group.check.first_wrong(group.rows.view(), masks,
                                       {0, static_cast<uint32_t>(masks.size())});
    }
    kernels::KvView rows(uint32_t store_index) {
        return stores_[store_index]->group(0).rows.view();
    }

    offload::Budget budget_{"host.kv_bytes", 1 << 30};
    offload::Arena arena_ = offload::Arena::real(budget_, offload::HugePages::off);
    Groups groups_;
    RandomRows rows_{7};
    std::unique_ptr<Store> stores_[2];
};

}  // namespace

TEST_F(RowChecks, RowsAsWrittenPass) {
    for (const uint32_t end : {1U, 3U, 127U, 128U, 129U, kSlots}) {
        write(0, 0, end);
        EXPECT_EQ(first_wrong(0, 0, end), UINT32_MAX) << end;
    }
    write(0, {5, 299, 128});  // again
    EXPECT_EQ(first_wrong(0, 0, kSlots), UINT32_MAX);
}

TEST_F(RowChecks, OneBitIsSeenInEitherPartOfAnyHead) {
    write(0, 0, kSlots);
    for (const uint32_t slot : {0U, 127U, 128U, 299U}) {
        for (uint32_t head = 0; head < kHeads; ++head) {
            for (std::byte* row : {rows(0).k_row(slot, head), rows(0).v_row(slot, head)}) {
                row[kHeadDim * 2 - 1] ^= std::byte{1};
                EXPECT_EQ(first_wrong(0, 0, kSlots), slot);
                EXPECT_EQ(first_wrong(0, slot + 1, kSlots), UINT32_MAX);
                row[kHeadDim * 2 - 1] ^= std::byte{1};
            }
        }
    }
}

TEST_F(RowChecks, AnotherSlotsRowIsSeen) {
    write(0, 0, kSlots);
    const size_t bytes = rows(0).format.row_stride_bytes * kHeads;
    std::memcpy(rows(0).piece(40), rows(0).piece(41), bytes);
    EXPECT_EQ(first_wrong(0, 0, kSlots), 40U);
    // K and V of one token, each in the other's place.
    write(0, {40});
    std::byte* k = rows(0).k_row(40, 0);
    std::byte* v = rows(0).v_row(40, 0);
    std::swap_ranges(k, k + kHeadDim * 2, v);
    EXPECT_EQ(first_wrong(0, 0, kSlots), 40U);
}

// What a writer does that forgot to make shared rows its own.
TEST_F(RowChecks, WritingThroughAForkIsSeen) {
    write(0, 0, kSlots);
    ASSERT_TRUE(stores_[1]->fork_from(*stores_[0], {}));
    EXPECT_EQ(first_wrong(1, 0, kSlots), UINT32_MAX);
    write(1, {7});
    EXPECT_EQ(first_wrong(0, 0, kSlots), UINT32_MAX);
    EXPECT_EQ(first_wrong(1, 0, kSlots), UINT32_MAX);

    ASSERT_TRUE(stores_[1]->fork_from(*stores_[0], {}));
    *rows(1).k_row(7, 1) ^= std::byte{1};
    EXPECT_EQ(first_wrong(0, 0, kSlots), 7U);
}

TEST_F(RowChecks, CopiesCarryTheirChecks) {
    write(0, 0, 200);
    write(1, 0, kSlots);
    for (const kernels::RowPart part : {kernels::RowPart::k, kernels::RowPart::v}) {
        ASSERT_TRUE(stores_[1]->copy_part(0, part, *stores_[0], {}));
    }
    EXPECT_EQ(first_wrong(1, 0, 200), UINT32_MAX);
    *rows(1).v_row(199, 0) ^= std::byte{1};
    EXPECT_EQ(first_wrong(1, 0, 200), 199U);
}

TEST_F(RowChecks, OffFindsNothing) {
    const RowCheck off;
    std::vector<kernels::SpanMask> masks(3);
    mark_visible(masks, {0, kSlots});
    EXPECT_FALSE(off.is_on());
    EXPECT_EQ(off.first_wrong(rows(0), masks, {0, 3}), UINT32_MAX);
}

}  // namespace shoal::testing
