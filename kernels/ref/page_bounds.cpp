// page_encode, page_extend, page_scan: channel by channel, page by page. The definition.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"
#include "shoal/status.hpp"

namespace shoal::kernels::ref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Side { least, largest };

// The nearest stored number that is not inside `value`.
uint16_t round_outwards(float value, DType dtype, Side side) {
    if (dtype == DType::f16) return f32_to_f16(value);  // an f16 key: exact
    if (std::isinf(value)) return f32_to_bf16(value);   // a page without slots
    const float limit = bf16_to_f32(0x7f7f);
    value = std::clamp(value, -limit, limit);
    const bool away_from_zero = side == Side::least ? value < 0.0F : value > 0.0F;
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return static_cast<uint16_t>((away_from_zero ? bits + 0xffffU : bits) >> 16);
}

// The score of one page, combined; adds to the heads' sums.
double score_of_page(const PageScanInput& in, uint32_t page, uint32_t visible_count,
                     double* head_sums) {
    double total = 0.0;
    double best = -std::numeric_limits<double>::infinity();
    for (uint32_t head = 0; head < in.kv_head_count * in.q_per_kv; ++head) {
        const float* q = in.q + head * in.q_head_stride;
        const std::byte* least = in.pages + page * in.page_stride_bytes +
                                 head / in.q_per_kv * in.head_stride_bytes;
        double bound = 0.0;
        for (uint32_t c = 0; c < in.k_head_dim; ++c) {
            const double low = load_element(least, in.bound_dtype, c);
            const double high = load_element(least, in.bound_dtype, in.k_head_dim + c);
            bound += std::max(double{q[c]} * low, double{q[c]} * high);
        }
        const double s =
            bound * double{in.scale} * std::numbers::log2e - double{in.lse_guess[head]};
        const double weight = std::exp2(std::min(s, double{kLabelExponentMax}));
        if (head_sums != nullptr) head_sums[head] += visible_count * weight;
        total += weight;
        best = std::max(best, s);
    }
    return in.combine == Combine::sum ? total : best;
}

}  // namespace

void page_encode(const PageEncodeInput& in, std::byte* bounds) {
    const uint32_t dim = in.kv.format.k_head_dim;
    const DType dtype = page_bound_dtype(in.kv.format.k_dtype);
    for (uint32_t c = 0; c < dim; ++c) {
        store_element(bounds, dtype, c, kInfinity);
        store_element(bounds, dtype, dim + c, -kInfinity);
    }
    page_extend(in, bounds);
}

void page_extend(const PageEncodeInput& in, std::byte* bounds) {
    const PieceFormat& format = in.kv.format;
    const DType dtype = page_bound_dtype(format.k_dtype);
    SHOAL_ASSERT(in.page_slots <= kPageSlotsMax);
    for (uint32_t c = 0; c < format.k_head_dim; ++c) {
        float low = load_element(bounds, dtype, c);
        float high = load_element(bounds, dtype, format.k_head_dim + c);
        for (uint32_t t = 0; t < in.page_slots; ++t) {
            if (((in.slots >> t) & 1U) == 0) continue;
            const uint32_t slot = in.page * in.page_slots + t;
            const float key = load_element(in.kv.k_row(slot, in.kv_head), format.k_dtype, c,
                                           k_scale(in.kv, slot, in.kv_head));
            low = std::min(low, key);
            high = std::max(high, key);
        }
        const uint16_t stored[2] = {round_outwards(low, dtype, Side::least),
                                    round_outwards(high, dtype, Side::largest)};
        std::memcpy(bounds + c * sizeof(uint16_t), &stored[0], sizeof(uint16_t));
        std::memcpy(bounds + (format.k_head_dim + c) * sizeof(uint16_t), &stored[1],
                    sizeof(uint16_t));
    }
}

void page_scan(const PageScanInput& in, PageScanOutput& out) {
    if (out.head_sums != nullptr) {
        std::fill_n(out.head_sums, in.kv_head_count * in.q_per_kv, 0.0);
    }
    out.candidate_count = 0;
    for (uint32_t page = in.page_begin; page < in.page_end; ++page) {
        out.scores[page] = -kInfinity;
        const SpanMask& mask = in.masks[page * in.page_slots / kSpanSlots];
        const uint64_t visible = page_bits(mask.visible, page, in.page_slots);
        if (visible == 0) continue;
        const auto score = static_cast<float>(score_of_page(
            in, page, static_cast<uint32_t>(std::popcount(visible)), out.head_sums));
        if (page_bits(mask.selectable, page, in.page_slots) == 0) continue;
        out.scores[page] = score;
        if (out.candidates != nullptr && score >= in.candidate_threshold) {
            out.candidates[out.candidate_count++] = page;
        }
    }
}

}  // namespace shoal::kernels::ref
