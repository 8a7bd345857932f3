#include "runtime/adaptive_rows.hpp"

#include <algorithm>
#include <cmath>

namespace shoal {

namespace {

// Per step and unit of log score. Scores move from token to token: rows should follow the layer,
// not the token. What is found moves with rows^-1 to rows^-2, so this settles in 10 to 30 steps.
constexpr double kGain = 0.1;
constexpr double kStepMax = 2.0;   // of log score: nothing jumps
constexpr int kRounds = 8;         // of scaling to the total; what hits a limit leaves some over

// Groups that had no row left to choose say nothing of the others.
double mean_log_marginal(std::span<const RowShare> shares) {
    double weights = 0;
    double sum = 0;
    for (const RowShare& share : shares) {
        if (share.marginal <= 0) continue;
        weights += share.weight;
        sum += share.weight * std::log(share.marginal);
    }
    return weights == 0 ? 0 : sum / weights;
}

double log_growth(const RowShare& share, double mean) {
    if (share.marginal <= 0) return -kGain * kStepMax;
    return kGain * std::clamp(std::log(share.marginal) - mean, -kStepMax, kStepMax);
}

void scale(const RowShare& share, double by) {
    *share.factor = std::clamp(static_cast<float>(*share.factor * by), kRowsFactorMin,
                               kRowsFactorMax);
}

}  // namespace

void share_rows(std::span<const RowShare> shares) {
    if (shares.empty()) return;
    const double mean = mean_log_marginal(shares);
    double weights = 0;
    for (const RowShare& share : shares) {
        weights += share.weight;
        scale(share, std::exp(log_growth(share, mean)));
    }
    for (int round = 0; round < kRounds; ++round) {
        double total = 0;
        for (const RowShare& share : shares) total += share.weight * double{*share.factor};
        for (const RowShare& share : shares) scale(share, weights / total);
    }
}

}  // namespace shoal
