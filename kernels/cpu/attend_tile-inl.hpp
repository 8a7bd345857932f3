// The arithmetic and the prefetching of decode attention on one tile, compiled once per
// instruction set.
#if defined(SHOAL_KERNELS_CPU_ATTEND_TILE_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_ATTEND_TILE_INL_HPP
#undef SHOAL_KERNELS_CPU_ATTEND_TILE_INL_HPP
#else
#define SHOAL_KERNELS_CPU_ATTEND_TILE_INL_HPP
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/append.hpp"
#include "kernels/attend.hpp"
#include "kernels/cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {

inline constexpr uint32_t kTileRows = kAttendTileRows;
inline constexpr uint32_t kHeadsAtOnce = 4;  // query heads that share one pass over a row
inline constexpr uint32_t kBatchHeads = 64;  // query heads that go through a tile together
inline constexpr uint32_t kLineBytes = 64;
inline constexpr uint32_t kTileVecs = static_cast<uint32_t>(kTileRows / kLanes);

HWY_INLINE void prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }

// Where the rows of a tile lie.
struct Tile {
    const std::byte* pieces[kTileRows];
    const uint16_t* scales[kTileRows];  // of q8 rows
    uint32_t count = 0;   // rows of the list; pieces beyond repeat the last
    bool is_run = false;  // consecutive slots
};

inline Tile make_tile(const AttendInput& in, uint32_t begin, uint32_t end) {
    Tile tile;
    if (begin >= end) return tile;
    tile.count = std::min(end - begin, kTileRows);
    tile.is_run = in.slots.at(begin + tile.count - 1) - in.slots.at(begin) == tile.count - 1;
    for (uint32_t i = 0; i < kTileRows; ++i) {
        const uint32_t slot = in.slots.at(begin + std::min(i, tile.count - 1));
        tile.pieces[i] = in.kv.piece(slot);
        tile.scales[i] = in.kv.scales_of(slot);
    }
    return tile;
}

inline void prefetch_block_table(const AttendInput& in, uint32_t begin, uint32_t end) {
    for (uint32_t i = begin; i < std::min(begin + kTileRows, end); ++i) {
        prefetch(in.kv.blocks + (in.slots.at(i) >> in.kv.block_tokens_log2));
    }
}

// Prefetches `bytes` at `offset` of every piece of a tile in equal steps. Line by line on
// purpose: unrolled into bursts the same lines take 10 % longer (dense, 4.5 -> 3.9 ms).
class Prefetcher {
public:
    Prefetcher(size_t offset, size_t bytes, uint32_t steps)
        : offset_(offset),
          lines_(static_cast<uint32_t>((bytes + kLineBytes - 1) / kLineBytes)),
          lines_per_step_((lines_ * kTileRows + steps - 1) / steps) {}
    void start(const Tile& tile) {
        tile_ = &tile;
        piece_ = 0;
        line_ = 0;
        if (tile.is_run) return;
        for (uint32_t i = 0; i < tile.count; ++i) prefetch(tile.pieces[i] + offset_);
        if (tile.scales[0] == nullptr) return;
        for (uint32_t i = 0; i < tile.count; ++i) prefetch(tile.scales[i]);
    }
    HWY_INLINE void step() {
        for (uint32_t lines = lines_per_step_; lines != 0 && piece_ < tile_->count; --lines) {
            prefetch(tile_->pieces[piece_] + offset_ + size_t{line_} * kLineBytes);
            if (++line_ == lines_) {
                line_ = 0;
                ++piece_;
            }
        }
    }
    void finish() {
        while (piece_ < tile_->count) step();
    }

private:
    const Tile* tile_ = nullptr;
    size_t offset_;
    uint32_t lines_;
    uint32_t lines_per_step_;
    uint32_t piece_ = 0;
    uint32_t line_ = 0;
};

// One KV head of one tile.
struct HeadWork {
    const Tile* tile;
    size_t k_offset;  // bytes from a piece to the head's K
    size_t v_offset;
    uint32_t k_head_dim;
    uint32_t v_head_dim;
    const float* q;   // first query head
    size_t q_head_stride;
    float* out;       // [q_per_kv, v_head_dim]
    float* weights;   // [q_per_kv, kTileRows] scores, then weights
    const uint32_t* scales;  // [kTileRows] of q8 rows: load_scales()
    Prefetcher* prefetcher;
};

// The scales of a tile by head: those of K in the low half of a word, those of V in the high.
inline void load_scales(const Tile& tile, uint32_t kv_first, uint32_t kv_end, uint32_t* to) {
    for (uint32_t t = 0; t < kTileRows; ++t) {
        const uint16_t* from = tile.scales[t] + 2 * size_t{kv_first};
        for (uint32_t h = 0; h < kv_end - kv_first; ++h) {
            std::memcpy(to + h * kTileRows + t, from + 2 * h, sizeof(uint32_t));
        }
    }
}

// to[g][t] = weights[g][t] x the scale of K or V of row t.
template <RowPart kPart, uint32_t kHeads>
HWY_INLINE void apply_scales(const uint32_t* scales, const float* weights, float* to) {
    const F32Tag d;
    const hn::RebindToUnsigned<F32Tag> u32;
    for (uint32_t t = 0; t < kTileRows; t += kLanes) {
        const auto both = hn::Load(u32, scales + t);
        const auto bits = kPart == RowPart::k ? hn::ShiftLeft<16>(both)
                                              : hn::And(both, hn::Set(u32, 0xffff0000U));
        const F32Vec scale = hn::BitCast(d, bits);
        HWY_UNROLL(4)
        for (uint32_t g = 0; g < kHeads; ++g) {
            const uint32_t at = g * kTileRows + t;
            hn::Store(hn::Mul(hn::Load(d, weights + at), scale), d, to + at);
        }
    }
}

