#include "calib/recall.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "shoal/status.hpp"

namespace shoal::calib {

void mass_recall(const RecallInput& in, std::span<double> recall) {
    SHOAL_ASSERT(recall.size() == in.q_head_count);
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for (uint32_t h = 0; h < in.q_head_count; ++h) {
        const float* scores = in.scores + h * in.score_stride;
        const float top = in.slot_count == 0 ? kHidden
                                             : *std::max_element(scores, scores + in.slot_count);
        if (top == kHidden) {
            recall[h] = 1.0;
            continue;
        }
        double all = 0.0;
        for (uint32_t s = 0; s < in.slot_count; ++s) all += std::exp(double{scores[s]} - top);
        double attended = 0.0;
        for (const uint32_t s : in.attended) attended += std::exp(double{scores[s]} - top);
        recall[h] = std::min(1.0, attended / all);
    }
}

}  // namespace shoal::calib
