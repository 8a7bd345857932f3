// The k best of n scores as an ascending list, ties to the lowest slot: one launch.
//
// A floor that the k-th best score reaches is known before the scores are read: the edge of a bin
// of the histogram that the label scan left, or last step's threshold. Every block lists the slots
// of its part that reach the floor; the block that arrives last has them all (1.1 to 2 k of them
// if the floor is good), finds the exact threshold by radix select and writes the list.
// Too many candidates, or too few (the guess was too high): that block reads all scores again.
// Slower, same result.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

inline constexpr uint32_t kSelectThreads = 512;
inline constexpr uint32_t kSelectPerThread = 8;
inline constexpr uint32_t kSelectPart = kSelectThreads * kSelectPerThread;  // slots of a block
inline constexpr uint32_t kSelectPartsMax = kSelectThreads;                 // n <= 2,097,152
inline constexpr uint32_t kSelectStaged = 4096;  // candidates kept in shared memory
inline constexpr uint32_t kHistogramBins = 2048;

__host__ __device__ inline uint32_t histogram_bin(uint32_t key) { return key >> 21; }
__host__ __device__ inline uint32_t bin_floor(uint32_t bin) {
    const uint32_t key = bin << 21;
    return key > kHiddenKey ? key : kHiddenKey + 1;
}
__host__ __device__ inline uint32_t select_part_count(uint32_t slot_count) {
    return (slot_count + kSelectPart - 1) / kSelectPart;
}

struct SelectResult {
    uint32_t count;
    float threshold;           // of the worst one chosen; -inf when count < k
    uint32_t candidate_count;  // slots that reached the floor
    uint32_t guess_held;       // 1: the candidates were enough, and few enough to be staged
};

struct SelectArgs {
    const float* scores = nullptr;    // [batch, slot_count]; -inf: never chosen. No NaN
    uint32_t slot_count = 0;          // multiple of 4
    uint32_t k = 0;                   // 1 ..
    uint32_t* histogram = nullptr;    // [batch, kHistogramBins] of the scores; left zero. Or null:
    const float* guess = nullptr;     // [batch] the floor; may be where result[].threshold lies
    uint32_t guess_stride = 1;        // floats between the guesses of two requests
    uint32_t* candidates = nullptr;   // workspace [batch, slot_count]
    uint32_t* part_counts = nullptr;  // workspace [batch, select_part_count()]
    uint32_t* arrived = nullptr;      // [batch], 0
    int32_t* slots = nullptr;         // out [batch, k] ascending, then -1
    SelectResult* result = nullptr;   // out [batch]
};

struct SelectScratch {
    ScanScratch scan;
    uint32_t bins[kHistogramBins];
    uint32_t keys[kSelectStaged];
    uint32_t slots[kSelectStaged];
    uint32_t floor;
    uint32_t last;
    uint32_t lowest, highest;
    uint32_t digit, above;
};

// The floor that a histogram gives: the lower edge of the bin in which the k-th best lies.
__device__ inline uint32_t floor_of_histogram(const uint32_t* histogram, uint32_t k,
                                              SelectScratch& scratch) {
    constexpr uint32_t kBins = kHistogramBins / kSelectThreads;
    const uint32_t top = kHistogramBins - 1 - threadIdx.x * kBins;  // this thread's best bin
    uint32_t own[kBins];
    uint32_t sum = 0;
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kBins; ++j) sum += own[j] = histogram[top - j];
    if (threadIdx.x == 0) scratch.floor = kHiddenKey + 1;
    uint32_t total = 0;
    uint32_t before = block_exclusive_sum(sum, scratch.scan, total);
    if (before < k && k <= before + sum) {
        uint32_t bin = top;
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kBins; ++j) {
            if (before < k) bin = top - j;
            before += own[j];
        }
        scratch.floor = bin_floor(bin);
    }
    __syncthreads();
    return scratch.floor;
}

// Lists the slots of this block's part that reach the floor, ascending.
__device__ inline void select_candidates(const SelectArgs& args, uint32_t floor,
                                         SelectScratch& scratch) {
    const uint32_t first = blockIdx.x * kSelectPart + threadIdx.x * kSelectPerThread;
    uint32_t hits = 0;  // bit j: slot first + j
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kSelectPerThread; j += 4) {
        if (first + j >= args.slot_count) continue;
        const float4 v = *reinterpret_cast<const float4*>(args.scores + first + j);
        hits |= (ordered_key(v.x) >= floor ? 1U : 0U) << j;
        hits |= (ordered_key(v.y) >= floor ? 2U : 0U) << j;
        hits |= (ordered_key(v.z) >= floor ? 4U : 0U) << j;
        hits |= (ordered_key(v.w) >= floor ? 8U : 0U) << j;
    }
    uint32_t count = 0;
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kSelectPerThread; ++j) count += (hits >> j) & 1U;
    uint32_t total = 0;
    uint32_t at = block_exclusive_sum(count, scratch.scan, total);
    uint32_t* list = args.candidates + blockIdx.x * kSelectPart;
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kSelectPerThread; ++j) {
        if (((hits >> j) & 1U) != 0) list[at++] = first + j;
    }
    if (threadIdx.x == 0) args.part_counts[blockIdx.x] = total;
}

