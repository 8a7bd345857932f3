#include "runtime/selector_labels.hpp"

#include <algorithm>
#include <limits>

#include "runtime/clock.hpp"

namespace shoal {

using kernels::kSpanSlots;

namespace {

// A part's candidates may be written past its last one, a vector at a time.
constexpr uint32_t kCandidateSlack = 64;
constexpr uint32_t kPartCandidates = kPartSpans * kSpanSlots + kCandidateSlack;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Multiples of 64 B: the pieces of the workspace stay aligned.
size_t scores_bytes(const SelectorLimits& limits) {
    return size_t{span_count_of(limits.slot_count_max)} * kSpanSlots * sizeof(float);
}
size_t candidate_bytes(const SelectorLimits& limits) {
    const size_t parts = part_count_of(span_count_of(limits.slot_count_max));
    return parts * kPartCandidates * sizeof(uint32_t);
}

uint32_t scanned_spans(const SelectInput& in) {
    return std::min(static_cast<uint32_t>(in.masks.size()), in.labels->span_count());
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
      normaliser_(executor, limits, workspace + scores_bytes(limits) + candidate_bytes(limits)),
      queries_(limits.q_head_count_max),
      candidates_(part_count_of(span_count_of(limits.slot_count_max))),
      scores_(reinterpret_cast<float*>(workspace)),
      candidate_slots_(reinterpret_cast<uint32_t*>(workspace + scores_bytes(limits))),
      topk_workspace_(workspace + scores_bytes(limits) + candidate_bytes(limits) +
                      HeadNormaliser::workspace_bytes(limits)) {}

uint64_t LabelSelector::workspace_bytes(const SelectorLimits& limits) {
    return scores_bytes(limits) + candidate_bytes(limits) +
           HeadNormaliser::workspace_bytes(limits) +
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

// Candidates are kept of the first pass alone: a repeated one has another measure.
void LabelSelector::scan(const SelectInput& in, const SpanPart& part, float threshold) {
    kernels::LabelScanInput scan;
    in.labels->describe(scan);
    scan.q_per_kv = in.group->q_per_kv;
    scan.queries = queries_.data();
    scan.lse_guess = in.history->lse.data();
    scan.masks = in.masks.data();
    scan.span_begin = part.spans.begin;
    scan.span_end = part.spans.end;
    scan.combine = combine_;
    scan.candidate_threshold = threshold;
    kernels::LabelScanOutput out;
    out.scores = scores_;
    out.head_sums = part.head_sums;
    const bool wanted = part.pass == 1 && threshold != -kInfinity;
    if (wanted) out.candidates = candidate_slots_ + size_t{part.index} * kPartCandidates;
    backend_.label_scan(scan, out);
    if (wanted) candidates_[part.index] = {out.candidates, out.candidate_count};
}

uint32_t LabelSelector::select(const SelectInput& in, SelectOutput& out) {
    Stats& stats = *out.stats;
    const uint64_t started = now_ns();
    SelectHistory& history = *in.history;
    history.prepare(in.group->q_head_count());
    prepare_queries(in);
    const float threshold = candidate_threshold(combine_, history);
    const uint32_t span_end = scanned_spans(in);
    const uint32_t passes =
        normaliser_.run(span_end, history.lse, history.spans,
                        [&](const SpanPart& part) { scan(in, part, threshold); });
    stats.rescans += passes - 1;
    const uint64_t scored = now_ns();

    const bool guessed = passes == 1 && threshold != -kInfinity;
    kernels::TopkInput topk;
    topk.scores = scores_;
    topk.slot_count = span_end * kSpanSlots;
    topk.k = in.rows;
    topk.parts = guessed ? candidates_.data() : nullptr;
    topk.part_count = guessed ? part_count_of(span_end) : 0;
    kernels::TopkOutput best;
    best.slots = out.slots;
    backend_.topk(topk, best, topk_workspace_);
    history.threshold = best.threshold;
    normaliser_.note_spans({out.slots, best.count}, history.spans);

    const uint64_t selected = now_ns();
    stats.score_ns += scored - started;
    stats.select_ns += selected - scored;
    if (out.trace != nullptr) {
        out.trace->add(TraceStage::score, in.group->layer, started, scored);
        out.trace->add(TraceStage::select, in.group->layer, scored, selected);
    }
    stats.guess_misses += best.guess_held ? 0 : 1;
    const auto read = std::count_if(in.masks.begin(), in.masks.begin() + span_end,
                                    [](const auto& mask) { return !mask.none_visible(); });
    stats.label_bytes_read += static_cast<uint64_t>(read) * in.labels->span_stride_bytes();
    return best.count;
}

}  // namespace shoal
