// Exact attention of many queries: tiles of 72 rows x 128 slots in f32, online softmax.
//
// An item (prefill_plan.hpp) walks the slot tiles in order. Each tile's K (transposed) and V are
// packed to f32 once and serve every row tile of the item (11 of them for 512 queries of S on two
// threads), so that packing is about 1 % of the work. The result of a row depends only on the call,
// since hidden slots weigh exactly 0 and a tile that a row does not see leaves its state as it was.
// Work: 4 * head_dim FLOP per visible (row, slot) pair. Bench: bench/prefill.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/prefill.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/cpu.hpp"
#include "kernels/cpu/prefill_call.hpp"
#include "kernels/cpu/prefill_tile-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

void pack_tile(const PrefillItem& item, uint32_t slot_first, const SpanMask& seen) {
    const KvView& kv = item.call->in->kv;
    switch (kv.format.k_dtype) {
        case DType::f16:
            pack_k<hwy::float16_t>(kv, item.kv_head, slot_first, seen, item.k_packed);
            break;
        case DType::bf16:
            pack_k<hwy::bfloat16_t>(kv, item.kv_head, slot_first, seen, item.k_packed);
            break;
        case DType::f32: pack_k<float>(kv, item.kv_head, slot_first, seen, item.k_packed); break;
        case DType::q8: pack_k<int8_t>(kv, item.kv_head, slot_first, seen, item.k_packed); break;
    }
    switch (kv.format.v_dtype) {
        case DType::f16:
            pack_v<hwy::float16_t>(kv, item.kv_head, slot_first, seen, item.v_packed);
            break;
        case DType::bf16:
            pack_v<hwy::bfloat16_t>(kv, item.kv_head, slot_first, seen, item.v_packed);
            break;
        case DType::f32: pack_v<float>(kv, item.kv_head, slot_first, seen, item.v_packed); break;
        case DType::q8: pack_v<int8_t>(kv, item.kv_head, slot_first, seen, item.v_packed); break;
    }
}

void attend_row_tile(const PrefillItem& item, uint32_t index, const TileVisibility& view) {
    const PieceFormat& format = item.call->in->kv.format;
    const RowSpan span = item.call->rows_of(item.row_tile(index));
    const size_t row = size_t{index} * kRowTile;
    const uint32_t rows = (span.count + 2) / 3 * 3;
    HWY_ALIGN float factors[kRowTilePadded] = {};
    SoftmaxTile tile;
    tile.scores = item.scores;
    tile.rows = rows;
    tile.begin = view.begin / kLanes * kLanes;
    tile.end = (view.end + kLanes - 1) / kLanes * kLanes;
    tile.max = item.max + row;
    tile.sum = item.sum + row * kLanesMax;
    tile.factors = factors;
    product({.a = item.q + row * format.k_head_dim, .a_stride = format.k_head_dim,
             .b = item.k_packed, .b_stride = kPackedStride, .depth = format.k_head_dim,
             .c = item.scores, .c_stride = kSlotTile, .factors = nullptr},
            rows, tile.begin, tile.end);
    if (view.masked || view.begin != tile.begin || view.end != tile.end) {
        const uint64_t* seen[kRowTile];
        for (uint32_t r = 0; r < rows; ++r) {
            seen[r] = view.query_seen[item.call->query_of(span, std::min(r, span.count - 1))];
        }
        mask_scores(tile, seen);
    }
    softmax_tile(tile);
    product({.a = item.scores + view.begin, .a_stride = kSlotTile,
             .b = item.v_packed + size_t{view.begin} * v_packed_stride(format.v_head_dim),
             .b_stride = v_packed_stride(format.v_head_dim), .depth = view.end - view.begin,
             .c = item.acc + row * format.v_head_dim, .c_stride = format.v_head_dim,
             .factors = factors},
            rows, 0, format.v_head_dim);
}

// What each row tile of an item sees of a slot tile, and all together.
struct ItemView {
    TileVisibility tiles[kGroupTilesMax];
    SpanMask seen;
    uint32_t seen_by = 0;
};

void see_item(const PrefillItem& item, uint32_t slot_first, ItemView& view) {
    view.seen = SpanMask{};
    view.seen_by = 0;
    for (uint32_t index = 0; index < item.row_tile_count; ++index) {
        const RowSpan span = item.call->rows_of(item.row_tile(index));
        TileVisibility& tile = view.tiles[index];
        see_tile(*item.call->in, span.query_first, span.query_count, slot_first, tile);
        view.seen.visible[0] |= tile.seen.visible[0];
        view.seen.visible[1] |= tile.seen.visible[1];
        view.seen_by += tile.none() ? 0 : 1;
    }
}

void prefill_item_here(const PrefillItem& item) {
    ItemView views[2];
    ItemView* view = &views[0];
    ItemView* next = &views[1];
    load_queries(item);
    start_states(item);
    if (item.slot_begin < item.slot_end) see_item(item, item.slot_begin, *view);
    for (uint32_t slot = item.slot_begin; slot < item.slot_end; slot += kSlotTile) {
        const uint32_t slot_next = slot + kSlotTile;
        if (slot_next < item.slot_end) see_item(item, slot_next, *next);
        if (view->seen_by != 0) pack_tile(item, slot, view->seen);
        // The next tile's rows arrive while this one is computed, a share with every row tile.
        uint32_t fetched = 0;
        uint32_t done = 0;
        for (uint32_t index = 0; index < item.row_tile_count; ++index) {
            if (view->tiles[index].none()) continue;
            const uint32_t fetch_end = slot_next < item.slot_end
                                           ? kSlotTile * ++done / view->seen_by
                                           : 0;
            prefetch_rows(item.call->in->kv, item.kv_head, slot_next, next->seen, fetched,
                          fetch_end);
            fetched = fetch_end;
            attend_row_tile(item, index, view->tiles[index]);
        }
        std::swap(view, next);
    }
    if (item.ends) store_results(item);
    else save_states(item);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(prefill_item_here);
void prefill_item(const PrefillItem& item) { HWY_DYNAMIC_DISPATCH(prefill_item_here)(item); }

}  // namespace shoal::kernels::cpu
#endif
