// Decode attention over hot slots: split-KV, grouped queries, one block per (request, KV head,
// split). The last block of a KV head merges the splits, in split order.
//
// Half a warp takes four rows at a time: a lane holds 8 of the 128 dimensions of K, of V and of
// the head's 4 queries, so 16 B loads, and a row of 512 B is read once for its 4 query heads.
// 16 dot products are reduced over 16 lanes by 15 shuffles and leave one score in each lane.
#pragma once

#include "bench/gpu/plan.hpp"
#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

inline constexpr uint32_t kAttendThreads = 128;
inline constexpr uint32_t kAttendGroups = kAttendThreads / 16;  // half warps
inline constexpr uint32_t kAttendGroupRows = 4;
inline constexpr uint32_t kAttendRound = kAttendGroups * kAttendGroupRows;  // rows of a block
inline constexpr uint32_t kAttendSplitsMax = 64;
static_assert(kHeadDim == 128 && kQueryPerKv == 4);

struct AttendArgs {
    const std::byte* rows = nullptr;   // [batch, hot_slot_count] pieces: [KV head][K | V] in bf16
    uint32_t hot_slot_count = 0;
    const int32_t* slots = nullptr;    // [batch, row_count] -1: no row
    uint32_t row_count = 0;
    uint32_t rows_per_split = 0;
    const float* q = nullptr;          // [batch, kQueryHeads, kHeadDim]
    float scale_log2 = 0;              // factor on q.k, times log2(e)
    float* state = nullptr;            // workspace [batch, kKvHeads, splits, 4, 2]
    float* partial = nullptr;          // workspace [batch, kKvHeads, splits, 4, kHeadDim]
    uint32_t* arrived = nullptr;       // [batch, kKvHeads], 0
    float* out = nullptr;              // [batch, kQueryHeads, kHeadDim]
    float* lse = nullptr;              // [batch, kQueryHeads] natural log
};

__host__ __device__ inline uint32_t attend_rows_per_split(uint32_t row_count, uint32_t batch,
                                                          uint32_t processor_count) {
    const uint32_t heads = batch * kKvHeads;
    const uint32_t wanted = (2 * processor_count + heads - 1) / heads;
    const uint32_t splits = wanted < kAttendSplitsMax ? wanted : kAttendSplitsMax;
    const uint32_t rows = (row_count + splits - 1) / splits;
    return (rows + kAttendRound - 1) / kAttendRound * kAttendRound;
}
__host__ __device__ inline uint32_t attend_split_count(uint32_t row_count,
                                                       uint32_t rows_per_split) {
    return (row_count + rows_per_split - 1) / rows_per_split;
}

struct AttendScratch {
    float max[kAttendGroups][kQueryPerKv];
    float sum[kAttendGroups][kQueryPerKv];
    alignas(16) float out[kAttendGroups][kQueryPerKv][kHeadDim];
    uint32_t last;
};

__device__ __forceinline__ void bf16_to_float(const uint4& v, float (&to)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    SHOAL_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    }
}

// 16 sums over 16 lanes: afterwards lane i of the half warp has the sum of s[i].
__device__ __forceinline__ float reduce_16(float (&s)[16], uint32_t lane16) {
    SHOAL_UNROLL
    for (uint32_t half = 8; half > 0; half /= 2) {
        const bool upper = (lane16 & half) != 0;
        SHOAL_UNROLL
        for (uint32_t i = 0; i < half; ++i) {
            const float keep = upper ? s[i + half] : s[i];
            const float give = upper ? s[i] : s[i + half];
            s[i] = keep + __shfl_xor_sync(kAllLanes, give, half);
        }
    }
    return s[0];
}

// Softmax state of half a warp. max and sum: of query head lane16 % 4; out: all four, this lane's
// 8 dimensions.
struct AttendState {
    float max;
    float sum;
    float out[kQueryPerKv][8];
};

struct AttendRows {
    uint4 k[kAttendGroupRows];
    uint4 v[kAttendGroupRows];
    bool own_valid;  // of row lane16 / 4
};

