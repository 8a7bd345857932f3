// What a session would take: lay_out() with an arena that only counts.
#include <fmt/format.h>

#include <algorithm>

#include "offload/memory_limits.hpp"
#include "runtime/session_state.hpp"

namespace shoal {

namespace {

// How many layers reuse a selection, for a reader of the plan.
void note_reuse(const SessionState& state, MemoryPlan& plan) {
    uint32_t layers = 0;
    for (const Group& group : state.groups.all()) {
        if (!group.selects() && group.kv_head_first == 0) ++layers;
    }
    if (layers == 0) return;
    plan.notes.push_back(fmt::format("{} layers attend what one of {} anchors selected: they keep "
                                     "nothing to select by",
                                     layers, state.config.sharing.anchors.size()));
}

// Bytes that a session with these options takes.
Status count(SessionState& state, MemoryPlan& plan) {
    offload::Arena counter = offload::Arena::counting();
    SHOAL_TRY(lay_out(counter, state));
    using offload::MemoryTag;
    plan.kv_bytes = counter.reserved_bytes(MemoryTag::kv);
    plan.label_bytes = counter.reserved_bytes(MemoryTag::labels);
    plan.index_bytes = counter.reserved_bytes(MemoryTag::index);
    plan.workspace_bytes = counter.reserved_bytes(MemoryTag::workspace);
    plan.total_bytes = counter.reserved_bytes();
    plan.disk_bytes = state.cache == nullptr ? 0 : state.cache->file_bytes();
    state.workspace = Workspace{};  // counted regions must not outlive the counter
    state.cache.reset();
    return Status::ok();
}

// The least that works with so many slots.
Status count_least(SessionState& state, uint32_t slots, MemoryPlan& plan) {
    state.options.slots_per_store = slots;
    state.limits.slot_count_max = slots;
    if (state.spills()) state.limits.frame_count = frames_least(state);
    return count(state, plan);
}

// With a disk and without host.kv_bytes: three quarters of what the files that the engine has
// mapped leave, its weights. They count as available, since the system could read them again.
uint64_t default_beside_disk(const SessionState& state, const offload::MemoryLimits& machine) {
    const uint64_t mapped = std::max(state.options.mapped_bytes, machine.mapped_bytes);
    return (machine.available_bytes - std::min(machine.available_bytes, mapped)) / 4 * 3;
}

// With a disk: as many blocks in RAM as there are, or as there is memory for.
void fill_frames(SessionState& state, const MemoryPlan& plan) {
    if (!state.spills() || plan.least_bytes > plan.available_bytes) return;
    const uint64_t each = frame_bytes(state) + offload::BlockCache::frame_overhead_bytes();
    // Regions are rounded up to pages; reconfigure() may ask for longer lists.
    const uint64_t kept = 2 * offload::kPageBytes + 4 * list_bytes(state);
    const uint64_t left = plan.available_bytes - plan.least_bytes;
    const uint64_t more = left < kept ? 0 : (left - kept) / each;
    const uint64_t most = std::max<uint64_t>(frames_most(state), state.limits.frame_count);
    state.limits.frame_count = static_cast<uint32_t>(
        std::min({state.limits.frame_count + more, most, uint64_t{UINT32_MAX / 2}}));
}

// The largest slots_per_store whose plan fits: bisection over the same lay_out().
Status find_fit(SessionState& state, MemoryPlan& plan) {
    uint32_t low = 0;
    uint32_t high = 1U << 28;
    while (low + 1 < high) {
        const uint32_t middle = low + (high - low) / 2;
        MemoryPlan tried;
        SHOAL_TRY(count_least(state, middle, tried));
        const bool fits = tried.total_bytes <= plan.available_bytes &&
                          tried.disk_bytes <= plan.disk_available_bytes;
        (fits ? low : high) = middle;
    }
    plan.slots_fit = low;
    return Status::ok();
}

}  // namespace

Status make_plan(SessionState& state, uint64_t disk_available_bytes, MemoryPlan& plan) {
    const offload::MemoryLimits machine = offload::read_memory_limits();
    const uint64_t asked = state.config.host.kv_bytes;
    const uint32_t slots = state.options.slots_per_store;
    plan.machine_bytes = machine.available_bytes;
    plan.available_bytes = std::min(asked == 0 ? UINT64_MAX : asked, machine.available_bytes);
    if (asked == 0 && state.spills()) plan.available_bytes = default_beside_disk(state, machine);
    const uint64_t disk_asked = state.config.disk.kv_bytes;
    if (state.spills()) {
        plan.disk_available_bytes =
            std::min(disk_asked == 0 ? UINT64_MAX : disk_asked, disk_available_bytes);
    }
    SHOAL_TRY(find_fit(state, plan));
    MemoryPlan more;
    MemoryPlan least;
    SHOAL_TRY(count_least(state, slots + 4096, more));
    SHOAL_TRY(count_least(state, slots, least));
    plan.least_bytes = least.total_bytes;
    plan.bytes_per_slot = (more.total_bytes - least.total_bytes) / 4096;
    fill_frames(state, plan);
    SHOAL_TRY(count(state, plan));
    if (asked > machine.available_bytes) {
        plan.notes.push_back(fmt::format("host.kv_bytes = {}: this machine offers {}",
                                         offload::bytes_text(asked), machine.available_text()));
    }
    note_reuse(state, plan);
    for (uint32_t l = 0; l < state.shape.layers.size(); ++l) {
        if (state.shape.layers[l].kind == LayerKind::sliding) {
            plan.notes.push_back(
                fmt::format("layer {} slides over {} tokens: kept whole, served dense", l,
                            state.shape.layers[l].window));
        }
    }
    return Status::ok();
}

Status check_fits(const SessionState& state, const MemoryPlan& plan) {
    const uint64_t disk_bytes = state.config.disk.kv_bytes;
    if (disk_bytes != 0 && plan.disk_bytes > disk_bytes) {
        return Status::error(
            StatusCode::out_of_memory,
            fmt::format("disk.kv_bytes = {}: {} slots take {} on disk",
                        offload::bytes_text(disk_bytes),
                        uint64_t{state.options.slots_per_store} * state.options.store_count_max,
                        offload::bytes_text(plan.disk_bytes)));
    }
    if (plan.total_bytes <= plan.available_bytes) return Status::ok();
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("options.slots_per_store = {}: needs {}: {} of memory are available ({}). "
                    "Largest context that fits: {} tokens",
                    state.options.slots_per_store, offload::bytes_text(plan.total_bytes),
                    offload::bytes_text(plan.available_bytes),
                    state.config.host.kv_bytes == 0 ? "what this machine offers"
                                                    : "host.kv_bytes and what this machine offers",
                    plan.slots_fit));
}

}  // namespace shoal
