// Partial softmax states become one output: each is scaled to the largest maximum, then added.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {

void merge(const MergeInput& in, const MergeOutput& out) {
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    // The states are read only; AttendPartial's pointers happen to be writable.
    auto* partials = const_cast<float*>(in.partials);
    std::vector<double> sums(in.v_head_dim);
    for (uint32_t head = 0; head < in.q_head_count; ++head) {
        double max = kNone;
        for (uint32_t part = 0; part < in.part_count; ++part) {
            const AttendPartial state =
                attend_partial_at(partials, part, in.q_head_count, in.v_head_dim);
            max = std::max(max, double{state.max[head]});
        }
        double weight_sum = 0.0;
        sums.assign(in.v_head_dim, 0.0);
        for (uint32_t part = 0; part < in.part_count && max != kNone; ++part) {
            const AttendPartial state =
                attend_partial_at(partials, part, in.q_head_count, in.v_head_dim);
            const double factor = std::exp(double{state.max[head]} - max);
            weight_sum += factor * double{state.sum[head]};
            for (uint32_t c = 0; c < in.v_head_dim; ++c) {
                sums[c] += factor * double{state.out[size_t{head} * in.v_head_dim + c]};
            }
        }
        for (uint32_t c = 0; c < in.v_head_dim; ++c) {
            out.out[head * out.out_head_stride + c] =
                max == kNone ? 0.0F : static_cast<float>(sums[c] / weight_sum);
        }
        if (out.lse != nullptr) out.lse[head] = static_cast<float>(max + std::log(weight_sum));
    }
}

}  // namespace shoal::kernels::ref
