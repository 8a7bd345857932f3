// Decode attention over a list of slots: tiles of 16 rows, KV heads inside a tile, online max.
//
// Rows lie anywhere, so the time goes into waiting for memory: while a tile is computed the next
// one is prefetched, piece by piece in address order, half of it during QK and half during PV.
// A short tile repeats its last row with weight zero: no other row is ever touched.
// Bytes: one read of every piece in the list; the state and the queries stay in L1 or L2.
// Bench: bench/attend.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/cpu.hpp"
#include "kernels/cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr uint32_t kTileRows = kAttendTileRows;
constexpr uint32_t kBatchHeads = 64;  // query heads whose weights are kept at once
constexpr uint32_t kHeadsAtOnce = 4;  // query heads that share one pass over a row
constexpr uint32_t kLineBytes = 64;

struct Tile {
    const std::byte* pieces[kTileRows];
    uint32_t count;  // rows of the list; pieces beyond repeat the last
};

Tile make_tile(const AttendInput& in, uint32_t begin, uint32_t end) {
    Tile tile;
    tile.count = std::min(end - begin, kTileRows);
    for (uint32_t i = 0; i < kTileRows; ++i) {
        tile.pieces[i] = in.kv.piece(in.slots.at(begin + std::min(i, tile.count - 1)));
    }
    return tile;
}

// Walks the cache lines of a tile's pieces in order, a few at a time.
class Prefetcher {
public:
    Prefetcher(const Tile& tile, uint32_t lines_per_piece)
        : tile_(tile), lines_per_piece_(lines_per_piece), piece_(0), line_(0) {}
    HWY_INLINE void step(uint32_t lines) {
        for (; lines != 0 && piece_ < tile_.count; --lines) {
            hwy::Prefetch(tile_.pieces[piece_] + size_t{line_} * kLineBytes);
            if (++line_ == lines_per_piece_) {
                line_ = 0;
                ++piece_;
            }
        }
    }

private:
    const Tile& tile_;
    uint32_t lines_per_piece_;
    uint32_t piece_;
    uint32_t line_;
};

// One KV head of one tile.
struct HeadWork {
    const Tile* tile;
    size_t k_offset;     // bytes from a piece to the head's K
    size_t v_offset;
    uint32_t k_head_dim;
    uint32_t v_head_dim;
    const float* q;      // first query head
    size_t q_head_stride;
    float* out;          // [q_per_kv, v_head_dim]
    const float* factors;  // [q_per_kv] of `out` before this tile is added
    float* weights;      // [q_per_kv, kTileRows] scores, then weights
    Prefetcher* prefetcher;
    uint32_t prefetch_lines;  // a quarter of what QK or PV of one head is to fetch
};

#if HWY_TARGET != HWY_SCALAR
// Sums of the lanes of four vectors, one per lane of each 128-bit block: lane j of block b holds
// what block b contributes to the sum of vector j.
HWY_INLINE F32Vec add_lanes_in_blocks(F32Vec a, F32Vec b, F32Vec c, F32Vec e) {
    const F32Tag d;
    const hn::Repartition<double, F32Tag> d64;
    const F32Vec ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    const F32Vec ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
    const auto ab64 = hn::BitCast(d64, ab);
    const auto ce64 = hn::BitCast(d64, ce);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)),
                   hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));
}

// Adds up the blocks of four such vectors (tokens 0-3, 4-7, 8-11, 12-15) and stores 16 sums.
HWY_INLINE void store_tile_sums(F32Vec a, F32Vec b, F32Vec c, F32Vec e, float* sums) {
    const F32Tag d;
    if constexpr (kLanes == 16) {
        const F32Vec ab = hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a),
                                  hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a)));
        const F32Vec ce = hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(e), c),
                                  hn::OddEvenBlocks(e, hn::SwapAdjacentBlocks(c)));
        hn::Store(hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab)), d,
                  sums);
    } else if constexpr (kLanes == 8) {
        hn::Store(hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a)), d, sums);
        hn::Store(hn::Add(hn::ConcatLowerLower(d, e, c), hn::ConcatUpperUpper(d, e, c)), d,
                  sums + 8);
    } else {
        hn::Store(a, d, sums);
        hn::Store(b, d, sums + 4);
        hn::Store(c, d, sums + 8);
        hn::Store(e, d, sums + 12);
    }
}
#endif

