// page_encode, page_extend, page_scan: a lane is a channel, so that a key widens its page in a few
// instructions and a page is one piece of memory.
//
// The scan reads every bound once, in order, for all query heads: per vector of channels two loads
// and, per query head, one blend by the sign of q and one FMA. Combining is done for kChunkPages
// pages at a time, where a lane is a page; it is a page's worth of slots cheaper than for labels,
// so exp2 can be the exact one. 131,072 slots, pages of 16, two AVX-512 cores: S 50 %, L 66 % of
// the read bandwidth. Bench: bench/page_bounds.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/page_bounds.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/cache_control.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numbers>

#include "kernels/cpu/cpu.hpp"
#include "kernels/cpu/rows-inl.hpp"
#include "kernels/q8.hpp"
#include "shoal/status.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr uint32_t kChunkPages = 32;
constexpr uint32_t kHeadTileMax = 4;
constexpr size_t kPrefetchBytes = 4096;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Encode ----

// Stores Lanes() least (or largest) keys, rounded outwards; f16 keys are stored as they are.
template <bool kLargest, typename T>
HWY_INLINE void store_bounds(F32Vec keys, std::byte* to) {
    const F32Tag d;
    if constexpr (hwy::IsSame<T, hwy::float16_t>()) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
        HWY_ALIGN float values[kLanes];
        hn::Store(keys, d, values);
        for (size_t i = 0; i < kLanes; ++i) store_element(to, DType::f16, i, values[i]);
#else
        const hn::Rebind<hwy::float16_t, F32Tag> f16;
        hn::StoreU(hn::DemoteTo(f16, keys), f16, reinterpret_cast<hwy::float16_t*>(to));
#endif
    } else {
        const hn::RebindToUnsigned<F32Tag> u32;
        const hn::Rebind<uint16_t, F32Tag> u16;
        const F32Vec limit = hn::Set(d, bf16_to_f32(0x7f7f));
        const F32Vec clamped = hn::Clamp(keys, hn::Neg(limit), limit);
        const F32Vec zero = hn::Zero(d);
        const auto is_empty = hn::Eq(hn::Abs(keys), hn::Set(d, kInfinity));
        const auto away = kLargest ? hn::Gt(clamped, zero) : hn::Lt(clamped, zero);
        const auto step = hn::IfThenElseZero(hn::RebindMask(u32, away), hn::Set(u32, 0xffffU));
        const auto bits = hn::Add(hn::BitCast(u32, clamped), step);
        const auto kept =
            hn::IfThenElse(hn::RebindMask(u32, is_empty), hn::BitCast(u32, keys), bits);
        hn::StoreU(hn::TruncateTo(u16, hn::ShiftRight<16>(kept)), u16,
                   reinterpret_cast<uint16_t*>(to));
    }
}

// T: the keys' type. `fresh`: nothing is kept of the old bounds.
template <typename T>
void encode_rows(const PageEncodeInput& in, bool fresh, std::byte* bounds) {
    using Bound = std::conditional_t<hwy::IsSame<T, hwy::float16_t>(), T, hwy::bfloat16_t>;
    const F32Tag d;
    const uint32_t dim = in.kv.format.k_head_dim;
    std::byte* largest = bounds + dim * sizeof(uint16_t);
    const std::byte* rows[kPageSlotsMax];
    float scales[kPageSlotsMax];
    uint32_t row_count = 0;
    for (uint64_t rest = in.slots; rest != 0; rest &= rest - 1) {
        const auto t = static_cast<uint32_t>(std::countr_zero(rest));
        const uint32_t slot = in.page * in.page_slots + t;
        scales[row_count] = k_scale(in.kv, slot, in.kv_head);
        rows[row_count++] = in.kv.k_row(slot, in.kv_head);
    }
    for (uint32_t c = 0; c < dim; c += kLanes) {
        F32Vec low = fresh ? hn::Set(d, kInfinity) : load_row<Bound>(bounds, c);
        F32Vec high = fresh ? hn::Set(d, -kInfinity) : load_row<Bound>(largest, c);
        for (uint32_t i = 0; i < row_count; ++i) {
            const F32Vec key = load_scaled<T>(rows[i], c, scales[i]);
            low = hn::Min(low, key);
            high = hn::Max(high, key);
        }
        store_bounds<false, Bound>(low, bounds + c * sizeof(uint16_t));
        store_bounds<true, Bound>(high, largest + c * sizeof(uint16_t));
    }
}

