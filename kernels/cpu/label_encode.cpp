// label_encode: range and code a whole span of one KV head.
//
// The label channels of 128 rows are turned channel-major once (a row is widened by vectors, its
// channels picked one by one); from there a lane is a token and every step is a straight pass.
// It runs during prefill, and must not be felt there: see bench/label_scan, line "encode".
// Single rows (label_encode_row, label_encode_open) are a few dozen scalar operations: ref's.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/label_encode.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/cpu.hpp"
#include "kernels/q8.hpp"
#include "shoal/status.hpp"

HWY_BEFORE_NAMESPACE();
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

// Channels turned at a time: 32 KiB, what the L1 cache holds.
constexpr uint32_t kTurnedMax = 64;
constexpr uint32_t kHeadDimMax = 256;

// Centred channels of the span, channel-major. Slots that are not written repeat one that is, so
// that they change no range.
struct Turned {
    HWY_ALIGN float values[kTurnedMax][kSpanSlots];
};

HWY_INLINE void widen_row(const std::byte* row, DType dtype, float scale, uint32_t head_dim,
                          float* out) {
    const hn::Rebind<uint16_t, DF> u16;
    const hn::Rebind<hwy::float16_t, DF> f16;
    const hn::Rebind<int8_t, DF> i8;
    if (dtype == DType::q8) {
        const auto* codes = reinterpret_cast<const int8_t*>(row);
        for (uint32_t c = 0; c < head_dim; c += kLanes) {
            const VF wide = hn::ConvertTo(kF, hn::PromoteTo(kI, hn::LoadU(i8, codes + c)));
            hn::Store(hn::Mul(wide, hn::Set(kF, scale)), kF, out + c);
        }
    } else if (dtype == DType::f32) {
        std::memcpy(out, row, head_dim * sizeof(float));
    } else if (dtype == DType::bf16) {
        const auto* bits = reinterpret_cast<const uint16_t*>(row);
        for (uint32_t c = 0; c < head_dim; c += kLanes) {
            const VU wide = hn::PromoteTo(kU, hn::LoadU(u16, bits + c));
            hn::Store(hn::BitCast(kF, hn::ShiftLeft<16>(wide)), kF, out + c);
        }
    } else {
        const auto* halves = reinterpret_cast<const hwy::float16_t*>(row);
        for (uint32_t c = 0; c < head_dim; c += kLanes) {
            hn::Store(hn::PromoteTo(kF, hn::LoadU(f16, halves + c)), kF, out + c);
        }
    }
}

void turn(const LabelEncodeInput& in, size_t channel_first, size_t channel_count, Turned& turned) {
    HWY_ALIGN float row[kHeadDimMax];
    const LabelChannel* channels = in.format->channels.data() + channel_first;
    const float* means = in.format->mean.data() + channel_first;
    const uint32_t first_written =
        static_cast<uint32_t>(in.written[0] != 0 ? std::countr_zero(in.written[0])
                                                 : 64 + std::countr_zero(in.written[1]));
    for (uint32_t t = 0; t < kSpanSlots; ++t) {
        const bool written = ((in.written[t / 64] >> (t % 64)) & 1U) != 0;
        const uint32_t slot = in.span * kSpanSlots + (written ? t : first_written);
        widen_row(in.kv.k_row(slot, in.kv_head), in.kv.format.k_dtype,
                  k_scale(in.kv, slot, in.kv_head), in.format->k_head_dim, row);
        for (size_t c = 0; c < channel_count; ++c) {
            turned.values[c][t] = row[channels[c].channel] - means[c];
        }
    }
}

LabelRange range_of(const float* values, uint32_t bits) {
    VF low = hn::Load(kF, values);
    VF high = low;
    for (uint32_t t = kLanes; t < kSpanSlots; t += kLanes) {
        low = hn::Min(low, hn::Load(kF, values + t));
        high = hn::Max(high, hn::Load(kF, values + t));
    }
    return label_range(hn::GetLane(hn::MinOfLanes(kF, low)), hn::GetLane(hn::MaxOfLanes(kF, high)),
                       bits);
}