// weights[g][t] = q_g . k_t for kHeads query heads: four rows at a time, a vector per (row, head).
template <typename T, uint32_t kHeads>
void qk_tile(const HeadWork& work, uint32_t head_first) {
    const F32Tag d;
    const float* q = work.q + head_first * work.q_head_stride;
    float* weights = work.weights + head_first * kTileRows;
#if HWY_TARGET != HWY_SCALAR
    F32Vec quads[kHeads][4];
#endif
    for (uint32_t quad = 0; quad < 4; ++quad) {
        work.prefetcher->step(work.prefetch_lines);
        const std::byte* rows[4];
        for (uint32_t t = 0; t < 4; ++t) {
            rows[t] = work.tile->pieces[quad * 4 + t] + work.k_offset;
        }
        F32Vec sums[kHeads][4];
        HWY_UNROLL(4)
        for (uint32_t g = 0; g < kHeads; ++g) {
            HWY_UNROLL(4)
            for (uint32_t t = 0; t < 4; ++t) sums[g][t] = hn::Zero(d);
        }
        for (uint32_t c = 0; c < work.k_head_dim; c += kLanes) {
            F32Vec k[4];
            HWY_UNROLL(4)
            for (uint32_t t = 0; t < 4; ++t) k[t] = load_row<T>(rows[t], c);
            HWY_UNROLL(4)
            for (uint32_t g = 0; g < kHeads; ++g) {
                const F32Vec q_g = hn::LoadU(d, q + g * work.q_head_stride + c);
                HWY_UNROLL(4)
                for (uint32_t t = 0; t < 4; ++t) sums[g][t] = hn::MulAdd(k[t], q_g, sums[g][t]);
            }
        }
        HWY_UNROLL(4)
        for (uint32_t g = 0; g < kHeads; ++g) {
#if HWY_TARGET == HWY_SCALAR
            for (uint32_t t = 0; t < 4; ++t) {
                hn::Store(sums[g][t], d, weights + g * kTileRows + quad * 4 + t);
            }
#else
            quads[g][quad] =
                add_lanes_in_blocks(sums[g][0], sums[g][1], sums[g][2], sums[g][3]);
#endif
        }
    }
#if HWY_TARGET != HWY_SCALAR
    HWY_UNROLL(4)
    for (uint32_t g = 0; g < kHeads; ++g) {
        store_tile_sums(quads[g][0], quads[g][1], quads[g][2], quads[g][3],
                        weights + g * kTileRows);
    }
#endif
}

// out[g] = out[g] * factor_g + sum over t of weights[g][t] * v_t, kVecs vectors of channels from
// channel `c` on.
template <typename T, uint32_t kHeads, uint32_t kVecs>
HWY_INLINE void pv_columns(const HeadWork& work, uint32_t head_first, uint32_t c,
                           uint32_t prefetch_lines) {
    const F32Tag d;
    float* out = work.out + size_t{head_first} * work.v_head_dim + c;
    const float* weights = work.weights + head_first * kTileRows;
    F32Vec sums[kHeads][kVecs];
    HWY_UNROLL(4)
    for (uint32_t g = 0; g < kHeads; ++g) {
        const F32Vec factor = hn::Set(d, work.factors[head_first + g]);
        HWY_UNROLL(8)
        for (uint32_t v = 0; v < kVecs; ++v) {
            sums[g][v] = hn::Mul(factor, hn::LoadU(d, out + g * work.v_head_dim + v * kLanes));
        }
    }
    for (uint32_t t = 0; t < work.tile->count; ++t) {
        if (t % 4 == 0) work.prefetcher->step(prefetch_lines);
        const std::byte* row = work.tile->pieces[t] + work.v_offset;
        F32Vec weight[kHeads];
        HWY_UNROLL(4)
        for (uint32_t g = 0; g < kHeads; ++g) weight[g] = hn::Set(d, weights[g * kTileRows + t]);
        HWY_UNROLL(8)
        for (uint32_t v = 0; v < kVecs; ++v) {
            const F32Vec value = load_row<T>(row, c + v * kLanes);
            HWY_UNROLL(4)
            for (uint32_t g = 0; g < kHeads; ++g) {
                sums[g][v] = hn::MulAdd(weight[g], value, sums[g][v]);
            }
        }
    }
    HWY_UNROLL(4)
    for (uint32_t g = 0; g < kHeads; ++g) {
        HWY_UNROLL(8)
        for (uint32_t v = 0; v < kVecs; ++v) {
            hn::StoreU(sums[g][v], d, out + g * work.v_head_dim + v * kLanes);
        }
    }
}

