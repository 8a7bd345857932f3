// label_scan: one pass over the labels of a group, combine and candidates fused.
//
// A vector lane is a token. Every LabelOp is shift, mask and one dot product of four codes with
// four int8 weights per query head; weights are made per span from the query and the span's
// scales, and what their rounding loses at the middle code goes into the span's constant. The
// spans of the next 128 slots are prefetched while these are scored: without that, two threads
// reach about 80 % of the bandwidth they reach with it. exp2 is linear in the mantissa: at most
// 4 % off per head, which moves no slot that label noise would not move. Bench: bench/label_scan.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/label_scan.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/cpu.hpp"
#include "shoal/status.hpp"

#if HWY_TARGET == HWY_AVX3_DL
// As HWY_BEFORE_NAMESPACE(); Highway 1.0.3 forgets avx512vnni, which every AVX3_DL machine has.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_BEFORE_NAMESPACE();
#endif
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::Rebind<int32_t, DF>;
using DU = hn::Rebind<uint32_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;
constexpr DF kF;
constexpr DI kI;
constexpr DU kU;
constexpr uint32_t kLanes = static_cast<uint32_t>(HWY_LANES(float));

constexpr uint32_t kHeadTileMax = 4;
// Channels are at most 256, so ops at most 64 full ones and a few with free bytes.
constexpr uint32_t kParametersMax = 320;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Target-specific: four-byte dot products (Highway 1.0.3 has none) ----

#if HWY_TARGET == HWY_AVX3_DL
constexpr uint32_t kOpsPerSum[3] = {1024, 1024, 1024};
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    return VI{_mm512_dpbusd_epi32(sum.raw, codes.raw, weights.raw)};
}
HWY_INLINE VI widen(VI sum) { return sum; }
#else
// Sums of two products in 16 bits: 2 x 3 x 127 x 40, 2 x 15 x 127 x 8 and 2 x 255 x 64 fit.
constexpr uint32_t kOpsPerSum[3] = {40, 8, 1};
#if HWY_TARGET == HWY_AVX3
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    return VI{_mm512_add_epi16(sum.raw, _mm512_maddubs_epi16(codes.raw, weights.raw))};
}
HWY_INLINE VI widen(VI sum) { return VI{_mm512_madd_epi16(sum.raw, _mm512_set1_epi16(1))}; }
#elif HWY_TARGET == HWY_AVX2
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    return VI{_mm256_add_epi16(sum.raw, _mm256_maddubs_epi16(codes.raw, weights.raw))};
}
HWY_INLINE VI widen(VI sum) { return VI{_mm256_madd_epi16(sum.raw, _mm256_set1_epi16(1))}; }
#elif HWY_TARGET == HWY_SCALAR
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    for (uint32_t byte = 0; byte < 32; byte += 8) {
        const auto weight = static_cast<int8_t>(static_cast<uint32_t>(weights.raw) >> byte);
        sum.raw += static_cast<int32_t>((codes.raw >> byte) & 0xffU) * weight;
    }
    return sum;
}
HWY_INLINE VI widen(VI sum) { return sum; }
#else
constexpr hn::Repartition<int16_t, DF> kI16;
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    const VU even = hn::Set(kU, 0x00ff00ffU);
    const auto low = hn::BitCast(kI16, hn::And(codes, even));
    const auto high = hn::BitCast(kI16, hn::And(hn::ShiftRight<8>(codes), even));
    const auto weights16 = hn::BitCast(kI16, weights);
    const auto weights_low = hn::ShiftRight<8>(hn::ShiftLeft<8>(weights16));
    const auto pair = hn::Add(hn::Mul(low, weights_low),
                              hn::Mul(high, hn::ShiftRight<8>(weights16)));
    return hn::BitCast(kI, hn::Add(hn::BitCast(kI16, sum), pair));
}
HWY_INLINE VI widen(VI sum) {
    return hn::Add(hn::ShiftRight<16>(sum), hn::ShiftRight<16>(hn::ShiftLeft<16>(sum)));
}
#endif
#endif

// ---- Portable from here on ----

// 2^x: the float whose exponent and mantissa are x + 127, less the mean error of that.
HWY_INLINE VF exp2_linear(VF x) {
    constexpr float kUnit = 8388608.0F;               // 2^23
    constexpr float kBias = (127.0F - 0.0573F) * kUnit;
    const VF limited = hn::Min(x, hn::Set(kF, kLabelExponentMax));
    const VF bits = hn::MulAdd(limited, hn::Set(kF, kUnit), hn::Set(kF, kBias));
    return hn::BitCast(kF, hn::ConvertTo(kI, hn::Max(bits, hn::Zero(kF))));
}

