#include "runtime/head_normaliser.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace shoal {

namespace {

// Heads may drift this far apart (in log2) before their scores are made again.
constexpr float kDriftMax = 2.0F;
// Spans looked at beforehand, beside the first and the last: those where the last selection lay,
// which hold most of what the others leave, and of the rest one in kSampleStride, kSamplesMin to
// kSamplesMax of them. At 131,072 tokens (a text of 8,192 repeated, the worst case: equal mass in
// 16 places), us a layer, look and pass together, share of passes repeated: 12 samples 41 %
// repeated; 32: 45 + 278, 11 %; 48 and 24 heavy spans: 70 + 259, 7 %.
constexpr uint32_t kSampleStride = 16;
constexpr uint32_t kSamplesMin = 4;
constexpr uint32_t kSamplesMax = 32;
constexpr uint32_t kLookedAtMax = 2 + HeadNormaliser::kHeavySpansMax + kSamplesMax;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How far a head's lse lies from the guess under which `sum` was added up. A guess so far off
// that the sum left the range of a float moves by steps.
float drift(double sum) {
    if (!(sum < 1e37)) return 100.0F;
    if (sum < 1e-37) return -100.0F;
    return static_cast<float>(std::log2(sum));
}

}  // namespace

size_t HeadNormaliser::workspace_bytes(const SelectorLimits& limits) {
    const size_t parts = part_count_of(span_count_of(limits.slot_count_max));
    const size_t sums = std::max<size_t>(parts, kLookedAtMax) * limits.q_head_count_max;
    return (sums * sizeof(double) + 63) / 64 * 64;
}

HeadNormaliser::HeadNormaliser(const Executor& executor, const SelectorLimits& limits,
                               std::byte* workspace)
    : executor_(executor), head_sums_(reinterpret_cast<double*>(workspace)) {
    samples_.reserve(kLookedAtMax);
    span_counts_.reserve(span_count_of(limits.slot_count_max));
}

// The first and the last span, where most of the mass lies, those of the last selection, and a
// sample of the others, each of which stands for its neighbours.
void HeadNormaliser::pick_samples(uint32_t span_end, std::span<const uint32_t> heavy) {
    samples_.clear();
    samples_.push_back({0, 1.0});
    if (span_end > 1) samples_.push_back({span_end - 1, 1.0});
    for (const uint32_t span : heavy) {
        if (span != 0 && span + 1 < span_end) samples_.push_back({span, 1.0});
    }
    const size_t heavy_end = samples_.size();
    const uint32_t between = span_end > heavy_end ? span_end - static_cast<uint32_t>(heavy_end) : 0;
    // Odd: a text that repeats itself every so many spans (2^n in speed tests) is met everywhere.
    const uint32_t stride = std::max(std::min(kSampleStride, between / kSamplesMin),
                                     (between + kSamplesMax - 1) / kSamplesMax) | 1U;
    const size_t sample_end = heavy_end + kSamplesMax;
    for (uint32_t span = 1; span + 1 < span_end && samples_.size() < sample_end; span += stride) {
        if (!std::binary_search(heavy.begin(), heavy.end(), span)) samples_.push_back({span, 1.0});
    }
    const double weight = double{1} * between /
                          static_cast<double>(std::max<size_t>(1, samples_.size() - heavy_end));
    for (size_t i = heavy_end; i < samples_.size(); ++i) samples_[i].weight = weight;
}

// A first idea of each head's lse for this query.
void HeadNormaliser::correct_by_samples(std::span<float> lse) const {
    for (size_t head = 0; head < lse.size(); ++head) {
        double sum = 0;
        for (size_t i = 0; i < samples_.size(); ++i) {
            sum += samples_[i].weight * head_sums_[i * lse.size() + head];
        }
        lse[head] += drift(sum);
    }
}

bool HeadNormaliser::drifted(uint32_t part_count, std::span<float> lse) const {
    float drift_min = kInfinity;
    float drift_max = -kInfinity;
    for (size_t head = 0; head < lse.size(); ++head) {
        double sum = 0;
        for (uint32_t part = 0; part < part_count; ++part) {
            sum += head_sums_[part * lse.size() + head];
        }
        const float moved = drift(sum);
        lse[head] += moved;
        drift_min = std::min(drift_min, moved);
        drift_max = std::max(drift_max, moved);
    }
    return drift_max - drift_min > kDriftMax || drift_max > 20.0F || drift_min < -20.0F;
}

// Ties go to the lower span: the same selection always leaves the same history.
void HeadNormaliser::note_spans(std::span<const uint32_t> chosen, std::vector<uint32_t>& heavy) {
    span_counts_.clear();
    for (const uint32_t slot : chosen) {
        const uint32_t span = slot / kernels::kSpanSlots;
        if (span_counts_.empty() || span_counts_.back().second != span) {
            span_counts_.push_back({0, span});
        }
        span_counts_.back().first++;
    }
    const size_t kept = std::min<size_t>(kHeavySpansMax, span_counts_.size());
    std::partial_sort(span_counts_.begin(), span_counts_.begin() + static_cast<ptrdiff_t>(kept),
                      span_counts_.end(), [](const auto& a, const auto& b) {
                          return a.first != b.first ? a.first > b.first : a.second < b.second;
                      });
    heavy.clear();
    for (size_t i = 0; i < kept; ++i) heavy.push_back(span_counts_[i].second);
    std::sort(heavy.begin(), heavy.end());
}

}  // namespace shoal