void encode(const PageEncodeInput& in, bool fresh, std::byte* bounds) {
    SHOAL_ASSERT(in.page_slots <= kPageSlotsMax && in.kv.format.k_head_dim % 16 == 0);
    switch (in.kv.format.k_dtype) {
        case DType::f16: return encode_rows<hwy::float16_t>(in, fresh, bounds);
        case DType::bf16: return encode_rows<hwy::bfloat16_t>(in, fresh, bounds);
        case DType::f32: return encode_rows<float>(in, fresh, bounds);
        case DType::q8: return encode_rows<int8_t>(in, fresh, bounds);
    }
}

void page_encode_here(const PageEncodeInput& in, std::byte* bounds) { encode(in, true, bounds); }
void page_extend_here(const PageEncodeInput& in, std::byte* bounds) { encode(in, false, bounds); }

// ---- Scan ----

// Bounds of q.k, unscaled: one number per query head and page of a chunk.
struct Chunk {
    HWY_ALIGN float bounds[kLabelQueryHeadsMax][kChunkPages];
    HWY_ALIGN float visible_count[kChunkPages];
    uint64_t selectable = 0;  // bit per page
    bool none_visible = true;
};

template <typename T, uint32_t kHeads>
HWY_INLINE void bound_heads(const PageScanInput& in, const std::byte* least, const float* q,
                            float* to) {
    const F32Tag d;
    const std::byte* largest = least + in.k_head_dim * sizeof(uint16_t);
    F32Vec sums[kHeads];
    for (F32Vec& sum : sums) sum = hn::Zero(d);
    for (uint32_t c = 0; c < in.k_head_dim; c += kLanes) {
        const F32Vec low = load_row<T>(least, c);
        const F32Vec high = load_row<T>(largest, c);
        for (uint32_t g = 0; g < kHeads; ++g) {
            const F32Vec query = hn::LoadU(d, q + g * in.q_head_stride + c);
            sums[g] = hn::MulAdd(query, hn::IfNegativeThenElse(query, low, high), sums[g]);
        }
    }
    for (uint32_t g = 0; g < kHeads; ++g) {
        to[g * kChunkPages] = hn::GetLane(hn::SumOfLanes(d, sums[g]));
    }
}

template <typename T>
HWY_INLINE void bound_page(const PageScanInput& in, const std::byte* page, float* to) {
    const float* q = in.q;
    for (uint32_t kv_head = 0; kv_head < in.kv_head_count; ++kv_head) {
        const std::byte* least = page + kv_head * in.head_stride_bytes;
        for (size_t at = 0; at < page_bound_bytes(in.k_head_dim); at += 64) {
            hwy::Prefetch(least + kPrefetchBytes + at);
        }
        for (uint32_t g = 0; g < in.q_per_kv;) {
            const uint32_t heads = std::min(in.q_per_kv - g, kHeadTileMax);
            switch (heads) {
                case 1: bound_heads<T, 1>(in, least, q, to); break;
                case 2: bound_heads<T, 2>(in, least, q, to); break;
                case 3: bound_heads<T, 3>(in, least, q, to); break;
                default: bound_heads<T, 4>(in, least, q, to); break;
            }
            g += heads;
            q += heads * in.q_head_stride;
            to += heads * kChunkPages;
        }
    }
}

template <typename T>
void bound_chunk(const PageScanInput& in, uint32_t first, uint32_t count, Chunk& chunk) {
    const uint32_t q_head_count = in.kv_head_count * in.q_per_kv;
    chunk.selectable = 0;
    chunk.none_visible = true;
    for (uint32_t i = 0; i < kChunkPages; ++i) {
        const uint32_t page = first + i;
        uint64_t visible = 0;
        if (i < count) {
            const SpanMask& mask = in.masks[page * in.page_slots / kSpanSlots];
            visible = page_bits(mask.visible, page, in.page_slots);
            const bool selectable = page_bits(mask.selectable, page, in.page_slots) != 0;
            chunk.selectable |= uint64_t{selectable} << i;
        }
        chunk.visible_count[i] = static_cast<float>(std::popcount(visible));
        if (visible == 0) {
            for (uint32_t head = 0; head < q_head_count; ++head) chunk.bounds[head][i] = 0.0F;
            continue;
        }
        chunk.none_visible = false;
        bound_page<T>(in, in.pages + page * in.page_stride_bytes, &chunk.bounds[0][i]);
    }
}

