// Pieces from pinned host memory to device memory, chosen by an index list and a count that live
// on the device: what a captured decode step can use, since nothing about it is known on the host.
//
// Bandwidth is bytes in flight / round trip: 55 GB/s x 2 us are 110 KB. 16 blocks of 512 threads
// with 4 loads of 16 B each have 524 KB in flight.
#pragma once

#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

struct GatherArgs {
    const std::byte* from = nullptr;      // pieces
    std::byte* to = nullptr;              // pieces
    const uint32_t* from_index = nullptr; // [count] piece index, anded with from_mask
    const uint32_t* to_index = nullptr;   // [count] piece index, or null: 0, 1, 2, ...
    const uint32_t* count = nullptr;      // on the device
    uint32_t from_mask = 0xffffffffU;
    uint32_t piece_log2 = 0;              // of bytes: 7 .. 16
};

// The unit `unit` of a list of pieces: which entry of the list, and where in its piece.
struct GatherUnit {
    uint64_t entry;
    uint32_t offset_bytes;
};
__host__ __device__ inline GatherUnit gather_unit(uint64_t unit, uint32_t piece_log2,
                                                  uint32_t unit_log2) {
    const uint32_t units_log2 = piece_log2 - unit_log2;
    const auto in_piece = static_cast<uint32_t>(unit & ((uint64_t{1} << units_log2) - 1));
    return {unit >> units_log2, in_piece << unit_log2};
}
__host__ __device__ inline const std::byte* gather_from(const GatherArgs& args,
                                                        const GatherUnit& unit) {
    const uint32_t piece = args.from_index[unit.entry] & args.from_mask;
    return args.from + (uint64_t{piece} << args.piece_log2) + unit.offset_bytes;
}
__host__ __device__ inline std::byte* gather_to(const GatherArgs& args, const GatherUnit& unit) {
    const uint64_t piece = args.to_index != nullptr ? args.to_index[unit.entry] : unit.entry;
    return args.to + (piece << args.piece_log2) + unit.offset_bytes;
}

inline constexpr uint32_t kGatherThreads = 512;

// Vector loads and stores; any grid.
template <uint32_t kThreads>
__global__ void __launch_bounds__(kThreads) gather_plain(GatherArgs args) {
    constexpr uint32_t kInFlight = 4;
    const uint64_t total = uint64_t{*args.count} << (args.piece_log2 - 4);
    const uint64_t stride = uint64_t{kThreads} * gridDim.x;
    for (uint64_t first = uint64_t{blockIdx.x} * kThreads + threadIdx.x; first < total;
         first += stride * kInFlight) {
        // Indices first, then loads without a condition between them: threads past the end load
        // the last unit once more (one request a warp) and do not store it.
        const uint4* from[kInFlight];
        uint4 v[kInFlight];
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kInFlight; ++j) {
            const uint64_t i = first + j * stride;
            const GatherUnit unit = gather_unit(i < total ? i : total - 1, args.piece_log2, 4);
            from[j] = reinterpret_cast<const uint4*>(gather_from(args, unit));
        }
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kInFlight; ++j) v[j] = load_once(from[j]);
        SHOAL_UNROLL
        for (uint32_t j = 0; j < kInFlight; ++j) {
            const uint64_t i = first + j * stride;
            if (i >= total) continue;
            const GatherUnit unit = gather_unit(i, args.piece_log2, 4);
            store_l2(reinterpret_cast<uint4*>(gather_to(args, unit)), v[j]);
        }
    }
}

// The same by bulk asynchronous copies through a ring of stages in shared memory (sm_90). One
// warp a block: the copy engine moves the bytes.
inline constexpr uint32_t kBulkStageLog2 = 14;
inline constexpr uint32_t kBulkStages = 4;
inline constexpr uint32_t kBulkSharedBytes = kBulkStages << kBulkStageLog2;

struct BulkBarriers {
    uint64_t full[kBulkStages];
};

