#include "runtime/tool/distribution.hpp"

#include <algorithm>
#include <cmath>

namespace shoal::tool {

double log_sum_exp(std::span<const float> logits) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    return largest + std::log(sum);
}

double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> other, double other_lse) {
    double sum = 0;
    for (size_t i = 0; i < reference.size(); ++i) {
        const double log_p = reference[i] - reference_lse;
        sum += std::exp(log_p) * (log_p - (other[i] - other_lse));
    }
    return sum;
}

uint32_t argmax(std::span<const float> logits) {
    return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace shoal::tool