// Copies the candidates of all parts into shared memory if they fit. Returns how many there are.
__device__ inline uint32_t stage_candidates(const SelectArgs& args, SelectScratch& scratch) {
    const uint32_t parts = select_part_count(args.slot_count);
    const uint32_t own = threadIdx.x < parts ? load_l2(args.part_counts + threadIdx.x) : 0;
    uint32_t total = 0;
    const uint32_t begin = block_exclusive_sum(own, scratch.scan, total);
    // The bins are not in use yet: counts and beginnings of the parts.
    scratch.bins[threadIdx.x] = begin;
    scratch.bins[kSelectPartsMax + threadIdx.x] = own;
    __syncthreads();
    if (total > kSelectStaged) return total;
    for (uint32_t part = threadIdx.x / kWarp; part < parts; part += kSelectThreads / kWarp) {
        const uint32_t to = scratch.bins[part];
        const uint32_t count = scratch.bins[kSelectPartsMax + part];
        for (uint32_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
            const uint32_t slot = load_l2(args.candidates + part * kSelectPart + i);
            scratch.slots[to + i] = slot;
            scratch.keys[to + i] = ordered_key(args.scores[slot]);
        }
    }
    __syncthreads();
    return total;
}

// What the last block chooses from: staged candidates, or all scores of at least `floor`.
struct SelectFrom {
    bool staged;
    uint32_t count;
    uint32_t floor;
};
__device__ inline uint32_t key_at(const SelectArgs& args, const SelectFrom& from,
                                  const SelectScratch& scratch, uint32_t i) {
    return from.staged ? scratch.keys[i] : ordered_key(args.scores[i]);
}

// Lowest and highest key of at least the floor, and how many there are.
__device__ inline uint32_t key_range(const SelectArgs& args, const SelectFrom& from,
                                     SelectScratch& scratch) {
    if (threadIdx.x == 0) {
        scratch.lowest = 0xffffffffU;
        scratch.highest = 0;
    }
    uint32_t count = 0;
    uint32_t flipped = 0;  // the highest of ~key: the lowest key
    uint32_t highest = 0;
    for (uint32_t i = threadIdx.x; i < from.count; i += kSelectThreads) {
        const uint32_t key = key_at(args, from, scratch, i);
        if (key < from.floor) continue;
        ++count;
        flipped = max(flipped, ~key);
        highest = max(highest, key);
    }
    for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
        flipped = max(flipped, __shfl_xor_sync(kAllLanes, flipped, flip));
        highest = max(highest, __shfl_xor_sync(kAllLanes, highest, flip));
    }
    uint32_t total = 0;
    block_exclusive_sum(count, scratch.scan, total);
    if (threadIdx.x % kWarp == 0) {
        atomicMin(&scratch.lowest, ~flipped);
        atomicMax(&scratch.highest, highest);
    }
    __syncthreads();
    return total;
}

// The digit in which the `wanted`-th best lies, and how many have a larger one. bins[2048] hold
// the counts.
__device__ inline void find_digit(uint32_t wanted, SelectScratch& scratch) {
    constexpr uint32_t kBins = kHistogramBins / kSelectThreads;
    const uint32_t top = kHistogramBins - 1 - threadIdx.x * kBins;
    uint32_t own[kBins];
    uint32_t sum = 0;
    SHOAL_UNROLL
    for (uint32_t j = 0; j < kBins; ++j) sum += own[j] = scratch.bins[top - j];
    uint32_t total = 0;
    uint32_t before = block_exclusive_sum(sum, scratch.scan, total);
    if (before < wanted && wanted <= before + sum) {
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kBins; ++j) {
            if (before < wanted) {
                scratch.digit = top - j;
                scratch.above = before;
            }
            before += own[j];
        }
    }
    __syncthreads();
}

struct SelectThreshold {
    uint32_t key;
    uint32_t ties;  // of slots with that key, so many are taken
};

// The k-th best key by radix select over (key - lowest), 11 bits at a time from the first bit in
// which keys differ: two rounds for scores of one magnitude.
__device__ inline SelectThreshold radix_threshold(const SelectArgs& args, const SelectFrom& from,
                                                  uint32_t k, SelectScratch& scratch) {
    const uint32_t lowest = scratch.lowest;
    const uint32_t range = scratch.highest - lowest;
    uint32_t shift = range == 0 ? 0 : 32U - static_cast<uint32_t>(__clz(static_cast<int>(range)));
    uint32_t prefix = 0;
    uint32_t wanted = k;
    while (shift > 0) {
        const uint32_t digit_bits = min(shift, 11U);
        const uint32_t above_bits = shift;
        shift -= digit_bits;
        for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kSelectThreads) scratch.bins[b] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < from.count; i += kSelectThreads) {
            const uint32_t key = key_at(args, from, scratch, i);
            if (key < from.floor) continue;
            const uint64_t relative = key - lowest;
            if ((relative >> above_bits) != prefix) continue;
            const auto digit = static_cast<uint32_t>(relative >> shift) & ((1U << digit_bits) - 1);
            atomicAdd(&scratch.bins[digit], 1U);
        }
        __syncthreads();
        find_digit(wanted, scratch);
        wanted -= scratch.above;
        prefix = (prefix << digit_bits) | scratch.digit;
    }
    return {lowest + prefix, wanted};
}

