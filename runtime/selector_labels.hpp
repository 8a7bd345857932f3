// Double Sparsity (arXiv 2408.07092): scores every slot from its label, keeps the best rows.
//
// The heads of a group are made comparable by their own softmax normaliser
// (runtime/head_normaliser.hpp).
#pragma once

#include <span>

#include "runtime/head_normaliser.hpp"
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
    void scan(const SelectInput& in, const SpanPart& part, float candidate_threshold);

    kernels::Combine combine_;
    const kernels::Backend& backend_;
    HeadNormaliser normaliser_;
    std::vector<kernels::LabelQuery> queries_;        // [q_head_count_max]
    std::vector<kernels::CandidatePart> candidates_;  // [part_count]
    float* scores_ = nullptr;                         // [slot_count_max]
    uint32_t* candidate_slots_ = nullptr;             // [part_count][part slots + slack]
    void* topk_workspace_ = nullptr;
};

}  // namespace shoal
