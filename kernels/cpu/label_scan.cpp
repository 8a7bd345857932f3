// label_scan: one pass over the labels of a group, combine and candidates fused.
//
// A vector lane is a token. Every LabelOp is an extraction and one dot product of four codes with
// four int8 weights per query head; weights are made per span from the query and the span's
// scales. exp2 is linear in the mantissa: at most 4 % off per head, which moves no slot that label
// noise would not move.
//
// Bound by both memory and arithmetic on an Intel AVX-512 core (L = 32 query / 8 KV heads x 128;
// reading alone takes 13 cycles a line of 64 B): labels that lie in L2 take 16 cycles a line, of
// which products 6, extraction 1.5 and scores 1 fill the two 512-bit ports; the weights of every
// new span cost 4. From memory 21. Labels are one sequential stream, prefetched 2 KiB ahead, a line
// with every op: without prefetch, or beyond the 4 KiB page, the streamer of L2 falls behind.
// Bench: bench/label_scan.
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
#include "kernels/cpu/rows-inl.hpp"
#include "shoal/status.hpp"

#if HWY_TARGET == HWY_AVX3_DL
// As HWY_BEFORE_NAMESPACE(). Highway 1.0.3 asks the machine for VNNI and GFNI, but forgets to
// tell the compiler.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni,gfni")
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

constexpr uint32_t kHeadTileMax = 4;
constexpr size_t kPrefetchBytes = 2048;
// Channels are at most 256, so ops at most 64 full ones and a few with free bytes.
constexpr uint32_t kParametersMax = 320;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Target-specific: four-byte dot products (Highway 1.0.3 has none) ----

#if HWY_TARGET == HWY_AVX3_DL
constexpr bool kWideSums = true;
HWY_INLINE VU extract(VU dwords, const LabelOp& op) {
    const __m512i matrix = _mm512_set1_epi64(static_cast<int64_t>(op.extract));
    return VU{_mm512_gf2p8affine_epi64_epi8(dwords.raw, matrix, 0)};
}
HWY_INLINE VI dot4(VI sum, VU codes, VI weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "v"(weights.raw));
    return sum;
}
// Sums start as the bits of 1.5 x 2^23, and are then floats without a conversion.
constexpr float kSumZero = 12582912.0F;
HWY_INLINE VI sum_start() { return hn::BitCast(kI, hn::Set(kF, kSumZero)); }
HWY_INLINE VF sum_end(VI sum) { return hn::BitCast(kF, sum); }
#else
// Sums have 16 bits: LabelOp::sum_end says when one is full.
constexpr bool kWideSums = HWY_TARGET == HWY_SCALAR;
HWY_INLINE VU extract(VU dwords, const LabelOp& op) {
    const VU moved = op.left != 0 ? hn::ShiftLeft<2>(dwords) : dwords >> hn::Set(kU, op.right);
    return hn::And(moved, hn::Set(kU, op.mask));
}
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
constexpr float kSumZero = 0.0F;
HWY_INLINE VI sum_start() { return hn::Zero(kI); }
HWY_INLINE VF sum_end(VI sum) { return hn::ConvertTo(kF, widen(sum)); }
#endif

// The nearest whole numbers of weights, which are far inside the range of int32.
HWY_INLINE VI to_whole(VF x) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    return VI{_mm512_cvtps_epi32(x.raw)};
#elif HWY_TARGET == HWY_AVX2
    return VI{_mm256_cvtps_epi32(x.raw)};
#else
    return hn::NearestInt(x);
#endif
}

// Stores whole numbers as int8.
HWY_INLINE void store_weights(VI weights, int8_t* to) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    const __m128i bytes = _mm512_cvtsepi32_epi8(weights.raw);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#else
    const hn::Rebind<int8_t, DI> i8;
    hn::StoreU(hn::DemoteTo(i8, weights), i8, to);
#endif
}

// ---- Portable from here on ----

// 2^x, linear in the mantissa: a float's bits are its exponent and mantissa in a row, so they are
// x + 127 in fixed point. Adding 512 puts 14 fraction bits at the end of the float, a shift moves
// them into place. The bias makes the mean error 0. Exponents are limited to +-100.
HWY_INLINE VF exp2_linear(VF x) {
    constexpr float kBias = 512.0F + 127.0F - 0.0573F;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    // The smaller magnitude, with the sign of x: both limits in one instruction.
    const VF limited{_mm512_range_ps(x.raw, _mm512_set1_ps(kLabelExponentMax), 2)};
#else
    const VF limit = hn::Set(kF, kLabelExponentMax);
    const VF limited = hn::Clamp(x, hn::Neg(limit), limit);
#endif
    const VU bits = hn::BitCast(kU, hn::Add(limited, hn::Set(kF, kBias)));
    return hn::BitCast(kF, hn::ShiftLeft<9>(bits));
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
    HWY_ALIGN int8_t weights[kHeadTileMax][kParametersMax] = {};
};

