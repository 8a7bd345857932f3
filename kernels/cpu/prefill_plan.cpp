#include "kernels/cpu/prefill_plan.hpp"

#include <algorithm>

#include "shoal/status.hpp"

namespace shoal::kernels::cpu {
namespace {

constexpr uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Row tiles of an item: more make packing cheaper and the workspace larger. Queries and sums
// take 800 KB; a row tile's share passes through L2 once per slot tile, 1 B per cycle.
uint32_t tiles_per_group_max(const PieceFormat& format) {
    return std::clamp(4096U / (format.k_head_dim + format.v_head_dim), 4U, kGroupTilesMax);
}

// The number of groups that leaves the last thread done first. Packing a slot tile costs about
// 0.1 of computing a row tile with it.
uint32_t choose_row_groups(uint32_t row_tiles, uint32_t groups_min, uint32_t items_per_group,
                           uint32_t threads) {
    uint32_t best = groups_min;
    float best_cost = 0.0F;
    for (uint32_t groups = groups_min; groups <= row_tiles; ++groups) {
        const auto rounds = static_cast<float>(divide_up(groups * items_per_group, threads));
        const float cost = rounds * (static_cast<float>(divide_up(row_tiles, groups)) + 0.1F);
        if (best_cost == 0.0F || cost < best_cost) {
            best = groups;
            best_cost = cost;
        }
    }
    return best;
}

// Where nothing is visible, every pass is the whole call, and writes zeros.
void plan_pass(const SlotRange& pass, PrefillPlan& plan) {
    plan.pass = {plan.slot_begin, plan.slot_end};
    plan.parts = {0, plan.part_count};
    plan.begins = true;
    plan.ends = true;
    if (plan.slot_end == 0) return;
    SHOAL_ASSERT(pass.begin % kSlotTile == 0);
    SHOAL_ASSERT(pass.end % kSlotTile == 0 || pass.end >= plan.slot_end);
    plan.begins = pass.begin <= plan.slot_begin;
    plan.ends = pass.end >= plan.slot_end;
    plan.pass = {std::max(pass.begin, plan.slot_begin), std::min(pass.end, plan.slot_end)};
    if (plan.pass.begin >= plan.pass.end) {
        plan.parts = {0, 0};
        return;
    }
    plan.parts = {(plan.pass.begin - plan.slot_begin) / plan.part_slots,
                  divide_up(plan.pass.end - plan.slot_begin, plan.part_slots)};
}

}  // namespace

PrefillPlan plan_prefill(const PrefillInput& in, uint32_t thread_count) {
    PrefillPlan plan;
    plan.row_count = in.query_count * in.q_per_kv;
    plan.row_tile_count = divide_up(plan.row_count, kRowTile);
    uint32_t begin = UINT32_MAX;
    uint32_t end = 0;
    for (uint32_t query = 0; query < in.query_count; ++query) {
        if (in.range_offsets[query] == in.range_offsets[query + 1]) continue;
        begin = std::min(begin, in.ranges[in.range_offsets[query]].begin);
        end = std::max(end, in.ranges[in.range_offsets[query + 1] - 1].end);
    }
    plan.slot_begin = end == 0 ? 0 : begin / kSlotTile * kSlotTile;
    plan.slot_end = end;
    const uint32_t slots = std::max(plan.slot_end - plan.slot_begin, 1U);
    plan.part_slots = divide_up(slots, kSlotTile) * kSlotTile;
    if (plan.row_count <= kPrefillSplitRowsMax) {
        const uint32_t even = divide_up(divide_up(slots, kPrefillPartsMax), kSlotTile) * kSlotTile;
        plan.part_slots = std::max(even, kPrefillPartSlotsMin);
    }
    plan.part_count = divide_up(slots, plan.part_slots);
    const uint32_t items_per_group = in.kv.format.kv_head_count * plan.part_count;
    const uint32_t groups_min = divide_up(plan.row_tile_count, tiles_per_group_max(in.kv.format));
    plan.row_groups =
        choose_row_groups(plan.row_tile_count, groups_min, items_per_group, thread_count);
    plan.items_per_part = in.kv.format.kv_head_count * plan.row_groups;
    plan_pass(in.pass, plan);
    return plan;
}

uint32_t row_tile_of_group(const PrefillPlan& plan, uint32_t group, uint32_t index) {
    const uint32_t in_round = index % 2 == 0 ? group : plan.row_groups - 1 - group;
    return std::min(index * plan.row_groups + in_round, plan.row_tile_count);
}

void see_tile(const PrefillInput& in, uint32_t query_first, uint32_t query_count,
              uint32_t slot_first, TileVisibility& out) {
    out = TileVisibility{};
    const uint32_t slot_last = slot_first + (kSlotTile - 1);
    uint64_t by_all[2] = {~uint64_t{0}, ~uint64_t{0}};
    for (uint32_t query = 0; query < query_count; ++query) {
        const SlotRange* range = in.ranges + in.range_offsets[query_first + query];
        const SlotRange* ranges_end = in.ranges + in.range_offsets[query_first + query + 1];
        range = std::upper_bound(range, ranges_end, slot_first,
                                 [](uint32_t slot, const SlotRange& r) { return slot < r.end; });
        uint64_t seen[2] = {0, 0};
        for (; range != ranges_end && range->begin <= slot_last; ++range) {
            const uint32_t from = std::max(range->begin, slot_first) - slot_first;
            const uint32_t to = std::min(range->end - slot_first, kSlotTile);
            if (from >= to) continue;
            out.begin = std::min(out.begin, from);
            out.end = std::max(out.end, to);
            for (uint32_t word = 0; word < 2; ++word) {
                const uint32_t first = std::clamp(from, word * 64, word * 64 + 64) - word * 64;
                const uint32_t last = std::clamp(to, word * 64, word * 64 + 64) - word * 64;
                if (first < last) {
                    seen[word] |= (~uint64_t{0} >> (64 - (last - first))) << first;
                }
            }
        }
        for (uint32_t word = 0; word < 2; ++word) {
            out.query_seen[query][word] = seen[word];
            out.seen.visible[word] |= seen[word];
            by_all[word] &= seen[word];
        }
    }
    // One run that all queries see whole needs no masks.
    uint32_t by_all_count = 0;
    for (uint64_t word : by_all) by_all_count += static_cast<uint32_t>(__builtin_popcountll(word));
    out.masked = !out.none() && by_all_count != out.end - out.begin;
}

PrefillLayout lay_out_prefill(const PieceFormat& format, uint32_t tiles_per_group,
                              uint32_t thread_count, uint32_t part_count, uint32_t row_count) {
    PrefillLayout layout;
    const auto take = [&layout](size_t floats) {
        const size_t at = layout.total_floats;
        layout.total_floats += (floats + 15) / 16 * 16;
        return at;
    };
    const size_t rows = size_t{tiles_per_group} * kRowTile;
    layout.q = take(rows * format.k_head_dim);
    layout.acc = take(rows * format.v_head_dim);
    layout.max = take(rows);
    layout.sum = take(rows * kLanesMax);
    layout.k_packed = take(size_t{format.k_head_dim} * kPackedStride);
    layout.v_packed = take(size_t{kSlotTile} * v_packed_stride(format.v_head_dim));
    layout.scores = take(size_t{kRowTile} * kSlotTile);
    layout.worker_floats = layout.total_floats;
    layout.total_floats *= thread_count;
    layout.parts = layout.total_floats;
    if (part_count > 1) {
        take(size_t{part_count} * format.kv_head_count * row_count * (format.v_head_dim + 2U));
    }
    return layout;
}

}  // namespace shoal::kernels::cpu

