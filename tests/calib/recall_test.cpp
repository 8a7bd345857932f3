#include "calib/recall.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace shoal::calib {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

std::vector<double> recall_of(const std::vector<float>& scores, uint32_t heads,
                              const std::vector<uint32_t>& attended, uint32_t slots) {
    std::vector<double> recall(heads, -1.0);
    mass_recall({.scores = scores.data(),
                 .score_stride = heads == 0 ? 0 : scores.size() / heads,
                 .q_head_count = heads,
                 .slot_count = slots,
                 .attended = attended},
                recall);
    return recall;
}

TEST(MassRecall, KnownShares) {
    const float ln3 = std::log(3.0F);
    // Head 0: masses 1, 3, 1, 3. Head 1: the same, far from zero, one slot hidden.
    const std::vector<float> scores = {0, ln3, 0, ln3, 500, 500 + ln3, kHidden, 500 + ln3};
    const std::vector<double> recall = recall_of(scores, 2, {1, 2}, 4);
    EXPECT_NEAR(recall[0], 0.5, 1e-7);
    EXPECT_NEAR(recall[1], 3.0 / 7.0, 1e-5);
}

TEST(MassRecall, NothingMissedIsExactlyOne) {
    const std::vector<float> scores = {0.3F, -7.0F, 2.0F, kHidden};
    EXPECT_EQ(recall_of(scores, 1, {2, 0, 1}, 4)[0], 1.0) << "hidden slots are no loss";
    EXPECT_EQ(recall_of({kHidden, kHidden}, 1, {}, 2)[0], 1.0) << "nothing visible";
    EXPECT_EQ(recall_of({1.0F}, 1, {}, 0)[0], 1.0) << "no slot at all";
}

TEST(MassRecall, NothingFoundIsZero) {
    EXPECT_EQ(recall_of({1.0F, 2.0F, kHidden}, 1, {}, 3)[0], 0.0);
    EXPECT_EQ(recall_of({1.0F, 2.0F, kHidden}, 1, {2}, 3)[0], 0.0) << "a hidden slot has no mass";
}

TEST(MassRecall, StrideSkipsWhatIsNotASlot) {
    const std::vector<float> scores = {0, 0, 99, 99, 0, 0, 99, 99};
    const std::vector<double> recall = recall_of(scores, 2, {0}, 2);
    EXPECT_EQ(recall[0], 0.5);
    EXPECT_EQ(recall[1], 0.5);
}

}  // namespace
}  // namespace shoal::calib
