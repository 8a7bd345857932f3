// The arithmetic of prefill on one tile, compiled once per instruction set: packing, the
// micro-kernel and the online softmax.
#if defined(SHOAL_KERNELS_CPU_PREFILL_TILE_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_PREFILL_TILE_INL_HPP
#undef SHOAL_KERNELS_CPU_PREFILL_TILE_INL_HPP
#else
#define SHOAL_KERNELS_CPU_PREFILL_TILE_INL_HPP
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/prefill_plan.hpp"
#include "kernels/cpu/rows-inl.hpp"
#include "kernels/q8.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {

// Rows x vectors of the micro-kernel: 24 accumulators of 32 registers, 12 of 16. Both need fewer
// loads (4 + 6, 2 + 6) than two a cycle.
inline constexpr uint32_t kMicroRows = 6;
inline constexpr uint32_t kMicroVecs = kManyRegisters ? 4 : 2;

// sums[r][v] += sum over k of a[r][k] * b[k][v].
template <uint32_t kRows, uint32_t kVecs>
HWY_INLINE void multiply_add(const float* a, size_t a_stride, const float* b, size_t b_stride,
                             uint32_t depth, F32Vec (&sums)[kRows][kVecs]) {
    const F32Tag d;
    for (uint32_t k = 0; k < depth; ++k) {
        F32Vec row[kVecs];
        HWY_UNROLL(4)
        for (uint32_t v = 0; v < kVecs; ++v) row[v] = hn::LoadU(d, b + v * kLanes);
        HWY_UNROLL(6)
        for (uint32_t r = 0; r < kRows; ++r) {
            const F32Vec factor = hn::Set(d, a[r * a_stride + k]);
            HWY_UNROLL(4)
            for (uint32_t v = 0; v < kVecs; ++v) {
                sums[r][v] = hn::MulAdd(factor, row[v], sums[r][v]);
            }
        }
        b += b_stride;
    }
}

struct Product {
    const float* a;        // [rows, depth]
    size_t a_stride;
    const float* b;        // [depth, columns]
    size_t b_stride;
    uint32_t depth;
    float* c;              // [rows, columns]
    size_t c_stride;
    const float* factors;  // [rows] on the old c, or null: c is written anew
};

template <uint32_t kRows, uint32_t kVecs>
HWY_INLINE void product_block(const Product& p, uint32_t row, uint32_t column) {
    const F32Tag d;
    float* c = p.c + row * p.c_stride + column;
    F32Vec sums[kRows][kVecs];
    HWY_UNROLL(6)
    for (uint32_t r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (uint32_t v = 0; v < kVecs; ++v) {
            sums[r][v] = p.factors == nullptr
                             ? hn::Zero(d)
                             : hn::Mul(hn::Set(d, p.factors[row + r]),
                                       hn::LoadU(d, c + r * p.c_stride + v * kLanes));
        }
    }
    multiply_add<kRows, kVecs>(p.a + row * p.a_stride, p.a_stride, p.b + column, p.b_stride,
                               p.depth, sums);
    HWY_UNROLL(6)
    for (uint32_t r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (uint32_t v = 0; v < kVecs; ++v) {
            hn::StoreU(sums[r][v], d, c + r * p.c_stride + v * kLanes);
        }
    }
}

// One block of columns for all rows; `rows` is a multiple of 3.
template <uint32_t kVecs>
HWY_INLINE void product_columns(const Product& p, uint32_t rows, uint32_t column) {
    uint32_t row = 0;
    for (; row + kMicroRows <= rows; row += kMicroRows) {
        product_block<kMicroRows, kVecs>(p, row, column);
    }
    for (; row < rows; row += 3) product_block<3, kVecs>(p, row, column);
}

// c = factors * c + a b over columns [column_begin, column_end), a multiple of kLanes.
inline void product(const Product& p, uint32_t rows, uint32_t column_begin, uint32_t column_end) {
    uint32_t column = column_begin;
    for (; column + kMicroVecs * kLanes <= column_end; column += kMicroVecs * kLanes) {
        product_columns<kMicroVecs>(p, rows, column);
    }
    for (; column < column_end; column += kLanes) product_columns<1>(p, rows, column);
}

// Slots of a tile whose rows may be read; the others are packed as zeros.
HWY_INLINE bool is_seen(const SpanMask& seen, uint32_t slot) {
    return (seen.visible[slot / 64] >> (slot % 64) & 1U) != 0;
}

// Transposes four rows of kLanes channels into packed[channel][slot .. slot + 4).
HWY_INLINE void store_transposed(F32Vec a, F32Vec b, F32Vec c, F32Vec e, float* packed) {
    const F32Tag d;
#if HWY_TARGET == HWY_SCALAR
    hn::Store(a, d, packed);
    hn::Store(b, d, packed + 1);
    hn::Store(c, d, packed + 2);
    hn::Store(e, d, packed + 3);
#else
    const hn::Repartition<double, F32Tag> d64;
    const auto ab_lower = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ab_upper = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce_lower = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ce_upper = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    // Block m of vector j holds channel 4 m + j of the four slots.
    HWY_ALIGN float blocks[4][kLanes];
    hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, ab_lower, ce_lower)), d, blocks[0]);
    hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, ab_lower, ce_lower)), d, blocks[1]);
    hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, ab_upper, ce_upper)), d, blocks[2]);
    hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, ab_upper, ce_upper)), d, blocks[3]);
    const hn::CappedTag<float, 4> d4;
    for (uint32_t channel = 0; channel < kLanes; ++channel) {
        hn::Store(hn::Load(d4, blocks[channel % 4] + channel / 4 * 4), d4,
                  packed + channel * kPackedStride);
    }