// Adds the codes of one channel, moved to their place in the dwords of `plane`.
HWY_INLINE void put_codes(const LabelFormat& format, const float* values, const LabelRange& range,
                          const LabelOp& op, uint32_t lane, uint32_t* codes) {
    const float scale = f16_to_f32(range.scale);
    const VF inverse = hn::Set(kF, scale > 0.0F ? 1.0F / scale : 0.0F);
    const VF minimum = hn::Set(kF, label_minimum(range, op.bits));
    const VI levels = hn::Set(kI, static_cast<int32_t>((1U << op.bits) - 1U));
    const int shift = static_cast<int>(8 * lane + op.shift);
    for (uint32_t t = 0; t < kSpanSlots; t += kLanes) {
        const VF scaled = hn::Mul(hn::Sub(hn::Load(kF, values + t), minimum), inverse);
        const VI code = hn::Min(hn::Max(hn::NearestInt(scaled), hn::Zero(kI)), levels);
        const VU placed = hn::ShiftLeftSame(hn::BitCast(kU, code), shift);
        uint32_t* at = codes + label_dword_index(format, op.plane, t);
        hn::StoreU(hn::Or(hn::LoadU(kU, at), placed), kU, at);
    }
}

void clear_unwritten(const LabelEncodeInput& in, uint32_t* codes) {
    for (uint32_t t = 0; t < kSpanSlots; ++t) {
        if (((in.written[t / 64] >> (t % 64)) & 1U) != 0) continue;
        for (uint32_t p = 0; p < in.format->plane_count; ++p) {
            codes[label_dword_index(*in.format, p, t)] = 0;
        }
    }
}

// Channels [first, first + count) of integer labels.
void encode_codes(const LabelEncodeInput& in, const Turned& turned, size_t first, size_t count,
                  std::byte* span) {
    const LabelFormat& format = *in.format;
    auto* scales = reinterpret_cast<uint16_t*>(span);
    uint16_t* centers = scales + label_parameter_count(format);
    auto* codes = reinterpret_cast<uint32_t*>(span + label_code_offset(format));
    for (size_t i = 0; i < format.ops.size(); ++i) {
        const LabelOp& op = format.ops[i];
        for (uint32_t lane = 0; lane < 4; ++lane) {
            const size_t c = op.code_index[lane];
            if (c < first || c >= first + count) continue;  // kNoChannel is beyond every range
            const float* values = turned.values[c - first];
            const LabelRange range = range_of(values, op.bits);
            scales[4 * i + lane] = range.scale;
            centers[4 * i + lane] = range.center;
            float& scale_max = in.channel_scale_max[c];
            scale_max = std::max(scale_max, f16_to_f32(range.scale));
            put_codes(format, values, range, op, lane, codes);
        }
    }
}

void encode_f16(const LabelEncodeInput& in, const Turned& turned, size_t first, size_t count,
                std::byte* span) {
    auto* planes = reinterpret_cast<uint16_t*>(span);
    for (size_t c = 0; c < count; ++c) {
        for (uint32_t t = 0; t < kSpanSlots; ++t) {
            if (((in.written[t / 64] >> (t % 64)) & 1U) == 0) continue;
            const float value = std::clamp(turned.values[c][t], -65504.0F, 65504.0F);
            planes[(first + c) * kSpanSlots + t] = f32_to_f16(value);
        }
    }
}

void label_encode_here(const LabelEncodeInput& in, std::byte* span) {
    const LabelFormat& format = *in.format;
    SHOAL_ASSERT(format.k_head_dim <= kHeadDimMax && format.k_head_dim % 16 == 0);
    std::memset(span, 0, format.span_bytes);
    if ((in.written[0] | in.written[1]) == 0) return;
    Turned turned;
    for (size_t first = 0; first < format.channels.size(); first += kTurnedMax) {
        const size_t count = std::min<size_t>(kTurnedMax, format.channels.size() - first);
        turn(in, first, count, turned);
        if (format.is_f16()) {
            encode_f16(in, turned, first, count, span);
        } else {
            encode_codes(in, turned, first, count, span);
        }
    }
    if (!format.is_f16() && (in.written[0] & in.written[1]) != ~uint64_t{0}) {
        clear_unwritten(in, reinterpret_cast<uint32_t*>(span + label_code_offset(format)));
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(label_encode_here);
void label_encode(const LabelEncodeInput& in, std::byte* span) {
    HWY_DYNAMIC_DISPATCH(label_encode_here)(in, span);
}

}  // namespace shoal::kernels::cpu
#endif
