// A stand-in for the engine's matrix products: C = A B in bf16 with f32 sums, by tensor cores.
// Compute-bound neighbour of a gather; makes no claim to be a fast GEMM. The weights of a decode
// step at batch 1 are memory-bound instead: read_stream() stands for those.
#pragma once

#include "bench/gpu/simt.cuh"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <mma.h>
#endif

namespace shoal::gpu {

inline constexpr uint32_t kGemmTile = 128;
inline constexpr uint32_t kGemmDepth = 32;
inline constexpr uint32_t kGemmThreads = 256;

#ifdef __CUDACC__

// Padded rows: 16 B more, so that fragments do not meet in one bank.
struct GemmScratch {
    alignas(128) __nv_bfloat16 a[kGemmTile][kGemmDepth + 8];
    alignas(128) __nv_bfloat16 b[kGemmDepth][kGemmTile + 8];
};

// a: [m, k], b: [k, n], c: [m, n], row-major; m and n multiples of 128, k of 32.
// Grid: (n / 128, m / 128). Eight warps of 32 x 64.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads)
    gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, uint32_t n, uint32_t k) {
    static_assert(kThreads == kGemmThreads);
    namespace wmma = nvcuda::wmma;
    // Raw bytes: __nv_bfloat16 has constructors, which shared memory cannot run.
    __shared__ __align__(128) unsigned char bytes[sizeof(GemmScratch)];
    GemmScratch& tile = *reinterpret_cast<GemmScratch*>(bytes);
    const uint32_t row = blockIdx.y * kGemmTile;
    const uint32_t column = blockIdx.x * kGemmTile;
    const uint32_t warp = threadIdx.x / kWarp;
    const uint32_t warp_row = warp / 2 * 32;
    const uint32_t warp_column = warp % 2 * 64;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2][4];
    for (uint32_t i = 0; i < 2; ++i) {
        for (uint32_t j = 0; j < 4; ++j) wmma::fill_fragment(sums[i][j], 0.0F);
    }
    for (uint32_t depth = 0; depth < k; depth += kGemmDepth) {
        // 512 pieces of 8 numbers each for A and for B: two a thread.
        for (uint32_t i = threadIdx.x; i < 512; i += kThreads) {
            const uint32_t ar = i / 4, ac = i % 4 * 8;
            *reinterpret_cast<uint4*>(&tile.a[ar][ac]) =
                *reinterpret_cast<const uint4*>(a + size_t{row + ar} * k + depth + ac);
            const uint32_t br = i / 16, bc = i % 16 * 8;
            *reinterpret_cast<uint4*>(&tile.b[br][bc]) =
                *reinterpret_cast<const uint4*>(b + size_t{depth + br} * n + column + bc);
        }
        __syncthreads();
        for (uint32_t inner = 0; inner < kGemmDepth; inner += 16) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> left[2];
            wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> right[4];
            for (uint32_t i = 0; i < 2; ++i) {
                wmma::load_matrix_sync(left[i], &tile.a[warp_row + 16 * i][inner], kGemmDepth + 8);
            }
            for (uint32_t j = 0; j < 4; ++j) {
                wmma::load_matrix_sync(right[j], &tile.b[inner][warp_column + 16 * j],
                                       kGemmTile + 8);
            }
            for (uint32_t i = 0; i < 2; ++i) {
                for (uint32_t j = 0; j < 4; ++j) {
                    wmma::mma_sync(sums[i][j], left[i], right[j], sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    for (uint32_t i = 0; i < 2; ++i) {
        for (uint32_t j = 0; j < 4; ++j) {
            float* to = c + size_t{row + warp_row + 16 * i} * n + column + warp_column + 16 * j;
            wmma::store_matrix_sync(to, sums[i][j], n, wmma::mem_row_major);
        }
    }
}

#else

// The emulator has no tensor cores: the same product, for what stands round it.
template <uint32_t kThreads>
void gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, uint32_t n, uint32_t k) {
    for (uint32_t i = threadIdx.x; i < kGemmTile * kGemmTile; i += kThreads) {
        const size_t row = blockIdx.y * kGemmTile + i / kGemmTile;
        const size_t column = blockIdx.x * kGemmTile + i % kGemmTile;
        float sum = 0;
        for (size_t d = 0; d < k; ++d) {
            sum += __bfloat162float(a[row * k + d]) * __bfloat162float(b[d * n + column]);
        }
        c[row * n + column] = sum;
    }
}

#endif

}  // namespace shoal::gpu
