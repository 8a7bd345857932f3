// What two rows of logits say of the same next token.
#pragma once

#include <cstdint>
#include <span>

namespace shoal::tool {

// Natural log of the sum of exp(logits), in double.
double log_sum_exp(std::span<const float> logits);
// KL(reference || other) in nats; both lse are those of log_sum_exp().
double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> other, double other_lse);
uint32_t argmax(std::span<const float> logits);

}  // namespace shoal::tool
