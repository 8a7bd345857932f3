// Which hot slot holds each selected token, and which slots make room for those that none holds.
// One block per request. Reads a table of one entry per token (4 B a token and group: 1 MiB at
// 262,144; a hash of the hot slots alone would be 32 KiB and a probe longer).
//
// Replacement goes round like a clock: a slot is taken when no recent step used it, and only if
// too few are like that, when this step does not use it. Deterministic: misses in list order take
// slots in clock order.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

inline constexpr uint32_t kResolveThreads = 1024;
inline constexpr uint32_t kResolveIdsMax = 4096;
// Steps for which a slot that was used is passed over at first.
inline constexpr uint32_t kResolveGrace = 1;

// Ids with a chosen share of misses, in place of a selection: the first `hit_count` are the same
// in every step, the others were never seen for (token_count - hit_count) / miss_count steps.
__host__ __device__ inline uint32_t synthetic_id(uint32_t i, uint32_t hit_count, uint32_t id_count,
                                                 uint32_t step, uint32_t token_count_log2) {
    const uint32_t token_count = 1U << token_count_log2;
    uint32_t index = i;
    if (i >= hit_count) {
        const uint64_t fresh = uint64_t{step} * (id_count - hit_count) + (i - hit_count);
        index = hit_count + static_cast<uint32_t>(fresh % (token_count - hit_count));
    }
    return (index * 0x9e3779b1U) & (token_count - 1);  // odd multiplier: a bijection
}

struct ResolveArgs {
    const int32_t* ids = nullptr;    // [batch, id_count] different tokens, -1 for none; or null:
    uint32_t synthetic_hits = 0;     //   synthetic_id()
    const uint32_t* selected = nullptr;  // read, and not used, with synthetic ids: the wait is real
    uint32_t id_count = 0;           // <= kResolveIdsMax and <= hot_slot_count
    uint32_t token_count_log2 = 0;
    uint32_t hot_slot_count = 0;
    const uint32_t* step = nullptr;  // counts up by one a step
    int32_t* table = nullptr;        // [batch, tokens] hot slot, or -1
    int32_t* owner = nullptr;        // [batch, hot_slot_count] token, or -1
    uint32_t* stamp = nullptr;       // [batch, hot_slot_count] 1 + last step that used it; 0: none
    uint32_t* hand = nullptr;        // [batch]
    int32_t* slots = nullptr;        // out [batch, id_count] hot slot, -1 for none
    uint32_t* miss_from = nullptr;   // out [batch, id_count] tokens to fetch ..
    uint32_t* miss_to = nullptr;     // out [batch, id_count] .. into these hot slots
    uint32_t* miss_count = nullptr;  // out [batch]
};

// The arrays of one request.
__host__ __device__ inline ResolveArgs resolve_request(ResolveArgs args, uint32_t request) {
    const size_t ids = size_t{request} * args.id_count;
    const size_t hot = size_t{request} * args.hot_slot_count;
    if (args.ids != nullptr) args.ids += ids;
    args.table += size_t{request} << args.token_count_log2;
    args.owner += hot;
    args.stamp += hot;
    args.hand += request;
    args.slots += ids;
    args.miss_from += ids;
    args.miss_to += ids;
    args.miss_count += request;
    return args;
}

struct ResolveScratch {
    ScanScratch scan;
    uint32_t hand_next;
    uint32_t miss_index[kResolveIdsMax];
    uint32_t victim[kResolveIdsMax];
};

// Hits are stamped, misses listed in order. Returns how many misses.
__device__ inline uint32_t resolve_lookup(const ResolveArgs& args, uint32_t step,
                                          ResolveScratch& scratch) {
    uint32_t misses = 0;
    for (uint32_t base = 0; base < args.id_count; base += blockDim.x) {
        const uint32_t i = base + threadIdx.x;
        int32_t id = -1;
        if (i < args.id_count) {
            id = args.ids != nullptr
                     ? args.ids[i]
                     : static_cast<int32_t>(synthetic_id(i, args.synthetic_hits, args.id_count,
                                                         step - 1, args.token_count_log2));
        }
        const int32_t slot = id >= 0 ? args.table[id] : -1;
        if (slot >= 0) args.stamp[slot] = step;
        if (i < args.id_count) args.slots[i] = slot;
        const bool miss = id >= 0 && slot < 0;
        uint32_t total = 0;
        const uint32_t rank = misses + block_exclusive_sum(miss ? 1U : 0U, scratch.scan, total);
        if (miss) {
            args.miss_from[rank] = static_cast<uint32_t>(id);
            scratch.miss_index[rank] = i;
        }
        misses += total;
    }
    __syncthreads();
    return misses;
}

// Finds `wanted` slots in clock order; scratch.victim and scratch.hand_next.
__device__ inline void resolve_victims(const ResolveArgs& args, uint32_t step, uint32_t wanted,
                                       ResolveScratch& scratch) {
    const uint32_t hand = *args.hand;
    uint32_t found = 0;
    for (uint32_t lap = 0; lap < 2 && found < wanted; ++lap) {
        for (uint32_t base = 0; base < args.hot_slot_count && found < wanted; base += blockDim.x) {
            const uint32_t at = base + threadIdx.x;
            const uint32_t slot = (hand + at) % args.hot_slot_count;
            bool free = false;
            if (at < args.hot_slot_count) {
                const uint32_t stamp = args.stamp[slot];
                free = lap == 0 ? stamp == 0 || step - stamp > kResolveGrace : stamp != step;
            }
            uint32_t total = 0;
            const uint32_t rank = found + block_exclusive_sum(free ? 1U : 0U, scratch.scan, total);
            if (free && rank < wanted) {
                scratch.victim[rank] = slot;
                args.stamp[slot] = step;
                if (rank + 1 == wanted) scratch.hand_next = (slot + 1) % args.hot_slot_count;
            }
            found += total;
        }
    }
    __syncthreads();
}

template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) resolve(ResolveArgs all) {
    SHOAL_SHARED(ResolveScratch, scratch);
    const ResolveArgs args = resolve_request(all, blockIdx.x);
    // A count of selected rows that can be no count keeps the read: it is never true.
    if (args.selected != nullptr && *args.selected == 0xffffffffU) return;
    const uint32_t step = *args.step + 1;
    const uint32_t misses = resolve_lookup(args, step, scratch);
    if (misses != 0) resolve_victims(args, step, misses, scratch);
    for (uint32_t j = threadIdx.x; j < misses; j += kThreads) {
        const uint32_t slot = scratch.victim[j];
        const auto id = static_cast<int32_t>(args.miss_from[j]);
        const int32_t old = args.owner[slot];
        if (old >= 0) args.table[old] = -1;
        args.owner[slot] = id;
        args.table[id] = static_cast<int32_t>(slot);
        args.slots[scratch.miss_index[j]] = static_cast<int32_t>(slot);
        args.miss_to[j] = slot;
    }
    if (threadIdx.x == 0) {
        *args.miss_count = misses;
        if (misses != 0) *args.hand = scratch.hand_next;
    }
}

// Ends a step: the next one has another number. A kernel, since host code does not run when a
// graph is replayed.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) advance_step(uint32_t* step) {
    if (threadIdx.x == 0 && blockIdx.x == 0) *step += 1;
}

}  // namespace shoal::gpu