// 2^x with x limited to +-kLabelExponentMax, relative error below 3e-7.
HWY_INLINE F32Vec exp2_limited(F32Vec x) {
    const F32Tag d;
    const hn::RebindToSigned<F32Tag> di;
    const F32Vec limit = hn::Set(d, kLabelExponentMax);
    x = hn::Clamp(x, hn::Neg(limit), limit);
    const F32Vec whole = hn::Round(x);
    const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, whole));
    const auto fraction = hn::BitCast(di, exp2_fraction(hn::Sub(x, whole)));
    return hn::BitCast(d, hn::Add(fraction, exponent));
}

// Bounds become scores: in `chunk.bounds[0]`.
void combine_chunk(const PageScanInput& in, Chunk& chunk, double* head_sums) {
    const F32Tag d;
    const uint32_t q_head_count = in.kv_head_count * in.q_per_kv;
    const F32Vec scale = hn::Set(d, in.scale * std::numbers::log2e_v<float>);
    const bool weigh = in.combine == Combine::sum || head_sums != nullptr;
    for (uint32_t i = 0; i < kChunkPages; i += kLanes) {
        const F32Vec count = hn::Load(d, chunk.visible_count + i);
        F32Vec total = hn::Zero(d);
        F32Vec best = hn::Set(d, -kInfinity);
        for (uint32_t head = 0; head < q_head_count; ++head) {
            const F32Vec lse = hn::Set(d, in.lse_guess[head]);
            const F32Vec score = hn::MulSub(hn::Load(d, &chunk.bounds[head][i]), scale, lse);
            best = hn::Max(best, score);
            if (!weigh) continue;
            const F32Vec weight = exp2_limited(score);
            total = hn::Add(total, weight);
            if (head_sums == nullptr) continue;
            const F32Vec weighted = hn::Mul(weight, count);
            head_sums[head] += double{hn::GetLane(hn::SumOfLanes(d, weighted))};
        }
        hn::Store(in.combine == Combine::sum ? total : best, d, &chunk.bounds[0][i]);
    }
}

void page_scan_here(const PageScanInput& in, PageScanOutput& out) {
    const uint32_t q_head_count = in.kv_head_count * in.q_per_kv;
    SHOAL_ASSERT(q_head_count <= kLabelQueryHeadsMax && in.k_head_dim % 16 == 0);
    if (out.head_sums != nullptr) std::fill_n(out.head_sums, q_head_count, 0.0);
    out.candidate_count = 0;
    Chunk chunk;
    for (uint32_t first = in.page_begin; first < in.page_end; first += kChunkPages) {
        const uint32_t count = std::min(in.page_end - first, kChunkPages);
        if (in.bound_dtype == DType::f16) {
            bound_chunk<hwy::float16_t>(in, first, count, chunk);
        } else {
            bound_chunk<hwy::bfloat16_t>(in, first, count, chunk);
        }
        if (!chunk.none_visible) combine_chunk(in, chunk, out.head_sums);
        for (uint32_t i = 0; i < count; ++i) {
            const bool selectable = ((chunk.selectable >> i) & 1U) != 0;
            const float score = selectable ? chunk.bounds[0][i] : -kInfinity;
            out.scores[first + i] = score;
            if (out.candidates == nullptr || !selectable) continue;
            if (score >= in.candidate_threshold) {
                out.candidates[out.candidate_count++] = first + i;
            }
        }
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(page_encode_here);
void page_encode(const PageEncodeInput& in, std::byte* bounds) {
    HWY_DYNAMIC_DISPATCH(page_encode_here)(in, bounds);
}

HWY_EXPORT(page_extend_here);
void page_extend(const PageEncodeInput& in, std::byte* bounds) {
    HWY_DYNAMIC_DISPATCH(page_extend_here)(in, bounds);
}

HWY_EXPORT(page_scan_here);
void page_scan(const PageScanInput& in, PageScanOutput& out) {
    HWY_DYNAMIC_DISPATCH(page_scan_here)(in, out);
}

}  // namespace shoal::kernels::cpu
#endif
