// A GPU's threads on one CPU thread: enough of CUDA's words to run this folder's kernels in a
// test, with the faults that a GPU would show only now and then made certain.
//
// Every thread of a block is a fiber that runs until it waits: for its block, for its warp, for a
// bulk copy. The seed chooses the order in which threads and blocks run, so a missing barrier
// changes the result. Shared memory starts as garbage. Bulk copies happen as late as they may:
// loads when somebody waits for them, stores when their group must be done. A barrier that not
// all threads reach throws.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <typeinfo>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHOAL_UNROLL
#define SHOAL_SHARED(Type, name) Type& name = emulator::shared_object<Type>()

namespace shoal::gpu {

struct Index3 {
    uint32_t x = 0, y = 0, z = 0;
};
inline Index3 threadIdx, blockIdx;
inline Index3 blockDim{1, 1, 1}, gridDim{1, 1, 1};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

struct Launch {
    uint32_t grid_x = 1;
    uint32_t grid_y = 1;
    uint32_t threads = 32;  // multiple of 32, up to 1,024
    uint32_t seed = 0;      // 0: threads in order, 1: backwards, else shuffled
};
// Runs `body` once per thread. Throws std::runtime_error at a barrier that some threads skip.
void launch(const Launch& shape, const std::function<void()>& body);

void* shared_bytes(const std::type_info& type, size_t bytes);
template <typename T>
T& shared_object() {
    return *static_cast<T*>(shared_bytes(typeid(T), sizeof(T)));
}

// What every lane of the warp passed, once all lanes of `mask` have.
const uint64_t* exchange(uint64_t value, uint32_t mask);

template <typename T>
uint64_t pack(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <typename T>
T unpack(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulator

void __syncthreads();
inline void __syncwarp() { emulator::exchange(0, 0xffffffffU); }
inline void __threadfence() {}
inline void __threadfence_system() {}
void __trap();

template <typename T>
T __shfl_sync(uint32_t mask, T value, uint32_t lane) {
    return emulator::unpack<T>(emulator::exchange(emulator::pack(value), mask)[lane % 32]);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, uint32_t flip) {
    const uint32_t lane = threadIdx.x % 32;
    return emulator::unpack<T>(emulator::exchange(emulator::pack(value), mask)[lane ^ flip]);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, uint32_t distance) {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t* all = emulator::exchange(emulator::pack(value), mask);
    return emulator::unpack<T>(all[lane >= distance ? lane - distance : lane]);
}

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
    const uint32_t old = *at;
    *at += value;
    return old;
}
inline uint32_t atomicXor(uint32_t* at, uint32_t value) {
    const uint32_t old = *at;
    *at ^= value;
    return old;
}
inline uint32_t atomicMin(uint32_t* at, uint32_t value) {
    const uint32_t old = *at;
    if (value < old) *at = value;
    return old;
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
    const uint32_t old = *at;
    if (value > old) *at = value;
    return old;
}
inline int __dp4a(int a, int b, int sum) {
    for (int shift = 0; shift < 32; shift += 8) {
        sum += static_cast<int8_t>(static_cast<uint32_t>(a) >> shift) *
               static_cast<int8_t>(static_cast<uint32_t>(b) >> shift);
    }
    return sum;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>(((uint64_t{high} << 32) | low) >> (shift & 31U));
}
inline int __clz(int value) {
    return value == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(value));
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyintf(value)); }
inline float __uint_as_float(uint32_t bits) { return emulator::unpack<float>(bits); }
inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float(uint32_t{value.bits} << 16);
}
template <typename T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
    return a < b ? b : a;
}

inline uint4 load_once(const uint4* from) { return *from; }
inline void store_l2(uint4* to, uint4 value) { *to = value; }
inline uint32_t load_l2(const uint32_t* from) { return *from; }
inline float load_l2(const float* from) { return *from; }
float half_bits_to_float(uint32_t bits);
inline float exp2_fast(float x) { return std::exp2(x); }
inline void store_release_system(uint32_t* to, uint32_t value) {
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
inline uint32_t load_acquire_system(const uint32_t* from) {
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
uint64_t timer_ns();

unsigned char* dynamic_shared();
void barrier_init(uint64_t* barrier, uint32_t arrivals);
inline void barrier_init_fence() {}
void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void bulk_load(void* to_shared, const void* from, uint32_t bytes, uint64_t* barrier);
void bulk_store(void* to, const void* from_shared, uint32_t bytes);
void bulk_commit();
void bulk_wait_read_but_one();
void bulk_wait_all();

}  // namespace shoal::gpu