// Vectors of channels at once: as many accumulators as the registers hold.
constexpr uint32_t pv_vecs(uint32_t heads) {
    if (kManyRegisters) return heads <= 2 ? 8 : 4;
    return heads == 1 ? 8 : heads == 4 ? 2 : 4;
}

template <typename T, uint32_t kHeads>
void pv_tile(const HeadWork& work, uint32_t head_first) {
    constexpr uint32_t kVecs = pv_vecs(kHeads);
    uint32_t prefetch_lines = work.prefetch_lines;
    uint32_t c = 0;
    for (; c + kVecs * kLanes <= work.v_head_dim; c += kVecs * kLanes) {
        pv_columns<T, kHeads, kVecs>(work, head_first, c, prefetch_lines);
        prefetch_lines = 0;
    }
    for (; c < work.v_head_dim; c += kLanes) {
        pv_columns<T, kHeads, 1>(work, head_first, c, prefetch_lines);
        prefetch_lines = 0;
    }
}

using TileFunction = void (*)(const HeadWork& work, uint32_t head_first);

// Functions for 1 .. 4 query heads at once.
struct TileFunctions {
    TileFunction qk[kHeadsAtOnce];
    TileFunction pv[kHeadsAtOnce];
};

template <typename T>
void set_qk(TileFunctions& functions) {
    functions.qk[0] = qk_tile<T, 1>;
    functions.qk[1] = qk_tile<T, 2>;
    functions.qk[2] = qk_tile<T, 3>;
    functions.qk[3] = qk_tile<T, 4>;
}

template <typename T>
void set_pv(TileFunctions& functions) {
    functions.pv[0] = pv_tile<T, 1>;
    functions.pv[1] = pv_tile<T, 2>;
    functions.pv[2] = pv_tile<T, 3>;
    functions.pv[3] = pv_tile<T, 4>;
}

TileFunctions tile_functions(const PieceFormat& format) {
    TileFunctions functions;
    switch (format.k_dtype) {
        case DType::f16: set_qk<hwy::float16_t>(functions); break;
        case DType::bf16: set_qk<hwy::bfloat16_t>(functions); break;
        case DType::f32: set_qk<float>(functions); break;
    }
    switch (format.v_dtype) {
        case DType::f16: set_pv<hwy::float16_t>(functions); break;
        case DType::bf16: set_pv<hwy::bfloat16_t>(functions); break;
        case DType::f32: set_pv<float>(functions); break;
    }
    return functions;
}

// Scores become weights relative to the new maximum; max and sum of the state move on, and
// `factor` says by how much older sums shrink. One query head.
HWY_INLINE void softmax_head(float* weights, uint32_t count, F32Vec scale, float* max, float* sum,
                             float* factor) {
    const F32Tag d;
    const F32Vec none = hn::Set(d, -std::numeric_limits<float>::infinity());
    const F32Vec max_old = hn::Set(d, *max);
    F32Vec scores[kTileRows / kLanes];
    F32Vec most = max_old;
    for (uint32_t i = 0; i < kTileRows / kLanes; ++i) {
        scores[i] = hn::Mul(hn::Load(d, weights + i * kLanes), scale);
        if (count < kTileRows) {
            const uint32_t first = static_cast<uint32_t>(i * kLanes);
            const auto live = hn::FirstN(d, std::max(count, first) - first);
            scores[i] = hn::IfThenElse(live, scores[i], none);
        }
        most = hn::Max(most, scores[i]);
    }
    const F32Vec max_new = hn::MaxOfLanes(d, most);
    const F32Vec shrink = exp_nonpositive(hn::Sub(max_old, max_new));
    F32Vec total = hn::Zero(d);
    for (uint32_t i = 0; i < kTileRows / kLanes; ++i) {
        const F32Vec weight = exp_nonpositive(hn::Sub(scores[i], max_new));
        hn::Store(weight, d, weights + i * kLanes);
        total = hn::Add(total, weight);
    }
    *max = hn::GetLane(max_new);
    *factor = hn::GetLane(shrink);
    *sum = *sum * *factor + hn::GetLane(hn::SumOfLanes(d, total));
}

