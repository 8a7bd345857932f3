// Decode attention over a list of slots, in parts that are cut by index alone.
//
// One routine serves sparse and dense: dense is the list of every visible slot. The list is cut
// into parts and tiles by index in the list, each part leaves a partial softmax state, and the
// states are merged in part order. Neither the tier a row came from, nor arrival order, nor the
// number of threads changes a cut: the result is the same bit for bit.
#pragma once

#include <algorithm>

#include "kernels/views.hpp"

namespace shoal::kernels {

inline constexpr uint32_t kAttendTileRows = 16;
inline constexpr uint32_t kAttendPartRowsMin = 128;
inline constexpr uint32_t kAttendPartsMax = 64;

// Rows in every part of a list of `count` slots but the last: a multiple of the tile.
constexpr uint32_t attend_part_rows(uint32_t count) {
    const uint32_t even = (count + kAttendPartsMax - 1) / kAttendPartsMax;
    const uint32_t tiled = (even + kAttendTileRows - 1) / kAttendTileRows * kAttendTileRows;
    return std::max(tiled, kAttendPartRowsMin);
}
constexpr uint32_t attend_part_count(uint32_t count) {
    return (count + attend_part_rows(count) - 1) / attend_part_rows(count);
}

struct AttendInput {
    KvView kv;
    const float* q =
        nullptr;  // [kv_head_count * q_per_kv, k_head_dim], heads of a KV head adjacent
    size_t q_head_stride = 0;    // floats from one query head to the next
    uint32_t q_per_kv = 1;       // 1 .. 16
    SlotList slots;              // 1 or more, ascending, every one written
    float scale = 0.0F;          // factor on q.k
};

// How far scores may exceed the `max` of a state: backends that keep a reference below the true
// maximum spare themselves most of the rescaling. Weights then reach e^16, which f32 carries as
// exactly as 1.
inline constexpr float kAttendMaxSlack = 16.0F;

// A partial softmax state per query head: out = sum of exp(s - max) * v, not yet divided, where
// max is the largest score or up to kAttendMaxSlack below it.
// The empty state is max = -inf, sum = 0, out = 0.
struct AttendPartial {
    float* max = nullptr;  // [q_head_count]
    float* sum = nullptr;  // [q_head_count]
    float* out = nullptr;  // [q_head_count, v_head_dim], dense
};

// Floats that one part's state takes.
constexpr size_t attend_partial_floats(uint32_t q_head_count, uint32_t v_head_dim) {
    return size_t{q_head_count} * (size_t{v_head_dim} + 2);
}
// The state of part `part` inside a buffer of attend_part_count() consecutive states.
inline AttendPartial attend_partial_at(float* buffer, uint32_t part, uint32_t q_head_count,
                                       uint32_t v_head_dim) {
    float* base = buffer + part * attend_partial_floats(q_head_count, v_head_dim);
    return {base, base + q_head_count, base + 2 * size_t{q_head_count}};
}

struct MergeInput {
    const float* partials = nullptr;  // [part_count] states as attend_partial_at() lays them out
    uint32_t part_count = 0;          // 0: the output is zero, lse -inf
    uint32_t q_head_count = 0;
    uint32_t v_head_dim = 0;
};

struct MergeOutput {
    float* out = nullptr;        // [q_head_count, v_head_dim]
    size_t out_head_stride = 0;  // floats
    float* lse = nullptr;        // [q_head_count] natural log of the sum of exp(scale q.k); or null
};

}  // namespace shoal::kernels
