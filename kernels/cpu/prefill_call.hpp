// One prefill call on its way through the executor: the item a worker holds, and the steps of an
// item that are not worth SIMD by hand.
#pragma once

#include "kernels/cpu/prefill_plan.hpp"

namespace shoal::kernels::cpu {

// Rows of one row tile, and the queries they belong to.
struct RowSpan {
    uint32_t first = 0;
    uint32_t count = 0;
    uint32_t query_first = 0;
    uint32_t query_count = 0;
};

struct PrefillCall {
    const PrefillInput* in = nullptr;
    const PrefillOutput* out = nullptr;
    PrefillPlan plan;
    PrefillLayout layout;
    float* workspace = nullptr;
    float* states = nullptr;      // of rows, [part_count][kv_head_count][row_count]
    uint32_t state_floats = 0;    // of one row in one part

    RowSpan rows_of(uint32_t row_tile) const;
    // Query of row `r` of a span, counted from the span's first query.
    uint32_t query_of(const RowSpan& span, uint32_t r) const {
        return (span.first + r) / in->q_per_kv - span.query_first;
    }
    // State of a row in one part of the slots: max, sum, out once the part is done; before, what
    // save_states() leaves there.
    float* part_state(uint32_t part, uint32_t kv_head, uint32_t row) const;
};

// Some row tiles of one KV head against one part of the slots, with a worker's buffers
// (PrefillLayout says their shapes).
struct PrefillItem {
    const PrefillCall* call = nullptr;
    uint32_t kv_head = 0;
    uint32_t group = 0;
    uint32_t part = 0;
    uint32_t row_tile_count = 0;
    uint32_t slot_begin = 0;  // of the part and in the pass; multiple of kSlotTile
    uint32_t slot_end = 0;
    bool begins = false;      // the part begins in this pass, else its rows have states
    bool ends = false;        // the part ends in it, else they are left with states
    float* q = nullptr;
    float* acc = nullptr;
    float* max = nullptr;
    float* sum = nullptr;
    float* k_packed = nullptr;
    float* v_packed = nullptr;
    float* scores = nullptr;

    uint32_t row_tile(uint32_t index) const {
        return row_tile_of_group(call->plan, group, index);
    }
};

// The `index`-th item of the pass.
PrefillItem make_prefill_item(const PrefillCall& call, uint32_t index, uint32_t worker);

// Queries times scale * log2(e). Padding rows are zero.
void load_queries(const PrefillItem& item);
// The empty state in every row, or what an earlier pass left.
void start_states(const PrefillItem& item);
// What the next pass goes on from.
void save_states(const PrefillItem& item);
// Finished rows to the output, or to the part's states when the slots are split.
void store_results(const PrefillItem& item);

// The whole of one item, with the instruction set in use.
void prefill_item(const PrefillItem& item);

}  // namespace shoal::kernels::cpu