// KV heads [kv_first, kv_end) of one tile, at most kBatchHeads query heads.
void attend_heads(const AttendInput& in, const TileFunctions& functions, const Tile& tile,
                  uint32_t kv_first, uint32_t kv_end, Prefetcher& prefetcher,
                  uint32_t prefetch_lines, const AttendPartial& out) {
    const PieceFormat& format = in.kv.format;
    HWY_ALIGN float weights[kBatchHeads * kTileRows];
    float factors[kBatchHeads];
    const auto work_of = [&](uint32_t kv_head) HWY_ATTR {
        const uint32_t head = kv_head * in.q_per_kv;
        const uint32_t in_batch = (kv_head - kv_first) * in.q_per_kv;
        const size_t offset = size_t{kv_head} * format.row_stride_bytes;
        return HeadWork{.tile = &tile,
                        .k_offset = offset,
                        .v_offset = offset + format.v_offset_bytes,
                        .k_head_dim = format.k_head_dim,
                        .v_head_dim = format.v_head_dim,
                        .q = in.q + head * in.q_head_stride,
                        .q_head_stride = in.q_head_stride,
                        .out = out.out + size_t{head} * format.v_head_dim,
                        .factors = factors + in_batch,
                        .weights = weights + in_batch * kTileRows,
                        .prefetcher = &prefetcher,
                        .prefetch_lines = prefetch_lines};
    };
    for (uint32_t kv_head = kv_first; kv_head < kv_end; ++kv_head) {
        const HeadWork work = work_of(kv_head);
        for (uint32_t g = 0; g < in.q_per_kv; g += kHeadsAtOnce) {
            functions.qk[std::min(in.q_per_kv - g, kHeadsAtOnce) - 1](work, g);
        }
    }
    const F32Vec scale = hn::Set(F32Tag(), in.scale);
    const uint32_t head_first = kv_first * in.q_per_kv;
    for (uint32_t g = 0; g < (kv_end - kv_first) * in.q_per_kv; ++g) {
        softmax_head(weights + g * kTileRows, tile.count, scale, out.max + head_first + g,
                     out.sum + head_first + g, factors + g);
    }
    for (uint32_t kv_head = kv_first; kv_head < kv_end; ++kv_head) {
        const HeadWork work = work_of(kv_head);
        for (uint32_t g = 0; g < in.q_per_kv; g += kHeadsAtOnce) {
            functions.pv[std::min(in.q_per_kv - g, kHeadsAtOnce) - 1](work, g);
        }
    }
}

void attend_part_here(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out) {
    const PieceFormat& format = in.kv.format;
    const uint32_t q_head_count = format.kv_head_count * in.q_per_kv;
    std::fill_n(out.max, q_head_count, -std::numeric_limits<float>::infinity());
    std::fill_n(out.sum, q_head_count, 0.0F);
    std::fill_n(out.out, size_t{q_head_count} * format.v_head_dim, 0.0F);
    const TileFunctions functions = tile_functions(format);
    const uint32_t lines_per_piece =
        (format.kv_head_count * format.row_stride_bytes + kLineBytes - 1) / kLineBytes;
    // Every tile has QK and PV of each head, in four steps each, once per four query heads.
    const uint32_t steps =
        8 * format.kv_head_count * ((in.q_per_kv + kHeadsAtOnce - 1) / kHeadsAtOnce);
    const uint32_t prefetch_lines = (kTileRows * lines_per_piece + steps - 1) / steps;
    const uint32_t kv_batch = kBatchHeads / in.q_per_kv;
    Tile tile = make_tile(in, begin, end);
    Prefetcher(tile, lines_per_piece).step(UINT32_MAX);
    for (uint32_t at = begin; at < end; at += kTileRows) {
        Tile next = tile;
        next.count = 0;
        if (at + kTileRows < end) next = make_tile(in, at + kTileRows, end);
        Prefetcher prefetcher(next, lines_per_piece);
        for (uint32_t kv = 0; kv < format.kv_head_count; kv += kv_batch) {
            attend_heads(in, functions, tile, kv, std::min(kv + kv_batch, format.kv_head_count),
                         prefetcher, prefetch_lines, out);
        }
        tile = next;
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(attend_part_here);
void attend_part(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out) {
    HWY_DYNAMIC_DISPATCH(attend_part_here)(in, begin, end, out);
}

}  // namespace shoal::kernels::cpu
#endif
