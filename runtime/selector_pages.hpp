// Quest (arXiv 2406.10774): scores pages from bounds of their keys, keeps the best pages whole.
//
// As published every query head picks pages for itself. Here the heads of a group pick together,
// made comparable as for labels, by the normaliser of their bounds; and the safety set, which lies
// outside the selector, takes no part of the budget.
#pragma once

#include <span>

#include "runtime/head_normaliser.hpp"
#include "runtime/selector.hpp"

namespace shoal {

// Pages by their bounds, best first.
class PageRanking {
public:
    PageRanking(CombineKind combine, const kernels::Backend& backend, const Executor& executor,
                const SelectorLimits& limits, std::byte* workspace);
    static uint64_t workspace_bytes(const SelectorLimits& limits);

    // The fewest best pages that hold `slots` selectable slots, or every page that holds one.
    // Ties go to the lower page. The pages stay where they are until the next call.
    std::span<uint32_t> best(const SelectInput& in, uint32_t slots, SelectOutput& out);
    float score(uint32_t page) const { return scores_[page]; }
    void note_spans(std::span<const uint32_t> chosen, SelectHistory& history) {
        normaliser_.note_spans(chosen, history.spans);
    }

private:
    void scan(const SelectInput& in, const SpanPart& part) const;
    // The k best pages into pages_, best first.
    uint32_t sort_best(uint32_t page_count, uint32_t k);

    kernels::Combine combine_;
    const kernels::Backend& backend_;
    HeadNormaliser normaliser_;
    float* scores_ = nullptr;    // [pages of whole spans]
    uint32_t* pages_ = nullptr;  // [as many]
    void* topk_workspace_ = nullptr;
};

// Bits of the page's slots that a selector may pick.
uint64_t selectable_bits(const SelectInput& in, uint32_t page);
// Counts the time since `started`, in nanoseconds, as selecting.
void add_select_time(const SelectInput& in, uint64_t started, SelectOutput& out);

class PageSelector {
public:
    PageSelector(CombineKind combine, const kernels::Backend& backend, const Executor& executor,
                 const SelectorLimits& limits, std::byte* workspace)
        : ranking_(combine, backend, executor, limits, workspace) {}
    static uint64_t workspace_bytes(const SelectorLimits& limits) {
        return PageRanking::workspace_bytes(limits);
    }

    uint32_t select(const SelectInput& in, SelectOutput& out);

private:
    PageRanking ranking_;
};

}  // namespace shoal
