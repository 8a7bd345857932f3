// Exact attention of many queries over everything they may see (prefill, verification).
//
// One call attends everything, or is made in passes over ascending ranges of slots, for rows that
// are in RAM a part at a time. How a call is cut into parts, items and tiles follows from all that
// is visible, never from the pass: the result is the same bit for bit however it is cut.
#pragma once

#include <cstdint>

#include "kernels/views.hpp"

namespace shoal::kernels {

struct PrefillInput {
    KvView kv;
    const float* q = nullptr;     // [query_count, kv_head_count * q_per_kv, k_head_dim]
    size_t q_stride = 0;          // floats from one query to the next
    size_t q_head_stride = 0;     // floats from one query head to the next
    uint32_t query_count = 0;
    uint32_t q_per_kv = 1;        // 1 .. 16
    // Visible slots of query i: ranges[range_offsets[i] .. range_offsets[i + 1]), ascending,
    // disjoint. A query that sees nothing gets zeros and lse = -inf.
    const SlotRange* ranges = nullptr;
    const uint32_t* range_offsets = nullptr;  // [query_count + 1]
    float scale = 0.0F;
    // The slots whose rows this pass reads: kv.blocks of all others may be null. Passes follow
    // each other, each beginning where the last ended, at a multiple of kSpanSlots; together they
    // hold everything that is visible. All else in `in` is the same in every pass.
    SlotRange pass{0, UINT32_MAX};
};

struct PrefillOutput {
    float* out = nullptr;         // [query_count, q_head_count, v_head_dim]
    size_t out_stride = 0;        // floats
    size_t out_head_stride = 0;   // floats
    float* lse = nullptr;         // [query_count, q_head_count], or null
    // What one pass hands to the next: prefill_state_bytes(), 64 B aligned, the same memory in all
    // of them; not read by the first. Null when one pass holds everything visible. `out` and
    // `lse` are written by the pass that ends it, or before, and are not read.
    void* state = nullptr;
};

// Workspace of a call; 64 B aligned. Depends on shapes and threads only.
size_t prefill_workspace_bytes(const PieceFormat& format, uint32_t q_per_kv,
                               uint32_t query_count_max, uint32_t thread_count);
// Bytes of PrefillOutput::state for calls of up to `query_count_max` queries, in any backend.
size_t prefill_state_bytes(const PieceFormat& format, uint32_t q_per_kv,
                           uint32_t query_count_max);

}  // namespace shoal::kernels