// Sums of the lanes of each of the first kHeads vectors.
template <uint32_t kHeads>
HWY_INLINE void sum_lanes(const VF (&vectors)[kHeadTileMax], float (&sums)[kHeadTileMax]) {
#if HWY_TARGET == HWY_SCALAR
    for (uint32_t g = 0; g < kHeads; ++g) sums[g] = hn::GetLane(vectors[g]);
#else
    // All four at once: a third of the instructions of four separate sums.
    hn::Store(add_blocks(add_lanes_in_blocks(vectors[0], vectors[1], vectors[2], vectors[3])),
              hn::CappedTag<float, 4>(), sums);
#endif
}

// Weights and constants of a tile in this span. `lse_guess` goes into the constant.
//
// A code stands for centre + scale x (code - half the largest code). Half the largest codes come
// off with the rounded weights, which takes most of their error along.
template <uint32_t kHeads>
HWY_INLINE void prepare(const LabelFormat& format, const std::byte* span, const float* lse_guess,
                        Tile& tile) {
    const hn::Rebind<hwy::float16_t, DF> f16;
    const size_t count = label_parameter_count(format);
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(span);
    const hwy::float16_t* centers = scales + count;
    for (uint32_t g = 0; g < kHeads; ++g) tile.constant[g] = -lse_guess[g];
    for (const uint32_t kind : {0U, 1U}) {
        const LabelCodeTable& table = format.tables[kind];
        if (table.factor.empty()) continue;
        VF constants[kHeadTileMax];
        for (VF& constant : constants) constant = hn::Zero(kF);
        for (size_t p = 0; p < count; p += kLanes) {
            const VF scale = hn::PromoteTo(kF, hn::LoadU(f16, scales + p));
            const VF center = hn::Mul(hn::PromoteTo(kF, hn::LoadU(f16, centers + p)),
                                      hn::LoadU(kF, table.factor.data() + p));
            const VF half = hn::LoadU(kF, table.half.data() + p);
            for (uint32_t g = 0; g < kHeads; ++g) {
                const VF weight = hn::LoadU(kF, tile.queries[g].weight.data() + p);
                const VI whole = to_whole(hn::Mul(weight, scale));
                store_weights(whole, tile.weights[g] + p);
                constants[g] = hn::MulAdd(weight, center, constants[g]);
                constants[g] = hn::NegMulAdd(hn::ConvertTo(kF, whole), half, constants[g]);
            }
        }
        HWY_ALIGN float sums[kHeadTileMax];
        sum_lanes<kHeads>(constants, sums);
        for (uint32_t g = 0; g < kHeads; ++g) {
            tile.constant[g] += tile.queries[g].step[kind] * (sums[g] - kSumZero);
        }
    }
}

// The integer labels of one KV head in one span, from slot t on.
struct CodeView {
    const LabelOp* ops = nullptr;
    uint32_t narrow_end = 0;     // ops of 2 and 4 bits
    uint32_t op_end = 0;
    const uint32_t* dwords = nullptr;
    const std::byte* ahead = nullptr;  // a line is prefetched with every op, not in a burst
    size_t vector_stride = 0;    // dwords from one vector of slots to the next
};

// Adds the products of one op to the sums.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_op(const CodeView& view, uint32_t i,
                         const uint32_t* const (&vectors)[kVectors], const Tile& tile,
                         VI (&sums)[kHeads][kVectors]) {
    const LabelOp& op = view.ops[i];
    hwy::Prefetch(view.ahead + 64 * size_t{i});
    VU codes[kVectors];
    HWY_UNROLL(4)
    for (uint32_t v = 0; v < kVectors; ++v) {
        codes[v] = extract(hn::LoadU(kU, vectors[v] + op.dword), op);
    }
    HWY_UNROLL(4)
    for (uint32_t g = 0; g < kHeads; ++g) {
        int32_t packed = 0;
        std::memcpy(&packed, tile.weights[g] + 4 * size_t{i}, sizeof(packed));
        const VI weights = hn::Set(kI, packed);
        HWY_UNROLL(4)
        for (uint32_t v = 0; v < kVectors; ++v) {
            sums[g][v] = dot4(sums[g][v], codes[v], weights);
        }
    }
}

