// Double Sparsity (arXiv 2408.07092): scores every slot from its label, keeps the best rows.
//
// The heads of a group are made comparable by their own softmax normaliser: a head's score is
// taken relative to its log-sum-exp, first estimated from some spans (that of the last step is off
// by several bits for most heads: queries differ too much), then corrected by the pass itself. When
// the estimate was so wrong that heads moved apart, the pass is repeated (counted in
// Stats::rescans). Raw scores of different heads are never compared.
#pragma once

#include <span>

#include "runtime/selector.hpp"

namespace shoal {

class LabelSelector {
public:
    LabelSelector(CombineKind combine, const kernels::Backend& backend, const Executor& executor,
                  const SelectorLimits& limits, std::byte* workspace);
    static uint64_t workspace_bytes(const SelectorLimits& limits);

    uint32_t select(const SelectInput& in, SelectOutput& out);

private:
    void prepare_queries(const SelectInput& in);
    void scan(const SelectInput& in, SlotRange spans, float candidate_threshold,
              kernels::LabelScanOutput& out) const;
    void estimate_lse(const SelectInput& in);
    void pick_samples(const SelectInput& in);
    void note_spans(std::span<const uint32_t> chosen, SelectHistory& history);
    void scan_all(const SelectInput& in, float candidate_threshold);
    // Moves the history's lse to this step's; true when the scores must be made again.
    bool drifted(const SelectInput& in) const;

    kernels::Combine combine_;
    const kernels::Backend& backend_;
    Executor executor_;
    std::vector<kernels::LabelQuery> queries_;        // [q_head_count_max]
    // Spans looked at before the pass, and how many spans each of them stands for.
    struct Sample {
        uint32_t span = 0;
        double weight = 1;
    };
    std::vector<Sample> samples_;
    std::vector<std::pair<uint32_t, uint32_t>> span_counts_;  // slots chosen, span
    std::vector<kernels::CandidatePart> candidates_;  // [part_count]
    double* head_sums_ = nullptr;                     // [part_count, q_head_count]
    float* scores_ = nullptr;                         // [slot_count_max]
    uint32_t* candidate_slots_ = nullptr;             // [part_count][part slots + slack]
    void* topk_workspace_ = nullptr;
    uint32_t part_count_ = 0;
};

}  // namespace shoal
