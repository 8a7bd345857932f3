#include "calib/choose_channels.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/calib/support.hpp"

namespace shoal::calib {
namespace {

using test::heavy_tailed_weights;
using test::moments_of_weights;

uint32_t count_of(const ChannelChoice& choice, uint32_t bits) {
    return static_cast<uint32_t>(std::ranges::count_if(
        choice.channels, [&](const kernels::LabelChannel& c) { return c.bits == bits; }));
}

std::vector<uint32_t> channels_of(const ChannelChoice& choice, uint32_t bits) {
    std::vector<uint32_t> channels;
    for (const kernels::LabelChannel& c : choice.channels) {
        if (c.bits == bits) channels.push_back(c.channel);
    }
    return channels;
}

TEST(LabelBitBudget, OnePerDimensionInWholeDwords) {
    EXPECT_EQ(label_bit_budget(0, 64), 64U);
    EXPECT_EQ(label_bit_budget(0, 128), 128U);
    EXPECT_EQ(label_bit_budget(0, 32), 32U);
    EXPECT_EQ(label_bit_budget(0, 48), 64U);
    EXPECT_EQ(label_bit_budget(0, 80), 96U);
    EXPECT_EQ(label_bit_budget(1, 64), 32U);
    EXPECT_EQ(label_bit_budget(256, 64), 256U);
}

TEST(ChooseChannels, OneHugeChannelGetsFourBitsFirst) {
    std::vector<double> weights(64, 1.0);
    weights[37] = 100.0;
    const ChannelMoments moments = moments_of_weights(weights);
    const ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = 64});
    // 4-bit channels come by fours, so three more come along: the lowest of the ties.
    EXPECT_EQ(channels_of(choice, 4), (std::vector<uint32_t>{0, 1, 2, 37}));
    EXPECT_EQ(count_of(choice, 2), 24U);
    EXPECT_EQ(channels_of(choice, 2).front(), 3U);
    EXPECT_EQ(channels_of(choice, 2).back(), 26U);
    EXPECT_EQ(choice.bit_count, 64U);
}

TEST(ChooseChannels, BothQueryAndKeyMomentsCount) {
    ChannelMoments moments = moments_of_weights(std::vector<double>(64, 0.1));
    moments.key_variance[5] = 50.0F;   // varies, but no query looks at it
    moments.query_square[5] = 0.0F;
    moments.query_square[6] = 50.0F;   // looked at, but constant
    moments.key_variance[6] = 0.0F;
    moments.key_variance[7] = 4.0F;
    moments.query_square[7] = 4.0F;
    const ChannelChoice choice = choose_channels(
        {.moments = &moments, .label_bits = LabelBits::bits16, .bit_budget = 32});
    EXPECT_EQ(channels_of(choice, 16), (std::vector<uint32_t>{0, 7}));
    EXPECT_EQ(choice.mean, (std::vector<float>{0.0F, 7.0F}));
}

TEST(ChooseChannels, EqualWeightsGetTwoBitsEach) {
    const ChannelMoments moments = moments_of_weights(std::vector<double>(64, 3.0));
    const ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = 64});
    EXPECT_EQ(count_of(choice, 4), 0U);
    EXPECT_EQ(count_of(choice, 2), 32U);
    EXPECT_EQ(channels_of(choice, 2).back(), 31U);
}

TEST(ChooseChannels, FourBitsAreEarnedAtTheDerivedRatio) {
    // Two more bits for four channels of weight r, taken from four of weight 1, gain when
    // 4 x .1028 r^2 > 4 x .8930 at r = 2.948.
    for (const double ratio : {2.94, 2.955}) {
        std::vector<double> weights(64, 1.0);
        weights[10] = weights[20] = weights[30] = weights[63] = ratio;
        const ChannelMoments moments = moments_of_weights(weights);
        const ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = 64});
        EXPECT_EQ(count_of(choice, 4), ratio > 2.948 ? 4U : 0U) << ratio;
    }
}

