#include "runtime/selector_labels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "offload/executor.hpp"
#include "runtime/clock.hpp"

namespace shoal {

using kernels::kSpanSlots;

namespace {

// Parts are cut by span index alone, so that sums over them never depend on the threads.
constexpr uint32_t kPartSpans = 16;
// A part's candidates may be written past its last one, a vector at a time.
constexpr uint32_t kCandidateSlack = 64;
constexpr uint32_t kScansMax = 8;
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
constexpr uint32_t kLookedAtMax = 2 + SelectHistory::kSpansMax + kSamplesMax;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t span_count_of(uint32_t slots) { return (slots + kSpanSlots - 1) / kSpanSlots; }
uint32_t part_count_of(uint32_t spans) { return (spans + kPartSpans - 1) / kPartSpans; }

// Multiples of 64 B: the pieces of the workspace stay aligned.
size_t scores_bytes(const SelectorLimits& limits) {
    return size_t{span_count_of(limits.slot_count_max)} * kSpanSlots * sizeof(float);
}
size_t candidate_bytes(const SelectorLimits& limits) {
    const size_t parts = part_count_of(span_count_of(limits.slot_count_max));
    return parts * (kPartSpans * kSpanSlots + kCandidateSlack) * sizeof(uint32_t);
}

size_t head_sum_bytes(const SelectorLimits& limits) {
    const size_t parts = part_count_of(span_count_of(limits.slot_count_max));
    const size_t sums = std::max<size_t>(parts, kLookedAtMax) * limits.q_head_count_max;
    return (sums * sizeof(double) + 63) / 64 * 64;
}

uint32_t scanned_spans(const SelectInput& in) {
    return std::min(static_cast<uint32_t>(in.view->masks().size()), in.labels->span_count());
}

// How far a head's lse lies from the guess under which `sum` was added up. A guess so far off
// that the sum left the range of a float moves by steps.
float drift(double sum) {
    if (!(sum < 1e37)) return 100.0F;
    if (sum < 1e-37) return -100.0F;
    return static_cast<float>(std::log2(sum));
}

// A little under the last threshold: about 1.3 k slots pass when the scores moved as usual.
float candidate_threshold(kernels::Combine combine, const SelectHistory& history) {
    if (history.threshold == -kInfinity) return -kInfinity;
    return combine == kernels::Combine::sum ? history.threshold * 0.85F
                                            : history.threshold - 0.25F;
}

}  // namespace

LabelSelector::LabelSelector(CombineKind combine, const kernels::Backend& backend,
                             const Executor& executor, const SelectorLimits& limits,
                             std::byte* workspace)
    : combine_(combine == CombineKind::sum ? kernels::Combine::sum : kernels::Combine::max),
      backend_(backend),
      executor_(executor),
      queries_(limits.q_head_count_max),
      candidates_(part_count_of(span_count_of(limits.slot_count_max))),
      head_sums_(reinterpret_cast<double*>(workspace + scores_bytes(limits) +
                                           candidate_bytes(limits))),
      scores_(reinterpret_cast<float*>(workspace)),
      candidate_slots_(reinterpret_cast<uint32_t*>(workspace + scores_bytes(limits))),
      topk_workspace_(workspace + scores_bytes(limits) + candidate_bytes(limits) +
                      head_sum_bytes(limits)) {
    samples_.reserve(kLookedAtMax);
    span_counts_.reserve(span_count_of(limits.slot_count_max));
}

uint64_t LabelSelector::workspace_bytes(const SelectorLimits& limits) {
    return scores_bytes(limits) + candidate_bytes(limits) + head_sum_bytes(limits) +
           kernels::topk_workspace_bytes(span_count_of(limits.slot_count_max) * kSpanSlots);
}

void LabelSelector::prepare_queries(const SelectInput& in) {
    const Group& group = *in.group;
    kernels::LabelScanInput scan;
    in.labels->describe(scan);
    for (uint32_t head = 0; head < group.q_head_count(); ++head) {
        const uint32_t kv_head = head / group.q_per_kv;
        kernels::LabelQueryInput query;
        query.format = &scan.formats[kv_head];
        query.q = in.q + head * in.q_head_stride;
        query.scale = group.scale;
        query.channel_scale_max = in.labels->channel_scale_max(kv_head);
        backend_.label_query(query, queries_[head]);
    }
}

void LabelSelector::scan(const SelectInput& in, SlotRange spans, float threshold,
                         kernels::LabelScanOutput& out) const {
    kernels::LabelScanInput scan;
    in.labels->describe(scan);
    scan.q_per_kv = in.group->q_per_kv;
    scan.queries = queries_.data();
    scan.lse_guess = in.history->lse.data();
    scan.masks = in.view->masks().data();
    scan.span_begin = spans.begin;
    scan.span_end = spans.end;
    scan.combine = combine_;
    scan.candidate_threshold = threshold;
    out.scores = scores_;
    backend_.label_scan(scan, out);
}

void LabelSelector::scan_all(const SelectInput& in, float threshold) {
    const uint32_t span_end = scanned_spans(in);
    const uint32_t heads = in.group->q_head_count();
    part_count_ = part_count_of(span_end);
    offload::run_on(executor_, part_count_, [&](uint32_t part, uint32_t) {
        const uint32_t begin = part * kPartSpans;
        kernels::LabelScanOutput out;
        out.head_sums = head_sums_ + size_t{part} * heads;
        out.candidates = threshold == -kInfinity
                             ? nullptr
                             : candidate_slots_ +
                                   size_t{part} * (kPartSpans * kSpanSlots + kCandidateSlack);
        scan(in, {begin, std::min(begin + kPartSpans, span_end)}, threshold, out);
        candidates_[part] = {out.candidates, out.candidate_count};
    });
}

// The first and the last span, where most of the mass lies, those of the last selection, and a
// sample of the others, each of which stands for its neighbours.
void LabelSelector::pick_samples(const SelectInput& in) {
    const uint32_t span_end = scanned_spans(in);
    samples_.clear();
    samples_.push_back({0, 1.0});
    if (span_end > 1) samples_.push_back({span_end - 1, 1.0});
    for (const uint32_t span : in.history->spans) {
        if (span != 0 && span + 1 < span_end) samples_.push_back({span, 1.0});
    }
    const size_t heavy_end = samples_.size();
    const uint32_t between = span_end > heavy_end ? span_end - static_cast<uint32_t>(heavy_end) : 0;
    // Odd: a text that repeats itself every so many spans (2^n in speed tests) is met everywhere.
    const uint32_t stride = std::max(std::min(kSampleStride, between / kSamplesMin),
                                     (between + kSamplesMax - 1) / kSamplesMax) | 1U;
    const size_t sample_end = heavy_end + kSamplesMax;
    for (uint32_t span = 1; span + 1 < span_end && samples_.size() < sample_end; span += stride) {
        const std::vector<uint32_t>& heavy = in.history->spans;
        if (!std::binary_search(heavy.begin(), heavy.end(), span)) samples_.push_back({span, 1.0});
    }
    const double weight = double{1} * between /
                          static_cast<double>(std::max<size_t>(1, samples_.size() - heavy_end));
    for (size_t i = heavy_end; i < samples_.size(); ++i) samples_[i].weight = weight;
}

// A first idea of each head's lse for this query.
void LabelSelector::estimate_lse(const SelectInput& in) {
    const uint32_t heads = in.group->q_head_count();
    pick_samples(in);
    offload::run_on(executor_, static_cast<uint32_t>(samples_.size()), [&](uint32_t i, uint32_t) {
        kernels::LabelScanOutput out;
        out.head_sums = head_sums_ + size_t{i} * heads;
        scan(in, {samples_[i].span, samples_[i].span + 1}, -kInfinity, out);
    });
    for (uint32_t head = 0; head < heads; ++head) {
        double sum = 0;
        for (size_t i = 0; i < samples_.size(); ++i) {
            sum += samples_[i].weight * head_sums_[i * heads + head];
        }
        in.history->lse[head] += drift(sum);
    }
}

// Ties go to the lower span: the same selection always leaves the same history.
void LabelSelector::note_spans(std::span<const uint32_t> chosen, SelectHistory& history) {
    span_counts_.clear();
    for (const uint32_t slot : chosen) {
        const uint32_t span = slot / kSpanSlots;
        if (span_counts_.empty() || span_counts_.back().second != span) {
            span_counts_.push_back({0, span});
        }
        span_counts_.back().first++;
    }
    const size_t kept = std::min<size_t>(SelectHistory::kSpansMax, span_counts_.size());
    std::partial_sort(span_counts_.begin(), span_counts_.begin() + static_cast<ptrdiff_t>(kept),
                      span_counts_.end(), [](const auto& a, const auto& b) {
                          return a.first != b.first ? a.first > b.first : a.second < b.second;
                      });
    history.spans.clear();
    for (size_t i = 0; i < kept; ++i) history.spans.push_back(span_counts_[i].second);
    std::sort(history.spans.begin(), history.spans.end());
}

bool LabelSelector::drifted(const SelectInput& in) const {
    const uint32_t heads = in.group->q_head_count();
    float drift_min = kInfinity;
    float drift_max = -kInfinity;
    for (uint32_t head = 0; head < heads; ++head) {
        double sum = 0;
        for (uint32_t part = 0; part < part_count_; ++part) sum += head_sums_[part * heads + head];
        const float moved = drift(sum);
        in.history->lse[head] += moved;
        drift_min = std::min(drift_min, moved);
        drift_max = std::max(drift_max, moved);
    }
    return drift_max - drift_min > kDriftMax || drift_max > 20.0F || drift_min < -20.0F;
}

uint32_t LabelSelector::select(const SelectInput& in, SelectOutput& out) {
    Stats& stats = *out.stats;
    const uint64_t started = now_ns();
    SelectHistory& history = *in.history;
    const uint32_t heads = in.group->q_head_count();
    if (!history.known) {
        history.lse.assign(heads, 0.0F);
        history.threshold = -kInfinity;
        history.spans.clear();
        history.spans.reserve(SelectHistory::kSpansMax);
        history.known = true;
    }
    prepare_queries(in);
    estimate_lse(in);
    float threshold = candidate_threshold(combine_, history);
    scan_all(in, threshold);
    for (uint32_t scans = 1; drifted(in) && scans < kScansMax; ++scans) {
        stats.rescans++;
        threshold = -kInfinity;
        scan_all(in, threshold);
    }
    const uint64_t scored = now_ns();

    kernels::TopkInput topk;
    topk.scores = scores_;
    topk.slot_count = scanned_spans(in) * kSpanSlots;
    topk.k = in.rows;
    topk.parts = threshold == -kInfinity ? nullptr : candidates_.data();
    topk.part_count = threshold == -kInfinity ? 0 : part_count_;
    kernels::TopkOutput best;
    best.slots = out.slots;
    backend_.topk(topk, best, topk_workspace_);
    history.threshold = best.threshold;
    note_spans({out.slots, best.count}, history);

    const uint64_t selected = now_ns();
    stats.score_ns += scored - started;
    stats.select_ns += selected - scored;
    if (out.trace != nullptr) {
        out.trace->add(TraceStage::score, in.group->layer, started, scored);
        out.trace->add(TraceStage::select, in.group->layer, scored, selected);
    }
    stats.guess_misses += best.guess_held ? 0 : 1;
    stats.label_bytes_read += uint64_t{topk.slot_count} / kSpanSlots *
                              in.labels->span_stride_bytes();
    return best.count;
}

}  // namespace shoal
