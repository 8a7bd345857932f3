// One function asks for all memory of a session; plan() runs it with an arena that only counts.
#include <algorithm>

#include "runtime/adaptive_rows.hpp"
#include "runtime/query_view.hpp"
#include "runtime/session_state.hpp"

namespace shoal {

using offload::MemoryTag;
using offload::Region;

namespace {

Status take(offload::Arena& arena, MemoryTag tag, uint64_t bytes, Region& out) {
    Result<Region> region = arena.region(tag, bytes);
    if (!region) return region.status();
    out = std::move(*region);
    return Status::ok();
}

uint64_t prefill_bytes(const SessionState& state) {
    uint64_t most = 0;
    for (const Group& group : state.groups.all()) {
        most = std::max<uint64_t>(
            most, kernels::prefill_workspace_bytes(group.piece, group.q_per_kv,
                                                   state.options.queries_per_step_max,
                                                   state.limits.thread_count));
    }
    return most;
}

// The states of one attend: of every query, over the groups of a layer. The number of parts does
// not rise evenly with the length of a list, so the most that any list has is taken.
uint64_t partial_bytes(const SessionState& state) {
    const Limits& limits = state.limits;
    const uint32_t parts = std::min(
        kernels::kAttendPartsMax,
        (limits.slot_count_max + kernels::kAttendPartRowsMin - 1) / kernels::kAttendPartRowsMin);
    uint64_t floats_max = 0;
    for (uint32_t l = 0; l < state.shape.layers.size(); ++l) {
        const SlotRange groups = state.groups.of_layer(l);
        uint64_t floats = 0;
        for (uint32_t g = groups.begin; g < groups.end; ++g) {
            const Group& group = state.groups.all()[g];
            floats += kernels::attend_partial_floats(group.q_head_count(),
                                                     group.piece.v_head_dim);
        }
        floats_max = std::max(floats_max, floats);
    }
    return uint64_t{limits.queries_max} * parts * floats_max * sizeof(float);
}

uint64_t view_bytes(const Limits& limits) {
    return limits.views_max * QueryView::bytes(limits.slot_count_max);
}

uint64_t seen_bytes(const SessionState& state) {
    const uint64_t spans = (uint64_t{state.limits.slot_count_max} + kernels::kSpanSlots - 1) /
                           kernels::kSpanSlots;
    return state.options.store_count_max * spans * sizeof(kernels::SpanMask);
}

}  // namespace

uint32_t SessionState::list_rows(const Config& config, const Group& group,
                                 uint32_t slot_count_max) {
    if (!group.selects()) return 0;  // it attends the list of its anchor
    uint64_t rows = group.dense ? config.budget.dense_rows : config.budget.rows;
    if (config.budget.adaptive && !group.dense) rows *= static_cast<uint64_t>(kRowsFactorMax);
    rows += uint64_t{config.safety.sinks} + config.safety.window;
    return static_cast<uint32_t>(std::min<uint64_t>(rows, slot_count_max));
}

Limits limits_of(const Config& config, const SessionOptions& options, const Groups& groups,
                 uint32_t thread_count) {
    Limits limits;
    limits.slot_count_max = options.slots_per_store;
    limits.queries_max = config.budget.sparse_queries_max;
    limits.views_max = limits.queries_max * options.store_count_max;
    limits.thread_count = thread_count;
    for (const Group& group : groups.all()) {
        limits.q_head_count_max = std::max(limits.q_head_count_max, group.q_head_count());
        limits.kv_head_count_max = std::max(limits.kv_head_count_max, group.piece.kv_head_count);
        limits.v_head_dim_max = std::max(limits.v_head_dim_max, group.piece.v_head_dim);
    }
    const SelectorKind kind = config.selector.kind;
    limits.summaries.labels = uses_labels(kind);
    limits.summaries.row_bits = config.selector.row_bits;
    limits.summaries.channel_bits = static_cast<uint32_t>(config.selector.label_bits);
    limits.summaries.page_slots = uses_pages(kind) ? config.selector.page : 0;
    return limits;
}

SelectorLimits selector_limits(const Limits& limits) {
    return {limits.slot_count_max, limits.q_head_count_max, limits.kv_head_count_max,
            limits.summaries.page_slots};
}

Status lay_out(offload::Arena& arena, SessionState& state) {
    const Limits& limits = state.limits;
    for (uint32_t i = 0; i < state.options.store_count_max; ++i) {
        Result<std::unique_ptr<Store>> store =
            Store::create(arena, state.groups, limits.slot_count_max,
                          {.summaries = limits.summaries, .queries_max = limits.queries_max,
                           .check_rows = state.config.host.check_rows});
        if (!store) return store.status();
        if (arena.is_counting()) continue;
        (*store)->start_pages(*state.backend, limits.summaries.page_slots);
        state.stores.push_back(std::move(*store));
    }
    Workspace& work = state.workspace;
    SHOAL_TRY(take(arena, MemoryTag::workspace,
                   selector_workspace_bytes(state.config.selector.kind, selector_limits(limits)),
                   work.selector));
    SHOAL_TRY(take(arena, MemoryTag::workspace, prefill_bytes(state), work.prefill));
    SHOAL_TRY(take(arena, MemoryTag::workspace, partial_bytes(state), work.partials));
    SHOAL_TRY(take(arena, MemoryTag::index, view_bytes(limits), work.views));
    SHOAL_TRY(take(arena, MemoryTag::index, seen_bytes(state), work.seen));
    return lay_out_lists(arena, state);
}

Status lay_out_lists(offload::Arena& arena, SessionState& state) {
    const Limits& limits = state.limits;
    state.workspace.lists = Region();
    state.list_offset.clear();
    state.list_rows_max.clear();
    size_t slots = 0;
    for (const Group& group : state.groups.all()) {
        const uint32_t rows =
            SessionState::list_rows(state.config, group, limits.slot_count_max);
        state.list_offset.push_back(slots);
        state.list_rows_max.push_back(rows);
        slots += size_t{rows} * limits.views_max;
    }
    return take(arena, MemoryTag::workspace, slots * sizeof(uint32_t), state.workspace.lists);
}

}  // namespace shoal
