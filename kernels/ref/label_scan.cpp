// label_scan: decode every visible slot, one dot product per query head, combine. The definition.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

bool bit(const uint64_t words[2], uint32_t t) { return ((words[t / 64] >> (t % 64)) & 1U) != 0; }

// Centred channels of one slot of one KV head.
void decode(const LabelScanInput& in, uint32_t span, uint32_t t, uint32_t kv_head,
            std::vector<float>& values) {
    const LabelFormat& format = in.formats[kv_head];
    values.resize(format.channels.size());
    if (span == in.open_span) {
        label_decode_open(format, in.open + in.open_head_offset_bytes[kv_head], t, values.data());
        return;
    }
    const std::byte* base = in.spans + span * in.span_stride_bytes;
    label_decode(format, base + in.head_offset_bytes[kv_head], t, values.data());
}

double score_of_slot(const LabelScanInput& in, uint32_t span, uint32_t t,
                     std::vector<float>& values, double* head_sums) {
    double total = 0.0;
    double best = -std::numeric_limits<double>::infinity();
    for (uint32_t kv_head = 0; kv_head < in.kv_head_count; ++kv_head) {
        decode(in, span, t, kv_head, values);
        for (uint32_t g = 0; g < in.q_per_kv; ++g) {
            const uint32_t head = kv_head * in.q_per_kv + g;
            double s = 0.0;
            for (size_t c = 0; c < values.size(); ++c) {
                s += double{in.queries[head].q[c]} * double{values[c]};
            }
            s -= double{in.lse_guess[head]};
            const double weight = std::exp2(std::min(s, double{kLabelExponentMax}));
            if (head_sums != nullptr) head_sums[head] += weight;
            total += weight;
            best = std::max(best, s);
        }
    }
    return in.combine == Combine::sum ? total : best;
}

}  // namespace

void label_scan(const LabelScanInput& in, LabelScanOutput& out) {
    const uint32_t q_head_count = in.kv_head_count * in.q_per_kv;
    if (out.head_sums != nullptr) std::fill_n(out.head_sums, q_head_count, 0.0);
    out.candidate_count = 0;
    std::vector<float> values;
    for (uint32_t span = in.span_begin; span < in.span_end; ++span) {
        for (uint32_t t = 0; t < kSpanSlots; ++t) {
            const uint32_t slot = span * kSpanSlots + t;
            out.scores[slot] = -std::numeric_limits<float>::infinity();
            if (!bit(in.masks[span].visible, t)) continue;
            const float score =
                static_cast<float>(score_of_slot(in, span, t, values, out.head_sums));
            if (!bit(in.masks[span].selectable, t)) continue;
            out.scores[slot] = score;
            if (out.candidates != nullptr && score >= in.candidate_threshold) {
                out.candidates[out.candidate_count++] = slot;
            }
        }
    }
}

}  // namespace shoal::kernels::ref
