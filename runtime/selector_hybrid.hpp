// Bounds first, labels inside: page bounds find candidate pages, labels choose slots among them.
#pragma once

#include "runtime/selector_labels.hpp"
#include "runtime/selector_pages.hpp"

namespace shoal {

class HybridSelector {
public:
    HybridSelector(CombineKind combine, const kernels::Backend& backend, const Executor& executor,
                   const SelectorLimits& limits, std::byte* workspace);
    static uint64_t workspace_bytes(const SelectorLimits& limits);

    uint32_t select(const SelectInput& in, SelectOutput& out);

private:
    // The view's masks with every slot hidden but the candidates and the safety set.
    std::span<const kernels::SpanMask> keep_candidates(const SelectInput& in,
                                                       std::span<const uint32_t> pages);

    PageRanking ranking_;
    LabelSelector labels_;
    kernels::SpanMask* masks_ = nullptr;  // [span_count_max]
};

}  // namespace shoal