TEST(ChooseChannels, ConstantChannelsGetNothing) {
    std::vector<double> weights(64, 0.0);
    weights[3] = weights[50] = 1.0;
    weights[51] = 0.5;
    const ChannelMoments moments = moments_of_weights(weights);
    for (const LabelBits bits : {LabelBits::mixed, LabelBits::bits2, LabelBits::bits4,
                                 LabelBits::bits8, LabelBits::bits16}) {
        const ChannelChoice choice =
            choose_channels({.moments = &moments, .label_bits = bits, .bit_budget = 64});
        ASSERT_EQ(choice.channels.size(), 3U);
        for (const kernels::LabelChannel& c : choice.channels) EXPECT_GT(weights[c.channel], 0);
        EXPECT_EQ(choice.bit_count, 3 * (bits == LabelBits::mixed ? 4 : static_cast<int>(bits)));
    }
}

TEST(ChooseChannels, AHeadThatNeverVariesStillHasALabel) {
    const ChannelMoments moments = moments_of_weights(std::vector<double>(64, 0.0));
    for (const LabelBits bits : {LabelBits::mixed, LabelBits::bits2, LabelBits::bits16}) {
        const ChannelChoice choice =
            choose_channels({.moments = &moments, .label_bits = bits, .bit_budget = 64});
        ASSERT_FALSE(choice.channels.empty());
        EXPECT_EQ(choice.channels.front().channel, 0);
        EXPECT_EQ(choice.mean.size(), choice.channels.size());
    }
    EXPECT_EQ(unexplained_share(moments, choose_channels({.moments = &moments, .bit_budget = 64})),
              0.0);
}

struct BudgetCase {
    uint32_t head_dim;
    uint32_t row_bits = 0;
    LabelBits bits = LabelBits::mixed;
};

class BudgetTest : public ::testing::TestWithParam<BudgetCase> {};

TEST_P(BudgetTest, IsSpentExactlyAndFillsItsUnits) {
    const BudgetCase& p = GetParam();
    const uint32_t budget = label_bit_budget(p.row_bits, p.head_dim);
    const uint32_t bits_most = p.bits == LabelBits::mixed ? 4 : static_cast<uint32_t>(p.bits);
    for (uint32_t seed = 0; seed < 20; ++seed) {
        const ChannelMoments moments =
            moments_of_weights(heavy_tailed_weights(p.head_dim, seed, 0.2 * (seed % 7)));
        const ChannelChoice choice = choose_channels({.moments = &moments,
                                                      .label_bits = p.bits,
                                                      .bit_budget = budget});
        EXPECT_EQ(choice.bit_count, std::min(budget, bits_most * p.head_dim));
        uint32_t bits = 0;
        std::vector<bool> seen(p.head_dim, false);
        for (size_t i = 0; i < choice.channels.size(); ++i) {
            const kernels::LabelChannel& c = choice.channels[i];
            ASSERT_LT(c.channel, p.head_dim);
            EXPECT_FALSE(seen[c.channel]);
            seen[c.channel] = true;
            bits += c.bits;
            EXPECT_EQ(choice.mean[i], moments.key_mean[c.channel]);
            if (i == 0) continue;
            const kernels::LabelChannel& last = choice.channels[i - 1];
            EXPECT_TRUE(last.bits > c.bits || (last.bits == c.bits && last.channel < c.channel));
        }
        EXPECT_EQ(bits, choice.bit_count);
        if (p.bits == LabelBits::mixed) {
            EXPECT_EQ(count_of(choice, 4) % 4, 0U);
            EXPECT_EQ(count_of(choice, 2) % 8, 0U);
        }
    }
}