#endif
}

// packed[channel][slot] = K of one head.
template <typename T>
void pack_k(const KvView& kv, uint32_t kv_head, uint32_t slot_first, const SpanMask& seen,
            float* packed) {
    const F32Tag d;
    for (uint32_t slot = 0; slot < kSlotTile; slot += 4) {
        const std::byte* rows[4];
        float scales[4] = {};
        for (uint32_t t = 0; t < 4; ++t) {
            rows[t] = is_seen(seen, slot + t) ? kv.k_row(slot_first + slot + t, kv_head) : nullptr;
            if (rows[t] != nullptr) scales[t] = k_scale(kv, slot_first + slot + t, kv_head);
        }
        for (uint32_t c = 0; c < kv.format.k_head_dim; c += kLanes) {
            F32Vec k[4];
            for (uint32_t t = 0; t < 4; ++t) {
                k[t] = rows[t] != nullptr ? load_scaled<T>(rows[t], c, scales[t]) : hn::Zero(d);
            }
            store_transposed(k[0], k[1], k[2], k[3], packed + c * kPackedStride + slot);
        }
    }
}

// packed[slot][channel] = V of one head.
template <typename T>
void pack_v(const KvView& kv, uint32_t kv_head, uint32_t slot_first, const SpanMask& seen,
            float* packed) {
    const F32Tag d;
    const uint32_t stride = v_packed_stride(kv.format.v_head_dim);
    for (uint32_t slot = 0; slot < kSlotTile; ++slot, packed += stride) {
        if (!is_seen(seen, slot)) {
            std::fill_n(packed, kv.format.v_head_dim, 0.0F);
            continue;
        }
        const std::byte* row = kv.v_row(slot_first + slot, kv_head);
        const float scale = v_scale(kv, slot_first + slot, kv_head);
        for (uint32_t c = 0; c < kv.format.v_head_dim; c += kLanes) {
            hn::Store(load_scaled<T>(row, c, scale), d, packed + c);
        }
    }
}

// Prefetches one head's rows of slots [begin, end) of a tile into L2.
inline void prefetch_rows(const KvView& kv, uint32_t kv_head, uint32_t slot_first,
                          const SpanMask& seen, uint32_t begin, uint32_t end) {
    const uint32_t bytes = kv.format.row_stride_bytes;
    for (uint32_t slot = begin; slot < end; ++slot) {
        if (!is_seen(seen, slot)) continue;
        const std::byte* row = kv.k_row(slot_first + slot, kv_head);
        for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
        if (kv.scales != nullptr) __builtin_prefetch(kv.scales_of(slot_first + slot), 0, 2);
    }
}

// Scores of a row tile and what becomes of them.
struct SoftmaxTile {
    float* scores;     // [rows, kSlotTile] in units of log2; become weights
    uint32_t rows;
    uint32_t begin;    // columns that are computed, multiples of kLanes
    uint32_t end;
    float* max;        // [rows]
    float* sum;        // [rows, kLanesMax] lanes to be added up at the end
    float* factors;    // [kRowTilePadded] out: what older sums are multiplied by
};

// Hides what a row does not see. `seen` has a mask per row.
inline void mask_scores(const SoftmaxTile& tile, const uint64_t* const* seen) {
    const F32Tag d;
    const F32Vec hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (uint32_t row = 0; row < tile.rows; ++row) {
        float* scores = tile.scores + row * kSlotTile;
        for (uint32_t c = tile.begin; c < tile.end; c += kLanes) {
            const uint64_t word = seen[row][c / 64] >> (c % 64);
            uint8_t bits[8];
            for (uint32_t i = 0; i < 8; ++i) bits[i] = static_cast<uint8_t>(word >> (8 * i));
            hn::Store(hn::IfThenElse(hn::LoadMaskBits(d, bits), hn::Load(d, scores + c), hidden),
                      d, scores + c);
        }
    }
}

inline void softmax_tile(const SoftmaxTile& tile) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const F32Tag d;
    float base[kRowTile];  // the new maximum; 0 when the row has seen nothing
    for (uint32_t row = 0; row < tile.rows; ++row) {
        const float* scores = tile.scores + row * kSlotTile;
        F32Vec most = hn::Set(d, tile.max[row]);
        for (uint32_t c = tile.begin; c < tile.end; c += kLanes) {
            most = hn::Max(most, hn::Load(d, scores + c));
        }
        const float max = hn::GetLane(hn::MaxOfLanes(d, most));
        base[row] = max == kNone ? 0.0F : max;
        tile.factors[row] = tile.max[row] - base[row];
        tile.max[row] = max;
    }
    for (uint32_t row = 0; row < tile.rows; row += kLanes) {
        hn::Store(exp2_nonpositive(hn::Load(d, tile.factors + row)), d, tile.factors + row);
    }
    for (uint32_t row = 0; row < tile.rows; ++row) {
        float* scores = tile.scores + row * kSlotTile;
        const F32Vec max = hn::Set(d, base[row]);
        float* sum = tile.sum + row * kLanesMax;
        F32Vec total = hn::Mul(hn::Load(d, sum), hn::Set(d, tile.factors[row]));
        for (uint32_t c = tile.begin; c < tile.end; c += kLanes) {
            const F32Vec weight = exp2_nonpositive(hn::Sub(hn::Load(d, scores + c), max));
            hn::Store(weight, d, scores + c);
            total = hn::Add(total, weight);
        }
        hn::Store(total, d, sum);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