// Adds step x integer dot products of ops [begin, end) to the scores, which start as the constants
// when these are the first ops: scores need no registers during the loop then.
template <bool kFirst, uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_ops(const CodeView& view, uint32_t begin, uint32_t end, const Tile& tile,
                          VF (&scores)[kHeads][kVectors]) {
    const uint32_t* vectors[kVectors];
    for (uint32_t v = 0; v < kVectors; ++v) vectors[v] = view.dwords + v * view.vector_stride;
    VI sums[kHeads][kVectors];
    for (auto& row : sums) {
        for (VI& sum : row) sum = sum_start();
    }
    uint32_t i = begin;
    for (; i + 2 <= end; i += 2) {
        score_op(view, i, vectors, tile, sums);
        score_op(view, i + 1, vectors, tile, sums);
    }
    if (i < end) score_op(view, i, vectors, tile, sums);
    for (uint32_t g = 0; g < kHeads; ++g) {
        const VF step = hn::Set(kF, tile.queries[g].step[begin < view.narrow_end ? 0 : 1]);
        const VF constant = hn::Set(kF, tile.constant[g]);
        for (uint32_t v = 0; v < kVectors; ++v) {
            const VF base = kFirst ? constant : scores[g][v];
            scores[g][v] = hn::MulAdd(sum_end(sums[g][v]), step, base);
        }
    }
}

// Scores of kVectors vectors of slots.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_codes(const CodeView& view, const Tile& tile,
                            VF (&scores)[kHeads][kVectors]) {
    const auto stop_of = [&](uint32_t begin) {
        if constexpr (!kWideSums) return view.ops[begin].sum_end;
        return begin < view.narrow_end ? view.narrow_end : view.op_end;
    };
    uint32_t begin = stop_of(0);
    score_ops<true>(view, 0, begin, tile, scores);
    while (begin < view.op_end) {
        const uint32_t stop = stop_of(begin);
        score_ops<false>(view, begin, stop, tile, scores);
        begin = stop;
    }
}

// The same for f16 labels.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void score_f16(const LabelFormat& format, const std::byte* span, const Tile& tile,
                          uint32_t t, VF (&scores)[kHeads][kVectors]) {
    const hn::Rebind<hwy::float16_t, DF> f16;
    const auto* planes = reinterpret_cast<const hwy::float16_t*>(span) + t;
    for (uint32_t g = 0; g < kHeads; ++g) {
        for (VF& score : scores[g]) score = hn::Set(kF, tile.constant[g]);
    }
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
    bool weigh = true;                     // with Combine::max: the heads' sums are wanted
    Combine combine = Combine::sum;
    HWY_ALIGN float combined[kSpanSlots];  // starts as 0 (sum) or -inf (max)
};

// Adds 2^score to the heads' sums; `weights` becomes the sum over the heads.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void weigh(const VF (&scores)[kHeads][kVectors], uint32_t t, const SpanWork& work,
                      VF (&head_sums)[kHeads], VF (&weights)[kVectors]) {
    for (uint32_t v = 0; v < kVectors; ++v) {
        VF of_heads[kHeads];
        for (uint32_t g = 0; g < kHeads; ++g) of_heads[g] = exp2_linear(scores[g][v]);
        if (HWY_UNLIKELY(!work.all_visible)) {
            const hn::Mask<DF> visible = mask_at(work.mask->visible, t + v * kLanes);
            for (VF& weight : of_heads) weight = hn::IfThenElseZero(visible, weight);
        }
        for (uint32_t g = 0; g < kHeads; ++g) head_sums[g] = hn::Add(head_sums[g], of_heads[g]);
        weights[v] = of_heads[0];
        for (uint32_t g = 1; g < kHeads; ++g) weights[v] = hn::Add(weights[v], of_heads[g]);
    }
}

// Combines the scores of kVectors vectors of slots.
template <uint32_t kHeads, uint32_t kVectors>
HWY_INLINE void combine(const VF (&scores)[kHeads][kVectors], uint32_t t, SpanWork& work,
                        VF (&head_sums)[kHeads]) {
    float* combined = work.combined + t;
    if (work.combine == Combine::sum) {
        VF weights[kVectors];
        weigh(scores, t, work, head_sums, weights);
        for (uint32_t v = 0; v < kVectors; ++v) {
            hn::Store(hn::Add(weights[v], hn::Load(kF, combined + v * kLanes)), kF,
                      combined + v * kLanes);
        }
        return;
    }
    if (work.weigh) {
        VF weights[kVectors];
        weigh(scores, t, work, head_sums, weights);
    }
    for (uint32_t v = 0; v < kVectors; ++v) {
        VF best = hn::Load(kF, combined + v * kLanes);
        for (uint32_t g = 0; g < kHeads; ++g) best = hn::Max(best, scores[g][v]);
        hn::Store(best, kF, combined + v * kLanes);
    }
}

// What is scored, and what is needed soon.
struct HeadSpan {
    const LabelFormat* format = nullptr;
    const std::byte* labels = nullptr;
    bool is_f16 = false;
    bool prefetch = true;  // false once another tile of heads has passed over these labels
};

