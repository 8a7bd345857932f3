// New rows written through to pinned host memory by posted stores, then a sequence number with
// release order over the whole system: whoever reads the number sees the rows.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

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
    const uint32_t number = *args.written;
    uint4* slot = args.ring + size_t{number % args.ring_slots} * args.unit_count;
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < args.unit_count;
         i += gridDim.x * kThreads) {
        slot[i] = args.rows[i];
    }
    __threadfence_system();
    if (!arrives_last(args.arrived, gridDim.x, scratch.last)) return;
    if (threadIdx.x != 0) return;
    *args.written = number + 1;
    __threadfence_system();
    store_release_system(args.sequence, number + 1);
}

// `rounds` times: waits until the host asks (go >= round + 1), writes a row, acknowledges. Gives
// up, with failed = 1, when the host is silent for `timeout_ns`.
struct PingPongArgs {
    const uint4* rows = nullptr;      // [unit_count]
    uint4* ring = nullptr;            // pinned: [unit_count]
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
        for (uint32_t i = threadIdx.x; i < args.unit_count; i += kThreads) {
            args.ring[i] = args.rows[i];
        }
        __threadfence_system();
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
