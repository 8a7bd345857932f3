// Which key channels a KV head's labels keep, and with how many bits.
//
// A channel matters by its weight w_c = sqrt(E[q_c^2] * Var[k_c]): leaving it out adds w_c^2 to
// the expected squared error of the score q.k. Channels get 0, 2 or 4 bits so that this error
// becomes least (`mixed`), or all the same number of bits (2, 4, 8, 16).
// Criterion: Double Sparsity (arXiv 2408.07092) in spirit, with query and key moments taken
// apart; mixed bits are Shoal's own.
#pragma once

#include <vector>

#include "calib/channel_statistics.hpp"
#include "kernels/label.hpp"
#include "shoal/config.hpp"

namespace shoal::calib {

struct ChooseInput {
    const ChannelMoments* moments = nullptr;
    LabelBits label_bits = LabelBits::mixed;
    uint32_t bit_budget = 0;  // 16 .., from label_bit_budget()
};

// Arguments of kernels::make_label_format().
struct ChannelChoice {
    std::vector<kernels::LabelChannel> channels;  // 4 bits first, then 2; by channel within each
    std::vector<float> mean;                      // [channels.size()]
    uint32_t bit_count = 0;                       // what the channels take, <= the budget
};

// Bits of codes that one token of one KV head has: selector.row_bits, or one per key dimension
// when that is 0, rounded up to whole dwords since codes are stored in dwords.
uint32_t label_bit_budget(uint32_t row_bits, uint32_t k_head_dim);

// `mixed` has multiples of 4 channels of 4 bits and of 8 channels of 2 bits, so that no operation
// of the label scan has unused lanes. Ties go to the lowest channel. A channel whose weight is 0
// gets nothing, and none gets more than 4 bits (`mixed`) or `label_bits`, so the budget is not
// spent when too few channels vary; otherwise it is spent exactly. There is always at least one
// channel: if none varies, the first ones are taken.
ChannelChoice choose_channels(const ChooseInput& in);

// Expected squared error of the score that remains, as a share of what it is without labels:
// 0 = exact, 1 = nothing known. 0 when no channel has weight.
double unexplained_share(const ChannelMoments& moments, const ChannelChoice& choice);

}  // namespace shoal::calib
