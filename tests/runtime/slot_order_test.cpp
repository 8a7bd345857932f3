// First and last by stamp against a plain sort, over random writes, holes and removals.
#include "runtime/slot_order.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/query_view.hpp"

namespace shoal {
namespace {

struct Model {
    std::vector<uint64_t> stamps;
    uint64_t next = 1;
};

std::vector<uint32_t> expected(const Model& model, const std::vector<bool>& visible,
                               uint32_t count, bool lowest) {
    std::vector<uint32_t> slots;
    for (uint32_t s = 0; s < visible.size(); ++s) {
        if (visible[s]) slots.push_back(s);
    }
    std::sort(slots.begin(), slots.end(), [&](uint32_t a, uint32_t b) {
        return lowest ? model.stamps[a] < model.stamps[b] : model.stamps[a] > model.stamps[b];
    });
    slots.resize(std::min<size_t>(slots.size(), count));
    std::sort(slots.begin(), slots.end());
    return slots;
}

std::vector<kernels::SpanMask> masks_of(const std::vector<bool>& visible) {
    std::vector<kernels::SpanMask> masks((visible.size() + 127) / 128);
    for (uint32_t s = 0; s < visible.size(); ++s) {
        if (visible[s]) mark_visible(masks, {s, s + 1});
    }
    return masks;
}

TEST(SlotOrder, AgreesWithASortAfterAnyHistory) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
        std::mt19937_64 random(seed);
        const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
        const uint32_t slots = 1 + below(700);
        std::vector<std::byte> memory(SlotOrder::bytes(slots) + 8);
        SlotOrder order(memory.data(), slots);
        Model model{std::vector<uint64_t>(slots, 0)};
        uint32_t cursor = 0;
        for (int round = 0; round < 30; ++round) {
            if (below(8) == 0) {
                const uint32_t from = below(slots);
                order.forget_from(from);
                std::fill(model.stamps.begin() + from, model.stamps.end(), 0);
                cursor = std::min(cursor, from);
            }
            for (uint32_t writes = below(100); writes > 0; --writes) {
                const uint32_t slot = below(3) == 0 ? below(slots) : cursor++ % slots;
                order.write(slot);
                model.stamps[slot] = model.next++;
            }
            std::vector<bool> visible(order.slot_end());
            for (uint32_t s = 0; s < visible.size(); ++s) {
                visible[s] = order.is_written(s) && below(4) != 0;
            }
            const uint32_t count = below(80);
            std::vector<uint32_t> first;
            std::vector<uint32_t> last;
            order.first(count, masks_of(visible), first);
            order.last(count, masks_of(visible), last);
            ASSERT_EQ(first, expected(model, visible, count, true)) << "seed " << seed;
            ASSERT_EQ(last, expected(model, visible, count, false)) << "seed " << seed;
        }
    }
}

TEST(QueryView, SafetySetIsNeverSelectable) {
    std::vector<std::byte> memory(SlotOrder::bytes(1000));
    SlotOrder order(memory.data(), 1000);
    for (uint32_t s = 0; s < 900; ++s) order.write(s);
    order.write(100);  // the newest token lies in an old slot
    QueryView view;
    std::vector<uint64_t> view_memory(QueryView::bytes(1000) / 8);
    view.use(reinterpret_cast<std::byte*>(view_memory.data()), 1000);
    const SlotRange ranges[2] = {{0, 130}, {200, 900}};
    view.prepare(ranges, order, {4, 64});
    EXPECT_EQ(view.visible_count(), 830U);
    ASSERT_EQ(view.safety().size(), 68U);
    EXPECT_TRUE(std::binary_search(view.safety().begin(), view.safety().end(), 100U));
    uint32_t selectable = 0;
    for (const kernels::SpanMask& mask : view.masks()) {
        selectable += static_cast<uint32_t>(__builtin_popcountll(mask.selectable[0]) +
                                            __builtin_popcountll(mask.selectable[1]));
    }
    EXPECT_EQ(selectable, 830U - 68U);
    EXPECT_EQ(view.visible().count, 830U);
    EXPECT_EQ(view.visible().at(130), 200U);
}

// The clock of a copy goes on from the original's, which may be behind.
TEST(SlotOrder, ACopyKeepsNoBoundsOfWhatWasThereBefore) {
    std::vector<std::byte> memory[2] = {std::vector<std::byte>(SlotOrder::bytes(300)),
                                        std::vector<std::byte>(SlotOrder::bytes(300))};
    SlotOrder original(memory[0].data(), 300);
    SlotOrder copy(memory[1].data(), 300);
    original.write(0);
    for (int i = 0; i < 50; ++i) copy.write(0);
    copy.write(140);
    copy.forget_from(130);
    copy.copy_from(original);
    copy.write(140);
    copy.write(5);
    std::vector<bool> visible(141);
    visible[0] = visible[5] = visible[140] = true;
    std::vector<uint32_t> slots;
    copy.first(2, masks_of(visible), slots);
    EXPECT_EQ(slots, (std::vector<uint32_t>{0, 140}));
    slots.clear();
    copy.last(1, masks_of(visible), slots);
    EXPECT_EQ(slots, (std::vector<uint32_t>{5}));
}

TEST(QueryView, SmallViewsAreAllSafety) {
    std::vector<std::byte> memory(SlotOrder::bytes(10));
    SlotOrder order(memory.data(), 10);
    for (uint32_t s = 0; s < 3; ++s) order.write(s);
    QueryView view;
    std::vector<uint64_t> view_memory(QueryView::bytes(10) / 8);
    view.use(reinterpret_cast<std::byte*>(view_memory.data()), 10);
    const SlotRange ranges[1] = {{0, 3}};
    view.prepare(ranges, order, {4, 64});
    EXPECT_EQ(view.safety().size(), 3U);
    view.prepare(std::span<const SlotRange>(ranges, 1), order, {0, 0});
    EXPECT_TRUE(view.safety().empty());
}

TEST(MergeIntoFront, IsAMerge) {
    std::mt19937_64 random(3);
    for (int round = 0; round < 200; ++round) {
        std::vector<uint32_t> front;
        std::vector<uint32_t> back;
        for (uint32_t s = 0; s < 60; ++s) {
            const uint64_t r = random() % 4;
            if (r == 0) front.push_back(s);
            if (r == 1) back.push_back(s);
        }
        std::vector<uint32_t> all(front.size() + back.size());
        std::copy(back.begin(), back.end(), all.begin() + static_cast<ptrdiff_t>(front.size()));
        merge_into_front(front, std::span(all).subspan(front.size()), all.data());
        std::vector<uint32_t> want;
        std::merge(front.begin(), front.end(), back.begin(), back.end(), std::back_inserter(want));
        ASSERT_EQ(all, want);
    }
}

}  // namespace
}  // namespace shoal