template <uint32_t kHeads, bool kF16>
void score_tile(const HeadSpan& head, const float* lse_guess, Tile& tile, SpanWork& work,
                float* sums) {
    // Registers: kHeads x kVectors sums, kVectors codes. A block of 16 slots is 1, 2 or 4 vectors.
    constexpr uint32_t kVectors = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 4;
    constexpr uint32_t kStep = kVectors * kLanes;
    static_assert(kLanes == kLabelBlockSlots || kStep <= kLabelBlockSlots);
    // Labels are read in order: as much is prefetched as is read, kPrefetchBytes ahead.
    const size_t span_bytes = kF16 ? head.format->channels.size() * kSpanSlots * sizeof(uint16_t)
                                   : head.format->span_bytes;
    const size_t prefetch_step = head.prefetch ? span_bytes * kStep / kSpanSlots : 0;
    const std::byte* ahead = head.labels + kPrefetchBytes;
    if constexpr (kF16) {
        for (uint32_t g = 0; g < kHeads; ++g) tile.constant[g] = -lse_guess[g];
    } else {
        prepare<kHeads>(*head.format, head.labels, lse_guess, tile);
    }
    CodeView codes;
    codes.ops = head.format->ops.data();
    codes.narrow_end = head.format->narrow_op_count;
    codes.op_end = static_cast<uint32_t>(head.format->ops.size());
    codes.vector_stride =
        kLanes == kLabelBlockSlots ? size_t{head.format->plane_count} * kLanes : kLanes;
    const auto* dwords =
        reinterpret_cast<const uint32_t*>(head.labels + label_code_offset(*head.format));
    VF head_sums[kHeads];
    for (uint32_t g = 0; g < kHeads; ++g) head_sums[g] = hn::LoadU(kF, sums + g * kLanes);
    for (uint32_t t = 0; t < kSpanSlots; t += kStep) {
        codes.ahead = ahead;
        for (size_t at = kF16 ? 0 : 64 * codes.op_end; at < prefetch_step; at += 64) {
            hwy::Prefetch(ahead + at);
        }
        ahead += prefetch_step;
        VF scores[kHeads][kVectors];
        if constexpr (kF16) {
            score_f16(*head.format, head.labels, tile, t, scores);
        } else {
            codes.dwords = dwords + label_dword_index(*head.format, 0, t);
            score_codes(codes, tile, scores);
        }
        combine(scores, t, work, head_sums);
    }
    for (uint32_t g = 0; g < kHeads; ++g) hn::StoreU(head_sums[g], kF, sums + g * kLanes);
}

using ScoreTile = void (*)(const HeadSpan&, const float*, Tile&, SpanWork&, float*);
constexpr ScoreTile kScoreTiles[2][kHeadTileMax] = {
    {&score_tile<1, false>, &score_tile<2, false>, &score_tile<3, false>, &score_tile<4, false>},
    {&score_tile<1, true>, &score_tile<2, true>, &score_tile<3, true>, &score_tile<4, true>}};

// Every query head of one KV head over one span.
void score_kv_head(const LabelScanInput& in, uint32_t span, uint32_t kv_head, Tile& tile,
                   SpanWork& work, float* sums) {
    HeadSpan head;
    head.format = &in.formats[kv_head];
    if (span == in.open_span) {
        head.labels = in.open + in.open_head_offset_bytes[kv_head];
        head.is_f16 = true;
    } else {
        head.labels = in.spans + span * in.span_stride_bytes + in.head_offset_bytes[kv_head];
        head.is_f16 = head.format->is_f16();
    }
    for (uint32_t g = 0; g < in.q_per_kv;) {
        const uint32_t left = in.q_per_kv - g;
        const uint32_t tiles_left = (left + kHeadTileMax - 1) / kHeadTileMax;
        const uint32_t heads = (left + tiles_left - 1) / tiles_left;
        const uint32_t q_head = kv_head * in.q_per_kv + g;
        tile.queries = in.queries + q_head;
        kScoreTiles[head.is_f16 ? 1 : 0][heads - 1](head, in.lse_guess + q_head, tile, work,
                                                    sums + q_head * kLanes);
        head.prefetch = false;
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
    work.weigh = out.head_sums != nullptr;
    for (uint32_t span = in.span_begin; span < in.span_end; ++span) {
        work.mask = &in.masks[span];
        if (work.mask->none_visible()) {
            std::fill_n(out.scores + span * kSpanSlots, kSpanSlots, -kInfinity);
        } else {
            work.all_visible = all_set(work.mask->visible);
            std::fill_n(work.combined, kSpanSlots,
                        in.combine == Combine::sum ? 0.0F : -kInfinity);
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
