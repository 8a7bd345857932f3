#include "runtime/selector.hpp"

#include <bit>

#include "runtime/selector_labels.hpp"
#include "runtime/selector_simple.hpp"

namespace shoal {

static_assert(SelectorPolicy<LabelSelector> && SelectorPolicy<DenseSelector> &&
              SelectorPolicy<RecentSelector>);

uint32_t DenseSelector::select(const SelectInput& in, SelectOutput& out) {
    uint32_t count = 0;
    const std::span<const kernels::SpanMask> masks = in.view->masks();
    for (uint32_t word = 0; word < masks.size() * 2 && count < in.rows; ++word) {
        uint64_t bits = masks[word / 2].selectable[word % 2];
        for (; bits != 0 && count < in.rows; bits &= bits - 1) {
            out.slots[count++] = word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
        }
    }
    return count;
}

uint64_t selector_workspace_bytes(SelectorKind kind, const SelectorLimits& limits) {
    return kind == SelectorKind::labels ? LabelSelector::workspace_bytes(limits) : 0;
}

Selector make_selector(const Config& config, const kernels::Backend& backend,
                       const Executor& executor, const SelectorLimits& limits,
                       std::byte* workspace) {
    switch (config.selector.kind) {
        case SelectorKind::labels:
            return Selector(std::make_unique<LabelSelector>(config.selector.combine, backend,
                                                            executor, limits, workspace));
        case SelectorKind::dense: return Selector(std::make_unique<DenseSelector>());
        case SelectorKind::recent: return Selector(std::make_unique<RecentSelector>());
    }
    return {};
}

}  // namespace shoal
