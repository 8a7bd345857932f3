// Exact attention of many queries over everything they may see (prefill, verification).
#pragma once

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
};

struct PrefillOutput {
    float* out = nullptr;         // [query_count, q_head_count, v_head_dim]
    size_t out_stride = 0;        // floats
    size_t out_head_stride = 0;   // floats
    float* lse = nullptr;         // [query_count, q_head_count], or null
};

// Workspace of a call; 64 B aligned. Depends on shapes and threads only.
size_t prefill_workspace_bytes(const PieceFormat& format, uint32_t q_per_kv,
                               uint32_t query_count_max, uint32_t thread_count);

}  // namespace shoal::kernels
