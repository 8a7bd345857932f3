// Exact attention of many queries: every query by itself, two passes, double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/convert.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

// Visible slots of one query, in order.
std::vector<uint32_t> visible_slots(const PrefillInput& in, uint32_t query) {
    std::vector<uint32_t> slots;
    for (uint32_t r = in.range_offsets[query]; r < in.range_offsets[query + 1]; ++r) {
        for (uint32_t slot = in.ranges[r].begin; slot < in.ranges[r].end; ++slot) {
            slots.push_back(slot);
        }
    }
    return slots;
}

void attend_query_head(const PrefillInput& in, const std::vector<uint32_t>& slots, uint32_t query,
                       uint32_t head, const PrefillOutput& out) {
    const PieceFormat& format = in.kv.format;
    const uint32_t kv_head = head / in.q_per_kv;
    const float* q = in.q + query * in.q_stride + head * in.q_head_stride;
    double max = -std::numeric_limits<double>::infinity();
    std::vector<double> scores;
    for (uint32_t slot : slots) {
        const std::byte* row = in.kv.k_row(slot, kv_head);
        double dot = 0.0;
        for (uint32_t c = 0; c < format.k_head_dim; ++c) {
            dot += static_cast<double>(q[c]) * load_element(row, format.k_dtype, c);
        }
        scores.push_back(double{in.scale} * dot);
        max = std::max(max, scores.back());
    }
    double weight_sum = 0.0;
    std::vector<double> sums(format.v_head_dim, 0.0);
    for (size_t i = 0; i < slots.size(); ++i) {
        const double weight = std::exp(scores[i] - max);
        const std::byte* row = in.kv.v_row(slots[i], kv_head);
        weight_sum += weight;
        for (uint32_t c = 0; c < format.v_head_dim; ++c) {
            sums[c] += weight * load_element(row, format.v_dtype, c);
        }
    }
    float* to = out.out + query * out.out_stride + head * out.out_head_stride;
    for (uint32_t c = 0; c < format.v_head_dim; ++c) {
        to[c] = slots.empty() ? 0.0F : static_cast<float>(sums[c] / weight_sum);
    }
    if (out.lse != nullptr) {
        const size_t q_head_count = size_t{format.kv_head_count} * in.q_per_kv;
        out.lse[query * q_head_count + head] = static_cast<float>(max + std::log(weight_sum));
    }
}

}  // namespace

void prefill(const PrefillInput& in, const PrefillOutput& out, void*, const Executor&) {
    for (uint32_t query = 0; query < in.query_count; ++query) {
        const std::vector<uint32_t> slots = visible_slots(in, query);
        for (uint32_t head = 0; head < in.kv.format.kv_head_count * in.q_per_kv; ++head) {
            attend_query_head(in, slots, query, head, out);
        }
    }
}

}  // namespace shoal::kernels::ref