std::vector<BudgetCase> budget_cases() {
    std::vector<BudgetCase> cases;
    for (const uint32_t head_dim : {32U, 48U, 64U, 80U, 96U, 128U, 256U}) {
        for (const uint32_t row_bits : {0U, 32U, 256U, 100000U}) {
            for (const LabelBits bits : {LabelBits::mixed, LabelBits::bits2, LabelBits::bits4,
                                         LabelBits::bits8, LabelBits::bits16}) {
                cases.push_back({.head_dim = head_dim, .row_bits = row_bits, .bits = bits});
            }
        }
    }
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Dims, BudgetTest, ::testing::ValuesIn(budget_cases()));

TEST(ChooseChannels, OperationsOfTheScanHaveNoUnusedLanes) {
    for (const uint32_t head_dim : {32U, 48U, 64U, 80U, 96U, 128U, 256U}) {
        for (uint32_t seed = 0; seed < 20; ++seed) {
            const ChannelMoments moments =
                moments_of_weights(heavy_tailed_weights(head_dim, seed, 0.1 * seed));
            const uint32_t budget = label_bit_budget(0, head_dim);
            ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = budget});
            const kernels::LabelFormat format =
                kernels::make_label_format(choice.channels, choice.mean, head_dim);
            EXPECT_EQ(format.plane_count, budget / 32);
            EXPECT_LE(format.ops.size(), budget / 8);
            for (const kernels::LabelOp& op : format.ops) {
                for (const uint16_t index : op.code_index) {
                    EXPECT_NE(index, kernels::LabelOp::kNoChannel);
                }
            }
        }
    }
}

// The best of all ways to give 0, 2 or 4 bits, by gain per bit, without any filling.
double greedy_unexplained(const ChannelMoments& moments, uint32_t bit_budget) {
    ChannelChoice choice;
    std::vector<uint32_t> bits(moments.key_mean.size(), 0);
    for (uint32_t spent = 0; spent + 2 <= bit_budget; spent += 2) {
        size_t best = bits.size();
        double best_gain = 0;
        for (size_t c = 0; c < bits.size(); ++c) {
            const double share = bits[c] == 0 ? 0.8930 : bits[c] == 2 ? 0.1028 : 0.0;
            const double gain = share * moments.key_variance[c] * moments.query_square[c];
            if (gain > best_gain) {
                best_gain = gain;
                best = c;
            }
        }
        if (best == bits.size()) break;
        bits[best] += 2;
    }
    for (size_t c = 0; c < bits.size(); ++c) {
        if (bits[c] == 0) continue;
        choice.channels.push_back({static_cast<uint16_t>(c), static_cast<uint8_t>(bits[c])});
    }
    return unexplained_share(moments, choice);
}

TEST(ChooseChannels, StepsOfOneOperationCostLittleOverGreedy) {
    for (uint32_t seed = 0; seed < 200; ++seed) {
        const ChannelMoments moments =
            moments_of_weights(heavy_tailed_weights(64, seed, 0.1 * (seed % 15)));
        const ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = 64});
        const double greedy = greedy_unexplained(moments, 64);
        EXPECT_GE(unexplained_share(moments, choice), greedy * 0.999);
        EXPECT_LE(unexplained_share(moments, choice), greedy * 1.06 + 1e-4) << seed;
    }
}

TEST(ChooseChannels, HeavyTailsGiveAboutTwentySixChannelsOfSixtyFour) {
    double channels = 0;
    double bits4 = 0;
    for (uint32_t seed = 0; seed < 100; ++seed) {
        const ChannelMoments moments = moments_of_weights(heavy_tailed_weights(64, seed, 0.95));
        const ChannelChoice choice = choose_channels({.moments = &moments, .bit_budget = 64});
        channels += static_cast<double>(choice.channels.size()) / 100;
        bits4 += count_of(choice, 4) / 100.0;
    }
    EXPECT_NEAR(channels, 26, 2);
    EXPECT_NEAR(bits4, 6, 2);
}

}  // namespace
}  // namespace shoal::calib