HWY_INLINE hn::Mask<DF> mask_at(const uint64_t words[2], uint32_t t) {
    const uint64_t bits = words[t / 64] >> (t % 64);
    uint8_t bytes[8];
    std::memcpy(bytes, &bits, sizeof(bits));
    return hn::LoadMaskBits(kF, bytes);
}

bool all_set(const uint64_t words[2]) { return (words[0] & words[1]) == ~uint64_t{0}; }

// What the query heads of one tile need to score one span of one KV head.
struct Tile {
    const LabelQuery* queries = nullptr;  // [heads]
    float constant[kHeadTileMax] = {};    // added to every slot's score
    HWY_ALIGN int8_t weights[kHeadTileMax][kParametersMax];
};

// Weights and constants of a tile in this span. `lse_guess` goes into the constant.
HWY_INLINE void prepare(const LabelFormat& format, const std::byte* span, uint32_t heads,
                        const float* lse_guess, Tile& tile) {
    const hn::Rebind<hwy::float16_t, DF> f16;
    const hn::Rebind<int8_t, DI> i8;
    const size_t count = label_parameter_count(format);
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(
        span + format.plane_count * size_t{kSpanSlots} * 4);
    const hwy::float16_t* minima = scales + count;
    for (uint32_t g = 0; g < heads; ++g) {
        const LabelQuery& query = tile.queries[g];
        VF constant = hn::Zero(kF);
        for (size_t p = 0; p < count; p += kLanes) {
            const VF scale = hn::PromoteTo(kF, hn::LoadU(f16, scales + p));
            const VF minimum = hn::PromoteTo(kF, hn::LoadU(f16, minima + p));
            const VF weight = hn::Mul(hn::LoadU(kF, query.weight.data() + p), scale);
            const VI rounded = hn::NearestInt(weight);
            hn::StoreU(hn::DemoteTo(i8, rounded), i8, tile.weights[g] + p);
            constant = hn::MulAdd(hn::LoadU(kF, query.q_ops.data() + p), minimum, constant);
            constant = hn::MulAdd(hn::Sub(weight, hn::ConvertTo(kF, rounded)),
                                  hn::LoadU(kF, query.mid.data() + p), constant);
        }
        tile.constant[g] = hn::GetLane(hn::SumOfLanes(kF, constant)) - lse_guess[g];
    }
}

// Adds the integer part of the scores of slots t .. t + kVectors * kLanes.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_codes(const LabelFormat& format, const std::byte* span, const Tile& tile,
                            uint32_t t, VF (&scores)[kHeads][kVectors]) {
    const auto* planes = reinterpret_cast<const uint32_t*>(span) + t;
    const size_t op_count = format.ops.size();
    for (size_t begin = 0; begin < op_count;) {
        const uint32_t bits = format.ops[begin].bits;
        const uint32_t kind = bits == 2 ? 0 : bits == 4 ? 1 : 2;
        VI sums[kHeads][kVectors];
        for (auto& row : sums) {
            for (VI& sum : row) sum = hn::Zero(kI);
        }
        const size_t limit = std::min<size_t>(op_count, begin + kOpsPerSum[kind]);
        size_t i = begin;
        for (; i < limit && format.ops[i].bits == bits; ++i) {
            const LabelOp& op = format.ops[i];
            const uint32_t* plane = planes + size_t{op.plane} * kSpanSlots;
            const VU mask = hn::Set(kU, op.mask);
            VU codes[kVectors];
            for (uint32_t v = 0; v < kVectors; ++v) {
                const VU dwords = hn::LoadU(kU, plane + v * kLanes);
                codes[v] = hn::And(hn::ShiftRightSame(dwords, op.shift), mask);
            }
            for (uint32_t g = 0; g < kHeads; ++g) {
                int32_t packed = 0;
                std::memcpy(&packed, tile.weights[g] + 4 * i, sizeof(packed));
                const VI weights = hn::Set(kI, packed);
                for (uint32_t v = 0; v < kVectors; ++v) {
                    sums[g][v] = dot4(sums[g][v], codes[v], weights);
                }
            }
        }
        begin = i;
        for (uint32_t g = 0; g < kHeads; ++g) {
            const VF step = hn::Set(kF, tile.queries[g].step[kind]);
            for (uint32_t v = 0; v < kVectors; ++v) {
                scores[g][v] =
                    hn::MulAdd(hn::ConvertTo(kF, widen(sums[g][v])), step, scores[g][v]);
            }
        }
    }
}

