// The words that device code is written in. nvcc gives most of them; without nvcc the emulator
// does, so that the tests run the same kernels on the CPU, thread by thread.
//
// Kernels are templates, so that two sources may include one header.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// One block's shared memory: at most one object of a type in a kernel. `Type` must be trivial.
#define SHOAL_SHARED(Type, name) __shared__ Type name
#define SHOAL_UNROLL _Pragma("unroll")
#else
#include "bench/gpu/emulator.hpp"
#endif

namespace shoal::gpu {

inline constexpr uint32_t kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffU;

#ifdef __CUDACC__

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char shoal_dynamic_shared[];
    return shoal_dynamic_shared;
}

// 16 bytes that are read once; not to be kept in L1. The memory must not change meanwhile.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
__device__ __forceinline__ void store_l2(uint4* to, uint4 v) { __stcg(to, v); }

// Written by other blocks of this launch: past L1, which is not coherent.
__device__ __forceinline__ uint32_t load_l2(const uint32_t* from) { return __ldcg(from); }
__device__ __forceinline__ float load_l2(const float* from) { return __ldcg(from); }

__device__ __forceinline__ float half_bits_to_float(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
// 2^x with about 22 bits; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void store_release_system(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire_system(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
__device__ __forceinline__ uint64_t timer_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SHOAL_HAVE_BULK_COPY 1

// Bulk asynchronous copies (sm_90): a thread names the bytes, the copy engine of the SM moves
// them. Addresses and sizes are multiples of 16.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}
// Makes barrier_init visible to the copy engine; before the block's first synchronisation.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and says how many bytes this phase waits for.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Returns once the phase of this parity is complete. A phase that is not complete after two seconds
// ends the kernel with an error instead of hanging the machine.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    constexpr uint64_t kLimitNs = 2000000000;
    uint64_t begin = 0;
    while (true) {
        uint32_t done;
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
        if (done != 0) return;
        // How long one attempt sleeps is the machine's choice: only a clock bounds them.
        const uint64_t now = timer_ns();
        if (begin == 0) begin = now;
        if (now - begin > kLimitNs) __trap();
    }
}
__device__ __forceinline__ void bulk_load(void* to_shared, const void* from, uint32_t bytes,
                                          uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to_shared)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}
__device__ __forceinline__ void bulk_store(void* to, const void* from_shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(shared_address(from_shared)), "r"(bytes)
                 : "memory");
}
// Stores of this thread since its last commit become a group.
__device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// All groups of this thread but the newest have read their shared memory.
__device__ __forceinline__ void bulk_wait_read_but_one() {
    asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
}
// All groups of this thread are written.
__device__ __forceinline__ void bulk_wait_all() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

#else
#define SHOAL_HAVE_BULK_COPY 1
#endif

// Order-preserving: a < b as floats iff ordered_key(a) < ordered_key(b). -0 and 0 are one key.
__host__ __device__ inline uint32_t ordered_key(float value) {
    union {
        float f;
        uint32_t u;
    } bits;
    bits.f = value + 0.0F;
    return (bits.u & 0x80000000U) != 0 ? ~bits.u : bits.u | 0x80000000U;
}
__host__ __device__ inline float key_value(uint32_t key) {
    union {
        uint32_t u;
        float f;
    } bits;
    bits.u = (key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key;
    return bits.f;
}
// Of -infinity: what is hidden. Every score that may be chosen has a larger key.
inline constexpr uint32_t kHiddenKey = 0x007fffffU;

__host__ __device__ inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}

// --- of one block -----------------------------------------------------------------------------

struct ScanScratch {
    uint32_t warp_sums[32];
    uint32_t total;
};

// Sum of `value` over the threads before this one; `total` over all. Every thread of the block
// calls it; blockDim.x is a multiple of 32, up to 1,024.
__device__ inline uint32_t block_exclusive_sum(uint32_t value, ScanScratch& scratch,
                                               uint32_t& total) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t warp = threadIdx.x / kWarp;
    uint32_t inclusive = value;
    for (uint32_t step = 1; step < kWarp; step *= 2) {
        const uint32_t below = __shfl_up_sync(kAllLanes, inclusive, step);
        if (lane >= step) inclusive += below;
    }
    __syncthreads();  // scratch of the last call has been read
    if (lane == kWarp - 1) scratch.warp_sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
        const uint32_t warps = blockDim.x / kWarp;
        const uint32_t own = lane < warps ? scratch.warp_sums[lane] : 0;
        uint32_t sum = own;
        for (uint32_t step = 1; step < kWarp; step *= 2) {
            const uint32_t below = __shfl_up_sync(kAllLanes, sum, step);
            if (lane >= step) sum += below;
        }
        if (lane < warps) scratch.warp_sums[lane] = sum - own;
        if (lane == kWarp - 1) scratch.total = sum;
    }
    __syncthreads();
    total = scratch.total;
    return scratch.warp_sums[warp] + inclusive - value;
}

// True in every thread of the block that arrives last of `block_count`, which then sees what the
// others wrote before. `arrived` is 0 before the launch and is left 0.
__device__ inline bool arrives_last(uint32_t* arrived, uint32_t block_count, uint32_t& scratch) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t ticket = atomicAdd(arrived, 1U);
        scratch = ticket + 1 == block_count ? 1U : 0U;
        if (scratch != 0) *arrived = 0;
    }
    __syncthreads();
    const bool last = scratch != 0;
    if (last) __threadfence();
    return last;
}

}  // namespace shoal::gpu