// Stages that block `block` of `blocks` moves: block, block + blocks, ...
__host__ __device__ inline uint64_t bulk_stages_of(uint64_t stage_count, uint32_t block,
                                                   uint32_t blocks) {
    return stage_count > block ? (stage_count - block + blocks - 1) / blocks : 0;
}

#ifdef SHOAL_HAVE_BULK_COPY
struct BulkShape {
    uint32_t unit_log2;         // bytes of one bulk copy: a piece, or a stage's worth of it
    uint32_t stage_units_log2;  // units in a stage
    uint64_t unit_count;
};
__device__ inline uint32_t bulk_units_in(const BulkShape& shape, uint64_t stage) {
    const uint64_t rest = shape.unit_count - (stage << shape.stage_units_log2);
    const uint64_t whole = uint64_t{1} << shape.stage_units_log2;
    return static_cast<uint32_t>(rest < whole ? rest : whole);
}

// Asks for the bytes of a stage. All lanes.
__device__ inline void bulk_issue(const GatherArgs& args, const BulkShape& shape, uint64_t stage,
                                  unsigned char* buffer, uint64_t* full) {
    const uint32_t units = bulk_units_in(shape, stage);
    if (threadIdx.x == 0) barrier_arrive_expect(full, units << shape.unit_log2);
    __syncwarp();
    for (uint32_t u = threadIdx.x; u < units; u += kWarp) {
        const uint64_t index = (stage << shape.stage_units_log2) + u;
        const GatherUnit unit = gather_unit(index, args.piece_log2, shape.unit_log2);
        bulk_load(buffer + (u << shape.unit_log2), gather_from(args, unit), 1U << shape.unit_log2,
                  full);
    }
}
#endif

template <uint32_t kStages>
__global__ void __launch_bounds__(32) gather_bulk(GatherArgs args) {
#ifdef SHOAL_HAVE_BULK_COPY
    unsigned char* ring = dynamic_shared();
    SHOAL_SHARED(BulkBarriers, barriers);
    BulkShape shape;
    shape.unit_log2 = args.piece_log2 < kBulkStageLog2 ? args.piece_log2 : kBulkStageLog2;
    shape.stage_units_log2 = kBulkStageLog2 - shape.unit_log2;
    shape.unit_count = uint64_t{*args.count} << (args.piece_log2 - shape.unit_log2);
    const uint64_t stage_count =
        (shape.unit_count + (uint64_t{1} << shape.stage_units_log2) - 1) >> shape.stage_units_log2;
    const uint64_t own = bulk_stages_of(stage_count, blockIdx.x, gridDim.x);
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < kStages; ++s) barrier_init(&barriers.full[s], 1);
        barrier_init_fence();
    }
    __syncwarp();
    const auto issue = [&](uint64_t i) {
        const auto slot = static_cast<uint32_t>(i % kStages);
        bulk_issue(args, shape, blockIdx.x + i * gridDim.x, ring + (slot << kBulkStageLog2),
                   &barriers.full[slot]);
    };
    for (uint64_t i = 0; i + 1 < kStages && i < own; ++i) issue(i);
    for (uint64_t i = 0; i < own; ++i) {
        const auto slot = static_cast<uint32_t>(i % kStages);
        const uint64_t stage = blockIdx.x + i * gridDim.x;
        barrier_wait(&barriers.full[slot], static_cast<uint32_t>(i / kStages) & 1U);
        const uint32_t units = bulk_units_in(shape, stage);
        for (uint32_t u = threadIdx.x; u < units; u += kWarp) {
            const uint64_t index = (stage << shape.stage_units_log2) + u;
            const GatherUnit unit = gather_unit(index, args.piece_log2, shape.unit_log2);
            bulk_store(gather_to(args, unit),
                       ring + (slot << kBulkStageLog2) + (u << shape.unit_log2),
                       1U << shape.unit_log2);
        }
        bulk_commit();
        // The slot that is filled next was emptied one round ago, by the same lanes.
        bulk_wait_read_but_one();
        __syncwarp();
        if (i + kStages - 1 < own) issue(i + kStages - 1);
    }
    bulk_wait_all();
#else
    __trap();
#endif
}

}  // namespace shoal::gpu
