#include "runtime/selector.hpp"

#include <bit>

#include "runtime/selector_hybrid.hpp"
#include "runtime/selector_labels.hpp"
#include "runtime/selector_pages.hpp"
#include "runtime/selector_simple.hpp"

namespace shoal {

static_assert(SelectorPolicy<LabelSelector> && SelectorPolicy<DenseSelector> &&
              SelectorPolicy<RecentSelector> && SelectorPolicy<PageSelector> &&
              SelectorPolicy<HybridSelector>);

void SelectHistory::reserve(uint32_t q_head_count) {
    lse.reserve(q_head_count);
    bound_lse.reserve(q_head_count);
    spans.reserve(HeadNormaliser::kHeavySpansMax);
}

void SelectHistory::prepare(uint32_t q_head_count) {
    if (known) return;
    reserve(q_head_count);
    lse.assign(q_head_count, 0.0F);
    bound_lse.assign(q_head_count, 0.0F);
    threshold = -1.0F / 0.0F;
    spans.clear();
    known = true;
}

uint32_t DenseSelector::select(const SelectInput& in, SelectOutput& out) {
    uint32_t count = 0;
    for (uint32_t word = 0; word < in.masks.size() * 2 && count < in.rows; ++word) {
        uint64_t bits = in.masks[word / 2].selectable[word % 2];
        for (; bits != 0 && count < in.rows; bits &= bits - 1) {
            out.slots[count++] = word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
        }
    }
    return count;
}

uint64_t selector_workspace_bytes(SelectorKind kind, const SelectorLimits& limits) {
    switch (kind) {
        case SelectorKind::labels: return LabelSelector::workspace_bytes(limits);
        case SelectorKind::page_bounds: return PageSelector::workspace_bytes(limits);
        case SelectorKind::hybrid: return HybridSelector::workspace_bytes(limits);
        case SelectorKind::dense:
        case SelectorKind::recent: return 0;
    }
    return 0;
}

Selector make_selector(const Config& config, const kernels::Backend& backend,
                       const Executor& executor, const SelectorLimits& limits,
                       std::byte* workspace) {
    const CombineKind combine = config.selector.combine;
    switch (config.selector.kind) {
        case SelectorKind::labels:
            return Selector(std::make_unique<LabelSelector>(combine, backend, executor, limits,
                                                            workspace));
        case SelectorKind::page_bounds:
            return Selector(std::make_unique<PageSelector>(combine, backend, executor, limits,
                                                           workspace));
        case SelectorKind::hybrid:
            return Selector(std::make_unique<HybridSelector>(combine, backend, executor, limits,
                                                             workspace));
        case SelectorKind::dense: return Selector(std::make_unique<DenseSelector>());
        case SelectorKind::recent: return Selector(std::make_unique<RecentSelector>());
    }
    return {};
}

}  // namespace shoal