__device__ __forceinline__ AttendRows attend_load(const std::byte* rows, const int32_t* slots,
                                                  uint32_t first, uint32_t end, uint32_t lane16) {
    AttendRows load;
    load.own_valid = false;
    int32_t slot[kAttendGroupRows];
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kAttendGroupRows; ++j) {
        slot[j] = slots[min(first + j, end - 1)];
        if (first + j >= end) slot[j] = -1;
        if (lane16 / 4 == j) load.own_valid = slot[j] >= 0;
    }
    // No condition between the loads. What stands in slot 0 instead of a row that is none is not
    // used, whatever it is: 0 x NaN would be NaN.
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kAttendGroupRows; ++j) {
        const std::byte* row = rows + static_cast<size_t>(max(slot[j], 0)) * kPieceBytes;
        load.k[j] = load_once(reinterpret_cast<const uint4*>(row) + lane16);
        load.v[j] = load_once(reinterpret_cast<const uint4*>(row + kRowBytes / 2) + lane16);
    }
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kAttendGroupRows; ++j) {
        if (slot[j] < 0) load.k[j] = load.v[j] = make_uint4(0, 0, 0, 0);
    }
    return load;
}

__device__ __forceinline__ void attend_rows(const AttendRows& load,
                                            const float (&q)[kQueryPerKv][8], uint32_t lane,
                                            AttendState& state) {
    const uint32_t lane16 = lane % 16;
    const uint32_t base = lane - lane16;
    float s[16];
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kAttendGroupRows; ++j) {
        float k[8];
        bf16_to_float(load.k[j], k);
        SHOAL_UNROLL
        for (uint32_t g = 0; g < kQueryPerKv; ++g) {
            float dot = 0.0F;
            SHOAL_UNROLL
            for (uint32_t c = 0; c < 8; ++c) dot += q[g][c] * k[c];
            s[j * kQueryPerKv + g] = dot;
        }
    }
    const float dot = reduce_16(s, lane16);
    const float score = load.own_valid ? dot : -INFINITY;
    float highest = fmaxf(score, __shfl_xor_sync(kAllLanes, score, 4));
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 8));
    const float max_now = fmaxf(state.max, highest);
    // Before the first row both are -inf, whose difference is no number.
    const float factor = state.max == -INFINITY ? 0.0F : exp2_fast(state.max - max_now);
    const float weight = load.own_valid ? exp2_fast(score - max_now) : 0.0F;
    float sum = weight + __shfl_xor_sync(kAllLanes, weight, 4);
    sum += __shfl_xor_sync(kAllLanes, sum, 8);
    state.sum = state.sum * factor + sum;
    state.max = max_now;
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        const float f = __shfl_sync(kAllLanes, factor, base + g);
        SHOAL_UNROLL
        for (uint32_t c = 0; c < 8; ++c) state.out[g][c] *= f;
    }
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kAttendGroupRows; ++j) {
        float v[8];
        bf16_to_float(load.v[j], v);
        SHOAL_UNROLL
        for (uint32_t g = 0; g < kQueryPerKv; ++g) {
            const float w = __shfl_sync(kAllLanes, weight, base + j * kQueryPerKv + g);
            SHOAL_UNROLL
            for (uint32_t c = 0; c < 8; ++c) state.out[g][c] += w * v[c];
        }
    }
}

// The block's half warps, in order, become the state of its split.
__device__ inline void attend_split_state(const AttendArgs& args, const AttendState& state,
                                          uint32_t head, AttendScratch& scratch) {
    const uint32_t group = threadIdx.x / 16;
    const uint32_t lane16 = threadIdx.x % 16;
    if (lane16 < kQueryPerKv) {
        scratch.max[group][lane16] = state.max;
        scratch.sum[group][lane16] = state.sum;
    }
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        SHOAL_UNROLL
        for (uint32_t c = 0; c < 8; ++c) scratch.out[group][g][lane16 * 8 + c] = state.out[g][c];
    }
    __syncthreads();
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        float highest = -INFINITY;
        for (uint32_t i = 0; i < kAttendGroups; ++i) highest = fmaxf(highest, scratch.max[i][g]);
        float sum = 0.0F;
        float out = 0.0F;
        for (uint32_t i = 0; i < kAttendGroups; ++i) {
            if (scratch.max[i][g] == -INFINITY) continue;
            const float factor = exp2_fast(scratch.max[i][g] - highest);
            sum += factor * scratch.sum[i][g];
            out += factor * scratch.out[i][g][threadIdx.x];
        }
        const size_t at = (size_t{head} * gridDim.x + blockIdx.x) * kQueryPerKv + g;
        if (threadIdx.x == 0) {
            args.state[at * 2] = highest;
            args.state[at * 2 + 1] = sum;
        }
        args.partial[at * kHeadDim + threadIdx.x] = out;
    }
}