#if HWY_TARGET != HWY_SCALAR
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
        work.prefetcher->step();
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
    if constexpr (is_q8<T>()) apply_scales<RowPart::k, kHeads>(work.scales, weights, weights);
}

// out[g] += sum over t of weights[g][t] * v_t, kVecs vectors of channels from channel `c` on.
template <typename T, uint32_t kHeads, uint32_t kVecs>
HWY_INLINE void pv_columns(const HeadWork& work, const float* weights, uint32_t head_first,
                           uint32_t c) {
    const F32Tag d;
    float* out = work.out + size_t{head_first} * work.v_head_dim + c;
    F32Vec sums[kHeads][kVecs];
    HWY_UNROLL(4)
    for (uint32_t g = 0; g < kHeads; ++g) {
        HWY_UNROLL(8)
        for (uint32_t v = 0; v < kVecs; ++v) {
            sums[g][v] = hn::LoadU(d, out + g * work.v_head_dim + v * kLanes);
        }
    }
    for (uint32_t t = 0; t < work.tile->count; ++t) {
        if (c == 0 && t % 4 == 0) work.prefetcher->step();
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
    const float* weights = work.weights + head_first * kTileRows;
    HWY_ALIGN float scaled[is_q8<T>() ? kHeads * kTileRows : 1];
    if constexpr (is_q8<T>()) {
        apply_scales<RowPart::v, kHeads>(work.scales, weights, scaled);
        weights = scaled;
    }
    uint32_t c = 0;
    for (; c + kVecs * kLanes <= work.v_head_dim; c += kVecs * kLanes) {
        pv_columns<T, kHeads, kVecs>(work, weights, head_first, c);
    }
    for (; c < work.v_head_dim; c += kLanes) {
        pv_columns<T, kHeads, 1>(work, weights, head_first, c);
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

inline TileFunctions tile_functions(const PieceFormat& format) {
    TileFunctions functions;
    switch (format.k_dtype) {
        case DType::f16: set_qk<hwy::float16_t>(functions); break;
        case DType::bf16: set_qk<hwy::bfloat16_t>(functions); break;
        case DType::f32: set_qk<float>(functions); break;
        case DType::q8: set_qk<int8_t>(functions); break;
    }
    switch (format.v_dtype) {
        case DType::f16: set_pv<hwy::float16_t>(functions); break;
        case DType::bf16: set_pv<hwy::bfloat16_t>(functions); break;
        case DType::f32: set_pv<float>(functions); break;
        case DType::q8: set_pv<int8_t>(functions); break;
    }
    return functions;
}

// The state of a batch of query heads while a part is walked.
struct BatchState {
    HWY_ALIGN float sums[kBatchHeads][kTileRows];  // one per row of a tile, added up at the end
    float max[kBatchHeads];
};

// Raises the reference maximum of a head to the largest score and shrinks its older sums.
HWY_NOINLINE void raise_max(F32Vec most, float& max, float* sums, float* out,
                            uint32_t v_head_dim) {
    const F32Tag d;
    const F32Vec max_new = hn::MaxOfLanes(d, most);
    const F32Vec factor = exp_below(hn::Sub(hn::Set(d, max), max_new));
    for (uint32_t t = 0; t < kTileRows; t += kLanes) {
        hn::Store(hn::Mul(factor, hn::Load(d, sums + t)), d, sums + t);
    }
    for (uint32_t c = 0; c < v_head_dim; c += kLanes) {
        hn::StoreU(hn::Mul(factor, hn::LoadU(d, out + c)), d, out + c);
    }
    max = hn::GetLane(max_new);
}

// Scores of one query head become weights relative to its reference maximum, which moves only
// when a score exceeds it by kAttendMaxSlack: seldom after the first tile.
HWY_INLINE void softmax_head(float* weights, uint32_t count, F32Vec scale, float& max,
                             float* sums, float* out, uint32_t v_head_dim) {
    const F32Tag d;
    const F32Vec none = hn::Set(d, -std::numeric_limits<float>::infinity());
    F32Vec scores[kTileVecs];
    F32Vec most = none;
    for (uint32_t i = 0; i < kTileVecs; ++i) {
        scores[i] = hn::Mul(hn::Load(d, weights + i * kLanes), scale);
        if (count < kTileRows) {
            const uint32_t first = static_cast<uint32_t>(i * kLanes);
            const auto live = hn::FirstN(d, std::max(count, first) - first);
            scores[i] = hn::IfThenElse(live, scores[i], none);
        }
        most = hn::Max(most, scores[i]);
    }
    if (!hn::AllFalse(d, hn::Gt(most, hn::Set(d, max + kAttendMaxSlack)))) {
        raise_max(most, max, sums, out, v_head_dim);
    }
    const F32Vec reference = hn::Set(d, max);
    for (uint32_t i = 0; i < kTileVecs; ++i) {
        const F32Vec weight = exp_below(hn::Sub(scores[i], reference));
        hn::Store(weight, d, weights + i * kLanes);
        hn::Store(hn::Add(weight, hn::Load(d, sums + i * kLanes)), d, sums + i * kLanes);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
