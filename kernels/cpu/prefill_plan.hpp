// How a prefill call is cut into independent items, and what each may see. No SIMD here.
//
// The rows of a KV head are its query heads of all queries, query-major: row = query * q_per_kv
// + head. They are cut into row tiles; an item is some row tiles of one KV head (and, when there
// are few rows, one part of the slots). An item packs each slot tile once for all its row tiles.
// Row tiles are dealt to the items of a head forth and back, so that causal masks, where later
// rows see more, leave all items with equal work.
#pragma once

#include "kernels/prefill.hpp"

namespace shoal::kernels::cpu {

// Rows of a row tile, a multiple of the micro-kernel's 6: 48 and 96 are 5 to 10 % slower (L1).
inline constexpr uint32_t kRowTile = 72;
inline constexpr uint32_t kRowTilePadded = 80;  // a multiple of every vector
inline constexpr uint32_t kSlotTile = 128;  // slots, at multiples of 128
// Floats from one row of a packed tile to the next, K and V; powers of two would alias in L1.
inline constexpr uint32_t kPackedStride = kSlotTile + 16;
constexpr uint32_t v_packed_stride(uint32_t v_head_dim) { return v_head_dim + 16; }
inline constexpr uint32_t kPrefillPartsMax = 8;
inline constexpr uint32_t kPrefillPartSlotsMin = 1024;
inline constexpr uint32_t kPrefillSplitRowsMax = 216;  // more rows: slots are not split
inline constexpr uint32_t kGroupTilesMax = 32;  // row tiles of an item
inline constexpr uint32_t kLanesMax = 16;

struct PrefillPlan {
    uint32_t row_count = 0;
    uint32_t row_tile_count = 0;
    uint32_t row_groups = 0;     // items that share a KV head's row tiles
    uint32_t slot_begin = 0;     // multiple of kSlotTile
    uint32_t slot_end = 0;       // after the last slot that any query sees
    uint32_t part_slots = 0;     // multiple of kSlotTile; depends on the call, not on threads
    uint32_t part_count = 0;
    uint32_t items_per_part = 0; // kv_head_count * row_groups
    // What of it the pass of this call does; all else above is the same in every pass.
    SlotRange pass;              // slots that are visible and in the pass, or none
    SlotRange parts;             // parts that the pass touches
    bool begins = false;         // no earlier pass saw anything
    bool ends = false;           // no later pass will

    uint32_t item_count() const { return items_per_part * (parts.end - parts.begin); }
    bool is_whole() const { return begins && ends; }
    uint32_t tiles_per_group() const { return (row_tile_count + row_groups - 1) / row_groups; }
};

PrefillPlan plan_prefill(const PrefillInput& in, uint32_t thread_count);

// The `index`-th row tile of a group, or row_tile_count when it has no more.
uint32_t row_tile_of_group(const PrefillPlan& plan, uint32_t group, uint32_t index);

// What the queries of a row tile see of a slot tile.
struct TileVisibility {
    static constexpr uint32_t kQueriesMax = kRowTile;
    uint32_t begin = kSlotTile;  // slots [begin, end) of the tile hold everything that is seen
    uint32_t end = 0;
    bool masked = false;         // some query does not see all of [begin, end)
    SpanMask seen;               // by any query (`visible`)
    uint64_t query_seen[kQueriesMax][2];  // when masked
    bool none() const { return begin >= end; }
};

// Queries [query_first, query_first + query_count), slots [slot_first, slot_first + 128).
void see_tile(const PrefillInput& in, uint32_t query_first, uint32_t query_count,
              uint32_t slot_first, TileVisibility& out);

// Where a call's buffers lie in its workspace, in floats; every one starts at 64 B.
struct PrefillLayout {
    // Per worker, from its base:
    size_t q = 0;        // [tiles_per_group * kRowTile, k_head_dim] scaled queries
    size_t acc = 0;      // [tiles_per_group * kRowTile, v_head_dim]
    size_t max = 0;      // [tiles_per_group * kRowTile]
    size_t sum = 0;      // [tiles_per_group * kRowTile, kLanesMax] one sum per lane
    size_t k_packed = 0; // [k_head_dim, kPackedStride]
    size_t v_packed = 0; // [kSlotTile, v_packed_stride(v_head_dim)]
    size_t scores = 0;   // [kRowTile, kSlotTile]
    size_t worker_floats = 0;
    // After the workers: states of all parts, [part_count][kv_head_count][row_count] of
    // v_head_dim + 2 floats; none when the slots are not split. A call in passes has them in
    // PrefillOutput::state instead, wider.
    size_t parts = 0;
    size_t total_floats = 0;
};
// Floats of a row's state between passes: max, one sum per lane, acc.
constexpr uint32_t pass_state_floats(uint32_t v_head_dim) { return 1 + kLanesMax + v_head_dim; }
PrefillLayout lay_out_prefill(const PieceFormat& format, uint32_t tiles_per_group,
                              uint32_t thread_count, uint32_t part_count, uint32_t row_count);

}  // namespace shoal::kernels::cpu