// The same for f16 labels.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_f16(const LabelFormat& format, const std::byte* span, const Tile& tile,
                          uint32_t t, VF (&scores)[kHeads][kVectors]) {
    const hn::Rebind<hwy::float16_t, DF> f16;
    const auto* planes = reinterpret_cast<const hwy::float16_t*>(span) + t;
    for (size_t c = 0; c < format.channels.size(); ++c) {
        VF values[kVectors];
        for (uint32_t v = 0; v < kVectors; ++v) {
            values[v] = hn::PromoteTo(kF, hn::LoadU(f16, planes + c * kSpanSlots + v * kLanes));
        }
        for (uint32_t g = 0; g < kHeads; ++g) {
            const VF q = hn::Set(kF, tile.queries[g].q[c]);
            for (uint32_t v = 0; v < kVectors; ++v) {
                scores[g][v] = hn::MulAdd(values[v], q, scores[g][v]);
            }
        }
    }
}

// One span on its way through the heads.
struct SpanWork {
    const SpanMask* mask = nullptr;
    bool all_visible = false;
    Combine combine = Combine::sum;
    bool first = true;                     // no head has written `combined` yet
    HWY_ALIGN float combined[kSpanSlots];
};

template <uint32_t kHeads, bool kF16>
void score_tile(const LabelFormat& format, const std::byte* span, const Tile& tile,
                const std::byte* prefetch, size_t prefetch_bytes, SpanWork& work, float* sums) {
    // Registers: kHeads x kVectors float and as many integer sums.
    constexpr uint32_t kVectors = kLanes == 16 ? (kHeads <= 2 ? 4 : 2) : (kHeads == 1 ? 2 : 1);
    constexpr uint32_t kStep = kVectors * kLanes;
    const size_t prefetch_step = prefetch_bytes * kStep / kSpanSlots;
    VF head_sums[kHeads];
    for (uint32_t g = 0; g < kHeads; ++g) head_sums[g] = hn::LoadU(kF, sums + g * kLanes);
    for (uint32_t t = 0; t < kSpanSlots; t += kStep) {
        for (size_t at = 0; at < prefetch_step; at += 64) {
            hwy::Prefetch(prefetch + (t / kStep) * prefetch_step + at);
        }
        VF scores[kHeads][kVectors];
        for (uint32_t g = 0; g < kHeads; ++g) {
            for (VF& score : scores[g]) score = hn::Set(kF, tile.constant[g]);
        }
        if constexpr (kF16) {
            score_f16(format, span, tile, t, scores);
        } else {
            score_codes(format, span, tile, t, scores);
        }
        for (uint32_t v = 0; v < kVectors; ++v) {
            const uint32_t at = t + v * kLanes;
            VF best = scores[0][v];
            VF total = hn::Zero(kF);
            for (uint32_t g = 0; g < kHeads; ++g) {
                best = hn::Max(best, scores[g][v]);
                VF weight = exp2_linear(scores[g][v]);
                if (!work.all_visible) {
                    weight = hn::IfThenElseZero(mask_at(work.mask->visible, at), weight);
                }
                head_sums[g] = hn::Add(head_sums[g], weight);
                total = hn::Add(total, weight);
            }
            float* combined = work.combined + at;
            if (work.combine == Combine::sum) {
                if (!work.first) total = hn::Add(total, hn::Load(kF, combined));
                hn::Store(total, kF, combined);
            } else {
                if (!work.first) best = hn::Max(best, hn::Load(kF, combined));
                hn::Store(best, kF, combined);
            }
        }
    }
    for (uint32_t g = 0; g < kHeads; ++g) hn::StoreU(head_sums[g], kF, sums + g * kLanes);
}

template <bool kF16>
void score_heads(uint32_t heads, const LabelFormat& format, const std::byte* span,
                 const Tile& tile, const std::byte* prefetch, size_t prefetch_bytes,
                 SpanWork& work, float* sums) {
    const auto run = heads == 1   ? &score_tile<1, kF16>
                     : heads == 2 ? &score_tile<2, kF16>
                     : heads == 3 ? &score_tile<3, kF16>
                                  : &score_tile<4, kF16>;
    run(format, span, tile, prefetch, prefetch_bytes, work, sums);
}