// Writes the chosen slots in ascending order. Returns how many.
__device__ inline uint32_t emit_slots(const SelectArgs& args, const SelectFrom& from,
                                      const SelectThreshold& threshold, SelectScratch& scratch) {
    uint32_t better_before = 0;
    uint32_t equal_before = 0;
    for (uint32_t base = 0; base < from.count; base += kSelectThreads) {
        const uint32_t i = base + threadIdx.x;
        const uint32_t key = i < from.count ? key_at(args, from, scratch, i) : 0;
        const bool better = key > threshold.key && key >= from.floor;
        const bool equal = key == threshold.key && key >= from.floor;
        uint32_t total = 0;
        const uint32_t packed = (better ? 1U : 0U) | (equal ? 0x10000U : 0U);
        const uint32_t before = block_exclusive_sum(packed, scratch.scan, total);
        const uint32_t better_here = better_before + (before & 0xffffU);
        const uint32_t equal_here = equal_before + (before >> 16);
        if (better || (equal && equal_here < threshold.ties)) {
            const uint32_t slot = from.staged ? scratch.slots[i] : i;
            args.slots[better_here + min(equal_here, threshold.ties)] = static_cast<int32_t>(slot);
        }
        better_before += total & 0xffffU;
        equal_before += total >> 16;
    }
    return better_before + min(equal_before, threshold.ties);
}

// Run by the block that arrived last.
__device__ inline void select_finish(const SelectArgs& args, uint32_t floor,
                                     SelectScratch& scratch) {
    const uint32_t candidates = stage_candidates(args, scratch);
    const bool staged = candidates <= kSelectStaged;
    const bool enough = candidates >= args.k;
    SelectFrom from{staged && enough, candidates, floor};
    if (!from.staged) {
        from.count = args.slot_count;
        if (!enough) from.floor = kHiddenKey + 1;
    }
    const uint32_t visible = key_range(args, from, scratch);
    SelectThreshold threshold{kHiddenKey + 1, 0xffffffffU};  // fewer than k: all of them
    if (visible >= args.k) threshold = radix_threshold(args, from, args.k, scratch);
    const uint32_t count = emit_slots(args, from, threshold, scratch);
    for (uint32_t i = count + threadIdx.x; i < args.k; i += kSelectThreads) args.slots[i] = -1;
    if (args.histogram != nullptr) {
        for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kSelectThreads) {
            args.histogram[b] = 0;
        }
    }
    if (threadIdx.x == 0) {
        const float worst =
            visible >= args.k ? key_value(threshold.key) : key_value(kHiddenKey);
        *args.result = {count, worst, candidates, from.staged ? 1U : 0U};
    }
}

// Grid: (select_part_count(slot_count), batch). Threads: kSelectThreads.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) select_slots(SelectArgs args) {
    static_assert(kThreads == kSelectThreads);
    SHOAL_SHARED(SelectScratch, scratch);
    const uint32_t request = blockIdx.y;
    args.scores += size_t{request} * args.slot_count;
    args.candidates += size_t{request} * args.slot_count;
    args.part_counts += size_t{request} * gridDim.x;
    args.slots += size_t{request} * args.k;
    args.result += request;
    if (args.histogram != nullptr) args.histogram += size_t{request} * kHistogramBins;
    uint32_t floor = kHiddenKey + 1;
    if (args.histogram != nullptr) {
        floor = floor_of_histogram(args.histogram, args.k, scratch);
    } else {
        floor = max(floor, ordered_key(args.guess[size_t{request} * args.guess_stride]));
    }
    select_candidates(args, floor, scratch);
    if (!arrives_last(args.arrived + request, gridDim.x, scratch.last)) return;
    select_finish(args, floor, scratch);
}

// The histogram alone, for scores that no label scan has just made. Grid: (parts, batch).
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads)
    count_scores(const float* scores, uint32_t slot_count, uint32_t* histogram) {
    static_assert(kThreads == kSelectThreads);
    SHOAL_SHARED(SelectScratch, scratch);
    scores += size_t{blockIdx.y} * slot_count;
    for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kThreads) scratch.bins[b] = 0;
    __syncthreads();
    const uint32_t begin = blockIdx.x * kSelectPart;
    const uint32_t end = min(begin + kSelectPart, slot_count);
    for (uint32_t i = begin + threadIdx.x; i < end; i += kThreads) {
        const uint32_t key = ordered_key(scores[i]);
        if (key > kHiddenKey) atomicAdd(&scratch.bins[histogram_bin(key)], 1U);
    }
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kThreads) {
        if (scratch.bins[b] != 0) {
            atomicAdd(&histogram[size_t{blockIdx.y} * kHistogramBins + b], scratch.bins[b]);
        }
    }
}

}  // namespace shoal::gpu