// Warp g merges query head g; a lane has two splits' factors and four dimensions.
__device__ inline void attend_merge(const AttendArgs& args, uint32_t head, uint32_t splits) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t g = threadIdx.x / kWarp;
    const size_t first = size_t{head} * splits * kQueryPerKv + g;
    float max[2] = {-INFINITY, -INFINITY};
    float weight[2] = {0.0F, 0.0F};
    SHOAL_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t split = lane + i * kWarp;
        if (split < splits) max[i] = load_l2(args.state + (first + split * kQueryPerKv) * 2);
    }
    float highest = fmaxf(max[0], max[1]);
    for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, flip));
    }
    float sum = 0.0F;
    SHOAL_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
        if (max[i] == -INFINITY) continue;
        const uint32_t split = lane + i * kWarp;
        weight[i] = exp2_fast(max[i] - highest);
        sum += weight[i] * load_l2(args.state + (first + split * kQueryPerKv) * 2 + 1);
    }
    for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, flip);
    }
    float out[4] = {0, 0, 0, 0};
    for (uint32_t split = 0; split < splits; ++split) {
        const float low = __shfl_sync(kAllLanes, weight[0], split % kWarp);
        const float high = __shfl_sync(kAllLanes, weight[1], split % kWarp);
        const float w = split < kWarp ? low : high;
        const float* from = args.partial + (first + split * kQueryPerKv) * kHeadDim + lane;
        SHOAL_UNROLL
        for (uint32_t c = 0; c < 4; ++c) out[c] += w * load_l2(from + c * kWarp);
    }
    const size_t to = size_t{head} * kQueryPerKv + g;
    SHOAL_UNROLL
    for (uint32_t c = 0; c < 4; ++c) {
        args.out[to * kHeadDim + c * kWarp + lane] = sum > 0.0F ? out[c] / sum : 0.0F;
    }
    if (lane == 0) args.lse[to] = (highest + log2f(sum)) * 0.69314718F;
}

// Grid: (attend_split_count(), batch * kKvHeads).
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads, 3) attend(AttendArgs args) {
    static_assert(kThreads == kAttendThreads);
    SHOAL_SHARED(AttendScratch, scratch);
    const uint32_t head = blockIdx.y;  // of all requests
    const uint32_t request = head / kKvHeads;
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t lane16 = lane % 16;
    float q[kQueryPerKv][8];
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        const float* from = args.q + (size_t{head} * kQueryPerKv + g) * kHeadDim + lane16 * 8;
        SHOAL_UNROLL
        for (uint32_t c = 0; c < 8; ++c) q[g][c] = from[c] * args.scale_log2;
    }
    const std::byte* rows = args.rows + size_t{request} * args.hot_slot_count * kPieceBytes +
                            (head % kKvHeads) * kRowBytes;
    const int32_t* slots = args.slots + size_t{request} * args.row_count;
    const uint32_t begin = blockIdx.x * args.rows_per_split;
    const uint32_t end = min(begin + args.rows_per_split, args.row_count);
    AttendState state = {-INFINITY, 0.0F, {}};
    for (uint32_t round = begin; round < end; round += kAttendRound) {
        const uint32_t first = round + threadIdx.x / 16 * kAttendGroupRows;
        attend_rows(attend_load(rows, slots, first, end, lane16), q, lane, state);
    }
    attend_split_state(args, state, head, scratch);
    if (!arrives_last(args.arrived + head, gridDim.x, scratch.last)) return;
    attend_merge(args, head, gridDim.x);
}

}  // namespace shoal::gpu
