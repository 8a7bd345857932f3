// One function asks for all memory of a session; plan() runs it with an arena that only counts.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/adaptive_rows.hpp"
#include "runtime/guess_queries.hpp"
#include "runtime/query_view.hpp"
#include "runtime/session_state.hpp"

namespace shoal {

using offload::MemoryTag;
using offload::Region;

namespace {

// What is written to disk together of one group: writes of 128 KiB, several
// in flight, reach the rate of sequential ones.
constexpr uint64_t kExtentBytes = 128 << 10;

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

uint64_t prefill_state_bytes(const SessionState& state) {
    uint64_t most = 0;
    for (const Group& group : state.groups.all()) {
        most = std::max<uint64_t>(
            most, kernels::prefill_state_bytes(group.piece, group.q_per_kv,
                                               state.options.queries_per_step_max));
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

uint64_t guess_query_bytes(const SessionState& state) {
    return sizeof(float) *
           GuessQueries::float_count(state.shape,
                                     state.options.store_count_max * Session::kHintQueries);
}

// Slots that a guess of a group selects at most.
uint64_t guess_bytes(const SessionState& state) {
    uint64_t rows = 0;
    for (const Group& group : state.groups.all()) {
        rows = std::max<uint64_t>(
            rows, SessionState::list_rows(state.config, group, state.limits.slot_count_max));
    }
    rows = rows * state.config.prefetch.percent / 100;
    return sizeof(uint32_t) * std::min<uint64_t>(rows, state.limits.slot_count_max);
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

void SessionState::set_selector() {
    selector = make_selector(config, *backend, executor, selector_limits(limits),
                             workspace.selector.data());
    if (wrap_selector) selector = wrap_selector(std::move(selector));
}

uint64_t frame_bytes(const SessionState& state) {
    uint64_t most = 0;
    for (const Group& group : state.groups.all()) {
        most = std::max<uint64_t>(most, offload::make_block_layout(group.piece).block_bytes);
    }
    return most;
}

uint64_t frames_most(const SessionState& state) {
    uint64_t blocks = 0;
    for (const Group& group : state.groups.all()) {
        blocks += offload::block_count_of(offload::make_block_layout(group.piece),
                                          state.limits.slot_count_max);
    }
    return blocks * state.options.store_count_max;
}

// Twice what the largest wave holds, so that one can be written or read while the other is used,
// and the block that each group is filling.
uint32_t frames_least(const SessionState& state) {
    const uint32_t slots_max = state.limits.slot_count_max;
    uint64_t wave = 0;
    uint64_t last_spans = 0;
    for (const Group& group : state.groups.all()) {
        const uint64_t tokens = offload::make_block_layout(group.piece).block_tokens();
        const auto run = [tokens](uint64_t slots) { return slots / tokens + 2; };
        const uint32_t list = SessionState::list_rows(state.config, group, slots_max);
        wave = std::max({wave, run(2 * kSpansAtOnce * kernels::kSpanSlots),
                         run(kernels::attend_part_rows(slots_max)),
                         uint64_t{kernels::attend_part_rows(list)}});
        last_spans += run(kernels::kSpanSlots);
    }
    const uint64_t tails = uint64_t{state.groups.count()} * state.options.store_count_max;
    const uint64_t least = 2 * std::max(wave, last_spans) + tails;
    return static_cast<uint32_t>(std::min<uint64_t>(least, UINT32_MAX / 2));
}

namespace {

Status lay_out_cache(offload::Arena& arena, SessionState& state) {
    offload::BlockCache::Options options;
    options.frame_count = state.limits.frame_count;
    options.frame_bytes = static_cast<uint32_t>(frame_bytes(state));
    // The blocks that groups are filling, as far as they are written together.
    const uint64_t extents = uint64_t{state.groups.count()} * state.options.store_count_max *
                             (kExtentBytes / options.frame_bytes + 1);
    options.dirty_low =
        static_cast<uint32_t>(std::min<uint64_t>(extents, options.frame_count / 8));
    options.dirty_high = 2 * options.dirty_low;
    options.warn = [&state](const std::string& text) { state.log(LogLevel::warning, text); };
    Result<std::unique_ptr<offload::BlockCache>> cache =
        offload::BlockCache::create(arena, state.disk.get(), options);
    if (!cache) return cache.status();
    state.cache = std::move(*cache);
    return Status::ok();
}

}  // namespace

Status lay_out(offload::Arena& arena, SessionState& state) {
    const Limits& limits = state.limits;
    if (state.spills()) SHOAL_TRY(lay_out_cache(arena, state));
    for (uint32_t i = 0; i < state.options.store_count_max; ++i) {
        Result<std::unique_ptr<Store>> store =
            Store::create(arena, state.groups, limits.slot_count_max,
                          {.summaries = limits.summaries, .queries_max = limits.queries_max,
                           .check_rows = state.config.host.check_rows,
                           .cache = state.cache.get(), .identity = state.identity + i,
                           .name = fmt::format("store {}", i)});
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
    if (state.spills()) {
        SHOAL_TRY(take(arena, MemoryTag::workspace, prefill_state_bytes(state),
                       work.prefill_state));
        SHOAL_TRY(take(arena, MemoryTag::workspace, guess_query_bytes(state),
                       work.guess_queries));
    }
    SHOAL_TRY(take(arena, MemoryTag::workspace, partial_bytes(state), work.partials));
    SHOAL_TRY(take(arena, MemoryTag::index, view_bytes(limits), work.views));
    SHOAL_TRY(take(arena, MemoryTag::index, seen_bytes(state), work.seen));
    return lay_out_lists(arena, state);
}

uint64_t list_bytes(const SessionState& state) {
    uint64_t slots = 0;
    for (const Group& group : state.groups.all()) {
        slots += uint64_t{state.limits.views_max} *
                 SessionState::list_rows(state.config, group, state.limits.slot_count_max);
    }
    return slots * sizeof(uint32_t) + (state.spills() ? guess_bytes(state) : 0);
}

Status lay_out_lists(offload::Arena& arena, SessionState& state) {
    const Limits& limits = state.limits;
    state.workspace.lists = Region();
    state.workspace.guess = Region();
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
    if (state.spills()) {
        SHOAL_TRY(take(arena, MemoryTag::workspace, guess_bytes(state), state.workspace.guess));
    }
    return take(arena, MemoryTag::workspace, slots * sizeof(uint32_t), state.workspace.lists);
}

}  // namespace shoal
