#include "runtime/selector_hybrid.hpp"

#include <algorithm>

#include "runtime/clock.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::SpanMask;

namespace {

// Candidates per selected row.
constexpr uint32_t kCandidateFactor = 4;

size_t mask_bytes(const SelectorLimits& limits) {
    return (span_count_of(limits.slot_count_max) * sizeof(SpanMask) + 63) / 64 * 64;
}

}  // namespace

HybridSelector::HybridSelector(CombineKind combine, const kernels::Backend& backend,
                               const Executor& executor, const SelectorLimits& limits,
                               std::byte* workspace)
    : ranking_(combine, backend, executor, limits, workspace),
      labels_(combine, backend, executor, limits,
              workspace + PageRanking::workspace_bytes(limits)),
      masks_(reinterpret_cast<SpanMask*>(workspace + PageRanking::workspace_bytes(limits) +
                                         LabelSelector::workspace_bytes(limits))) {}

uint64_t HybridSelector::workspace_bytes(const SelectorLimits& limits) {
    return PageRanking::workspace_bytes(limits) + LabelSelector::workspace_bytes(limits) +
           mask_bytes(limits);
}

// The safety set stays visible: it holds most of the mass of many heads, and a head's normaliser
// without it would say that the rest matters more than it does.
std::span<const SpanMask> HybridSelector::keep_candidates(const SelectInput& in,
                                                          std::span<const uint32_t> pages) {
    for (size_t span = 0; span < in.masks.size(); ++span) {
        for (uint32_t word = 0; word < 2; ++word) {
            const SpanMask& mask = in.masks[span];
            masks_[span].visible[word] = mask.visible[word] & ~mask.selectable[word];
            masks_[span].selectable[word] = 0;
        }
    }
    for (const uint32_t page : pages) {
        const uint32_t first = page * in.pages->page_slots();
        SpanMask& mask = masks_[first / kSpanSlots];
        const uint32_t word = first % kSpanSlots / 64;
        const uint64_t bits = selectable_bits(in, page) << (first % 64);
        mask.visible[word] |= bits;
        mask.selectable[word] |= bits;
    }
    return {masks_, in.masks.size()};
}

uint32_t HybridSelector::select(const SelectInput& in, SelectOutput& out) {
    const uint64_t candidates = uint64_t{kCandidateFactor} * in.rows;
    const std::span<const uint32_t> pages = ranking_.best(
        in, static_cast<uint32_t>(std::min<uint64_t>(candidates, UINT32_MAX)), out);
    const uint64_t started = now_ns();
    SelectInput among = in;
    among.masks = keep_candidates(in, pages);
    add_select_time(in, started, out);
    return labels_.select(among, out);
}

}  // namespace shoal