// Every query head of one KV head over one span.
void score_kv_head(const LabelScanInput& in, uint32_t span, uint32_t kv_head, Tile& tile,
                   SpanWork& work, float* sums) {
    const LabelFormat& format = in.formats[kv_head];
    const bool is_open = span == in.open_span;
    const bool is_f16 = is_open || format.is_f16();
    const std::byte* labels = is_open ? in.open + in.open_head_offset_bytes[kv_head]
                                      : in.spans + span * in.span_stride_bytes +
                                            in.head_offset_bytes[kv_head];
    const bool has_next = span + 1 < in.span_end && span + 1 != in.open_span && !is_open;
    size_t prefetch_bytes = has_next ? format.span_bytes : 0;
    const std::byte* next = labels + in.span_stride_bytes;
    for (uint32_t g = 0; g < in.q_per_kv;) {
        const uint32_t left = in.q_per_kv - g;
        const uint32_t tiles_left = (left + kHeadTileMax - 1) / kHeadTileMax;
        const uint32_t heads = (left + tiles_left - 1) / tiles_left;
        const uint32_t head = kv_head * in.q_per_kv + g;
        tile.queries = in.queries + head;
        if (is_f16) {
            for (uint32_t i = 0; i < heads; ++i) tile.constant[i] = -in.lse_guess[head + i];
            score_heads<true>(heads, format, labels, tile, next, prefetch_bytes, work,
                              sums + head * kLanes);
        } else {
            prepare(format, labels, heads, in.lse_guess + head, tile);
            score_heads<false>(heads, format, labels, tile, next, prefetch_bytes, work,
                               sums + head * kLanes);
        }
        work.first = false;
        prefetch_bytes = 0;
        g += heads;
    }
}

// Stores the span's scores and appends its candidates.
void finish_span(const LabelScanInput& in, uint32_t span, const SpanWork& work,
                 LabelScanOutput& out) {
    const bool all_selectable = work.mask->all_selectable();
    const VF threshold = hn::Set(kF, in.candidate_threshold);
    for (uint32_t t = 0; t < kSpanSlots; t += kLanes) {
        VF score = hn::Load(kF, work.combined + t);
        hn::Mask<DF> is_candidate = hn::Ge(score, threshold);
        if (!all_selectable) {
            const hn::Mask<DF> selectable = mask_at(work.mask->selectable, t);
            score = hn::IfThenElse(selectable, score, hn::Set(kF, -kInfinity));
            is_candidate = hn::And(is_candidate, selectable);
        }
        const uint32_t slot = span * kSpanSlots + t;
        hn::StoreU(score, kF, out.scores + slot);
        if (out.candidates == nullptr || hn::AllFalse(kF, is_candidate)) continue;
        const VU slots = hn::Iota(kU, slot);
        const auto chosen = hn::RebindMask(kU, is_candidate);
        hn::StoreU(hn::Compress(slots, chosen), kU, out.candidates + out.candidate_count);
        out.candidate_count += static_cast<uint32_t>(hn::CountTrue(kU, chosen));
    }
}

void label_scan_here(const LabelScanInput& in, LabelScanOutput& out) {
    const uint32_t q_head_count = in.kv_head_count * in.q_per_kv;
    SHOAL_ASSERT(q_head_count <= kLabelQueryHeadsMax);
    // Sums of 2^ per lane: f32 over at most kFlushSpans spans, then double.
    constexpr uint32_t kFlushSpans = 32;
    HWY_ALIGN float sums[kLabelQueryHeadsMax * kLanes];
    std::memset(sums, 0, q_head_count * kLanes * sizeof(float));
    if (out.head_sums != nullptr) std::fill_n(out.head_sums, q_head_count, 0.0);
    out.candidate_count = 0;
    Tile tile;
    SpanWork work;
    work.combine = in.combine;
    for (uint32_t span = in.span_begin; span < in.span_end; ++span) {
        work.mask = &in.masks[span];
        if (work.mask->none_visible()) {
            std::fill_n(out.scores + span * kSpanSlots, kSpanSlots, -kInfinity);
        } else {
            work.all_visible = all_set(work.mask->visible);
            work.first = true;
            for (uint32_t kv_head = 0; kv_head < in.kv_head_count; ++kv_head) {
                score_kv_head(in, span, kv_head, tile, work, sums);
            }
            finish_span(in, span, work, out);
        }
        if ((span + 1) % kFlushSpans != 0 && span + 1 != in.span_end) continue;
        if (out.head_sums == nullptr) continue;
        for (uint32_t i = 0; i < q_head_count * kLanes; ++i) {
            out.head_sums[i / kLanes] += double{sums[i]};
            sums[i] = 0.0F;
        }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(label_scan_here);
void label_scan(const LabelScanInput& in, LabelScanOutput& out) {
    HWY_DYNAMIC_DISPATCH(label_scan_here)(in, out);
}

}  // namespace shoal::kernels::cpu
#endif
