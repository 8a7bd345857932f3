// New rows written through to pinned host memory by posted stores, then a sequence number with
// release order over the whole system: whoever reads the number sees the rows. Every 16 bytes of a
// write carry its number, so that a reader who sees the number too early finds out.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

// What write `number` (1, 2, ...) leaves of 16 bytes of a new row.
__host__ __device__ inline uint4 stamped(uint4 row, uint32_t number) {
    row.w ^= number;
    return row;
}
// Where write `number` begins in its ring.
__host__ __device__ inline size_t ring_unit(uint32_t number, uint32_t unit_count,
                                            uint32_t ring_slots) {
    return size_t{(number - 1) % ring_slots} * unit_count;
}
// Units of 16 bytes in `slot` that are not those of write `number`.
inline uint32_t wrong_units(const uint4* slot, const uint4* rows, uint32_t unit_count,
                            uint32_t number) {
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < unit_count; ++i) {
        const uint4 want = stamped(rows[i], number);
        const uint4 got = slot[i];
        const bool same = got.x == want.x && got.y == want.y && got.z == want.z && got.w == want.w;
        wrong += same ? 0 : 1;
    }
    return wrong;
}
// All threads of all blocks of a launch: their share of write `number`, then a fence that orders it
// before whatever this thread writes next.
template <uint32_t kThreads>
__device__ inline void write_rows(const uint4* rows, uint4* slot, uint32_t unit_count,
                                  uint32_t number) {
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < unit_count;
         i += gridDim.x * kThreads) {
        slot[i] = stamped(rows[i], number);
    }
    __threadfence_system();
}

struct WriteBackArgs {
    const uint4* rows = nullptr;     // [unit_count] new rows on the device
    uint4* ring = nullptr;           // pinned: [ring_slots, unit_count]
    uint32_t unit_count = 0;         // of 16 bytes, in one write
    uint32_t ring_slots = 0;
    uint32_t* written = nullptr;     // device counter of writes
    uint32_t* arrived = nullptr;     // device, 0
    uint32_t* sequence = nullptr;    // pinned: writes that the host may read
};

struct WriteBackScratch {
    uint32_t last;
};

template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) write_back(WriteBackArgs args) {
    SHOAL_SHARED(WriteBackScratch, scratch);
    const uint32_t before = *args.written;
    write_rows<kThreads>(
        args.rows, args.ring + ring_unit(before + 1, args.unit_count, args.ring_slots),
        args.unit_count, before + 1);
    if (!arrives_last(args.arrived, gridDim.x, scratch.last)) return;
    if (threadIdx.x != 0) return;
    *args.written = before + 1;
    __threadfence_system();
    store_release_system(args.sequence, before + 1);
}

// One block, `rounds` times: waits until the host asks (go >= round + 1), writes that number's
// rows, acknowledges. Gives up, with failed = 1, when the host is silent for `timeout_ns`.
struct PingPongArgs {
    const uint4* rows = nullptr;      // [unit_count]
    uint4* ring = nullptr;            // pinned: [unit_count], written again in every round
    uint32_t unit_count = 0;
    uint32_t rounds = 0;
    const uint32_t* go = nullptr;     // pinned
    uint32_t* sequence = nullptr;     // pinned
    uint32_t* failed = nullptr;       // pinned
    uint64_t timeout_ns = 0;
};

template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) ping_pong(PingPongArgs args) {
    SHOAL_SHARED(WriteBackScratch, scratch);
    for (uint32_t round = 0; round < args.rounds; ++round) {
        if (threadIdx.x == 0) {
            const uint64_t begin = timer_ns();
            uint32_t timed_out = 0;
            while (load_acquire_system(args.go) < round + 1 && timed_out == 0) {
                timed_out = timer_ns() - begin > args.timeout_ns ? 1U : 0U;
            }
            scratch.last = timed_out;
            if (timed_out != 0) store_release_system(args.failed, 1U);
        }
        __syncthreads();
        if (scratch.last != 0) return;
        write_rows<kThreads>(args.rows, args.ring, args.unit_count, round + 1);
        __syncthreads();
        if (threadIdx.x == 0) store_release_system(args.sequence, round + 1);
    }
}

// Does nothing: the cost of a node.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) touch(uint32_t* at) {
    if (threadIdx.x == 0 && blockIdx.x == 0) *at += 1;
}

}  // namespace shoal::gpu
