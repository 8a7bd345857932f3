// Error model. A channel quantised with b bits over the range R of its span has steps of
// R / (2^b - 1) and so the error variance R^2 / (12 (2^b - 1)^2). R is 3.4 standard deviations of
// the whole channel (rms, weighted by w^2, SmolLM2-135M over 4,096 tokens of a novel): less than
// the 5.2 of 128 independent normal samples, since keys move slowly within a span. Hence the
// unexplained share of a channel's variance is .107 with 2 bits (measured .106), .0043 with 4
// (.0041), and 1 without bits: the first 2 bits gain .893 w^2, the next 2 only .103 w^2, and a
// channel earns 4 bits when its weight is 2.95 times that of the last channel that earns 2.
//
// A greedy allocation by gain per bit would do that. Since gains fall with the weight, its result
// is always "the best n4 channels with 4 bits, the next n2 with 2", so it is enough to try every
// n4 and keep the best. n4 goes in steps of 4, the codes of one operation of the label scan
// (kernels/label_format.cpp): at 64 bits the scan has 8 - n4 / 4 operations, mean 6.4. Steps of 2
// fill bytes as well, with 1 to 3 operations more and the same recall: .695 against .696 of the
// mass outside the safety set at 5 % of 4,096 tokens (oracle .752; ranges of 5.2 deviations .694,
// 2 deviations .688; 2 bits for all .669; 4 bits for all .678).
#include "calib/choose_channels.hpp"

#include <algorithm>
#include <cmath>

#include "shoal/status.hpp"

namespace shoal::calib {
namespace {

constexpr double kSpanRange = 3.4;  // standard deviations
constexpr uint32_t kStepBits = 16;    // four codes of 4 bits: one operation of the label scan

double unexplained(uint32_t bits) {
    if (bits == 0) return 1.0;
    const double steps = std::ldexp(1.0, static_cast<int>(bits)) - 1.0;
    return kSpanRange * kSpanRange / (12.0 * steps * steps);
}

double weight_square(const ChannelMoments& moments, size_t channel) {
    return double{moments.query_square[channel]} * double{moments.key_variance[channel]};
}

// Channels with weight, the heaviest first.
struct Ranking {
    std::vector<uint16_t> order;
    std::vector<double> gain_sum;  // [order.size() + 1] weight_square of the first i
    uint32_t count() const { return static_cast<uint32_t>(order.size()); }
};

Ranking rank_channels(const ChannelMoments& moments) {
    Ranking ranking;
    for (size_t c = 0; c < moments.key_mean.size(); ++c) {
        if (weight_square(moments, c) > 0) ranking.order.push_back(static_cast<uint16_t>(c));
    }
    std::ranges::stable_sort(ranking.order, [&](uint16_t a, uint16_t b) {
        return weight_square(moments, a) > weight_square(moments, b);
    });
    ranking.gain_sum.push_back(0.0);
    for (const uint16_t c : ranking.order) {
        ranking.gain_sum.push_back(ranking.gain_sum.back() + weight_square(moments, c));
    }
    return ranking;
}

struct MixedCounts {
    uint32_t bits4 = 0;
    uint32_t bits2 = 0;
};

MixedCounts best_mixed(const Ranking& ranking, uint32_t bit_budget) {
    const double gain2 = 1.0 - unexplained(2);
    const double gain4 = 1.0 - unexplained(4);
    MixedCounts best;
    double best_gain = -1.0;
    for (uint32_t bits = 0; bits <= bit_budget; bits += kStepBits) {
        MixedCounts counts;
        counts.bits4 = std::min(bits / 4, ranking.count());
        counts.bits2 = std::min((bit_budget - bits) / 2, ranking.count() - counts.bits4);
        const double sum4 = ranking.gain_sum[counts.bits4];
        const double sum2 = ranking.gain_sum[counts.bits4 + counts.bits2] - sum4;
        const double gain = gain4 * sum4 + gain2 * sum2;
        if (gain > best_gain) {
            best_gain = gain;
            best = counts;
        }
        if (counts.bits4 == ranking.count()) break;
    }
    return best;
}

void add_channels(const uint16_t* channels, uint32_t count, uint32_t bits, ChannelChoice& choice) {
    std::vector<uint16_t> sorted(channels, channels + count);
    std::ranges::sort(sorted);
    for (const uint16_t channel : sorted) {
        choice.channels.push_back({.channel = channel, .bits = static_cast<uint8_t>(bits)});
    }
    choice.bit_count += count * bits;
}

}  // namespace

uint32_t label_bit_budget(uint32_t row_bits, uint32_t k_head_dim) {
    const uint32_t bits = row_bits != 0 ? row_bits : k_head_dim;
    return (bits + 31) / 32 * 32;
}

ChannelChoice choose_channels(const ChooseInput& in) {
    const ChannelMoments& moments = *in.moments;
    SHOAL_ASSERT(in.bit_budget >= 16 && moments.key_mean.size() >= 4);
    Ranking ranking = rank_channels(moments);
    if (ranking.order.empty()) {  // a constant head: any channel is as good, but there must be one
        ranking.order = {0, 1, 2, 3};
        ranking.gain_sum.resize(5, 0.0);
    }
    ChannelChoice choice;
    if (in.label_bits == LabelBits::mixed) {
        const MixedCounts counts = best_mixed(ranking, in.bit_budget);
        add_channels(ranking.order.data(), counts.bits4, 4, choice);
        add_channels(ranking.order.data() + counts.bits4, counts.bits2, 2, choice);
    } else {
        const uint32_t bits = static_cast<uint32_t>(in.label_bits);
        add_channels(ranking.order.data(), std::min(in.bit_budget / bits, ranking.count()), bits,
                     choice);
    }
    for (const kernels::LabelChannel& channel : choice.channels) {
        choice.mean.push_back(moments.key_mean[channel.channel]);
    }
    return choice;
}

double unexplained_share(const ChannelMoments& moments, const ChannelChoice& choice) {
    std::vector<uint32_t> bits(moments.key_mean.size(), 0);
    for (const kernels::LabelChannel& channel : choice.channels) {
        bits[channel.channel] = channel.bits;
    }
    double total = 0.0;
    double left = 0.0;
    for (size_t c = 0; c < bits.size(); ++c) {
        total += weight_square(moments, c);
        left += weight_square(moments, c) * unexplained(bits[c]);
    }
    return total > 0 ? left / total : 0.0;
}

}  // namespace shoal::calib
