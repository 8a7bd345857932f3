// Exact attention of many queries: every query by itself, slot after slot, double. One pass over
// the rows, sums scaled down whenever a larger score comes: so it can stop after any slot.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"
#include "shoal/status.hpp"

namespace shoal::kernels::ref {
namespace {

// Visible slots of one query that are in the pass, in order.
std::vector<uint32_t> slots_of(const PrefillInput& in, uint32_t query) {
    std::vector<uint32_t> slots;
    for (uint32_t r = in.range_offsets[query]; r < in.range_offsets[query + 1]; ++r) {
        const uint32_t begin = std::max(in.ranges[r].begin, in.pass.begin);
        const uint32_t end = std::min(in.ranges[r].end, in.pass.end);
        for (uint32_t slot = begin; slot < end; ++slot) slots.push_back(slot);
    }
    return slots;
}

// From the first slot that any query sees to the last; {UINT32_MAX, 0} when there is none.
SlotRange visible_range(const PrefillInput& in) {
    SlotRange visible{UINT32_MAX, 0};
    const uint32_t range_count = in.range_offsets[in.query_count];
    for (uint32_t r = in.range_offsets[0]; r < range_count; ++r) {
        visible.begin = std::min(visible.begin, in.ranges[r].begin);
        visible.end = std::max(visible.end, in.ranges[r].end);
    }
    return visible;
}

struct RowState {
    double* max;
    double* sum;
    double* out;  // [v_head_dim], not yet divided
};

void attend_query_head(const PrefillInput& in, const std::vector<uint32_t>& slots, uint32_t query,
                       uint32_t head, const RowState& state) {
    const PieceFormat& format = in.kv.format;
    const uint32_t kv_head = head / in.q_per_kv;
    const float* q = in.q + query * in.q_stride + head * in.q_head_stride;
    for (const uint32_t slot : slots) {
        const std::byte* k = in.kv.k_row(slot, kv_head);
        const float k_factor = k_scale(in.kv, slot, kv_head);
        double dot = 0.0;
        for (uint32_t c = 0; c < format.k_head_dim; ++c) {
            dot += static_cast<double>(q[c]) * load_element(k, format.k_dtype, c, k_factor);
        }
        const double score = double{in.scale} * dot;
        const double max = std::max(*state.max, score);
        const double factor = std::exp(*state.max - max);
        const double weight = std::exp(score - max);
        const std::byte* v = in.kv.v_row(slot, kv_head);
        const float v_factor = v_scale(in.kv, slot, kv_head);
        *state.max = max;
        *state.sum = *state.sum * factor + weight;
        for (uint32_t c = 0; c < format.v_head_dim; ++c) {
            state.out[c] = state.out[c] * factor +
                           weight * load_element(v, format.v_dtype, c, v_factor);
        }
    }
}

void store_row(const PrefillInput& in, uint32_t query, uint32_t head, const RowState& state,
               const PrefillOutput& out) {
    const PieceFormat& format = in.kv.format;
    float* to = out.out + query * out.out_stride + head * out.out_head_stride;
    for (uint32_t c = 0; c < format.v_head_dim; ++c) {
        to[c] = *state.sum == 0.0 ? 0.0F : static_cast<float>(state.out[c] / *state.sum);
    }
    if (out.lse == nullptr) return;
    const size_t q_head_count = size_t{format.kv_head_count} * in.q_per_kv;
    out.lse[query * q_head_count + head] =
        static_cast<float>(*state.max + std::log(*state.sum));
}

}  // namespace

void prefill(const PrefillInput& in, const PrefillOutput& out, void*, const Executor&) {
    const PieceFormat& format = in.kv.format;
    const uint32_t q_head_count = format.kv_head_count * in.q_per_kv;
    const size_t state_doubles = format.v_head_dim + 2U;
    const SlotRange visible = visible_range(in);
    const bool begins = in.pass.begin <= visible.begin;
    SHOAL_ASSERT(out.state != nullptr || (begins && in.pass.end >= visible.end));
    std::vector<double> own(out.state == nullptr ? state_doubles : 0);
    for (uint32_t query = 0; query < in.query_count; ++query) {
        const std::vector<uint32_t> slots = slots_of(in, query);
        for (uint32_t head = 0; head < q_head_count; ++head) {
            double* base = own.data();
            if (out.state != nullptr) {
                const size_t row = size_t{query} * q_head_count + head;
                base = static_cast<double*>(out.state) + row * state_doubles;
            }
            const RowState state{base, base + 1, base + 2};
            if (begins) {
                *state.max = -std::numeric_limits<double>::infinity();
                std::fill_n(state.sum, state_doubles - 1, 0.0);
            }
            attend_query_head(in, slots, query, head, state);
            store_row(in, query, head, state, out);
        }
    }
}

}  // namespace shoal::kernels::ref