namespace shoal::kernels {

size_t prefill_workspace_bytes(const PieceFormat& format, uint32_t q_per_kv,
                               uint32_t query_count_max, uint32_t thread_count) {
    const uint32_t rows = query_count_max * q_per_kv;
    const uint32_t tiles =
        std::min((rows + cpu::kRowTile - 1) / cpu::kRowTile, cpu::tiles_per_group_max(format));
    const uint32_t rows_split = std::min(rows, cpu::kPrefillSplitRowsMax);
    return sizeof(float) * cpu::lay_out_prefill(format, tiles, thread_count,
                                                cpu::kPrefillPartsMax, rows_split)
                               .total_floats;
}

// A row takes a float per lane and dimension, once or once per part; in ref, a double per
// dimension.
size_t prefill_state_bytes(const PieceFormat& format, uint32_t q_per_kv,
                           uint32_t query_count_max) {
    const size_t rows = size_t{query_count_max} * q_per_kv;
    const size_t rows_split = std::min<size_t>(rows, cpu::kPrefillSplitRowsMax);
    const size_t states = std::max(rows, rows_split * cpu::kPrefillPartsMax);
    const size_t cpu_bytes = states * cpu::pass_state_floats(format.v_head_dim) * sizeof(float);
    const size_t ref_bytes = rows * (format.v_head_dim + 2U) * sizeof(double);
    return format.kv_head_count * std::max(cpu_bytes, ref_bytes);
}

}  // namespace shoal::kernels
