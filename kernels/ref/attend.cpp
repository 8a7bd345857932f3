// Attention of one query over list entries [begin, end): two passes, double.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

double dot_key(const AttendInput& in, uint32_t slot, uint32_t kv_head, const float* q) {
    const PieceFormat& format = in.kv.format;
    const std::byte* row = in.kv.k_row(slot, kv_head);
    const float scale = k_scale(in.kv, slot, kv_head);
    double sum = 0.0;
    for (uint32_t c = 0; c < format.k_head_dim; ++c) {
        sum += static_cast<double>(q[c]) * load_element(row, format.k_dtype, c, scale);
    }
    return sum;
}

}  // namespace

void attend_part(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out) {
    const PieceFormat& format = in.kv.format;
    std::vector<double> scores(end - begin);
    std::vector<double> sums(format.v_head_dim);
    for (uint32_t head = 0; head < format.kv_head_count * in.q_per_kv; ++head) {
        const uint32_t kv_head = head / in.q_per_kv;
        const float* q = in.q + head * in.q_head_stride;
        double max = -std::numeric_limits<double>::infinity();
        for (uint32_t i = begin; i < end; ++i) {
            scores[i - begin] = double{in.scale} * dot_key(in, in.slots.at(i), kv_head, q);
            max = std::max(max, scores[i - begin]);
        }
        double weight_sum = 0.0;
        sums.assign(format.v_head_dim, 0.0);
        // The state's max is a float: weights are relative to that float, so that they agree.
        const auto max_kept = static_cast<float>(max);
        for (uint32_t i = begin; i < end; ++i) {
            const double weight = std::exp(scores[i - begin] - double{max_kept});
            const std::byte* row = in.kv.v_row(in.slots.at(i), kv_head);
            const float scale = v_scale(in.kv, in.slots.at(i), kv_head);
            weight_sum += weight;
            for (uint32_t c = 0; c < format.v_head_dim; ++c) {
                sums[c] += weight * load_element(row, format.v_dtype, c, scale);
            }
        }
        out.max[head] = max_kept;
        out.sum[head] = static_cast<float>(weight_sum);
        for (uint32_t c = 0; c < format.v_head_dim; ++c) {
            out.out[size_t{head} * format.v_head_dim + c] = static_cast<float>(sums[c]);
        }
    }
}

}  // namespace shoal::kernels::ref
