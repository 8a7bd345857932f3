// append: convert rows to the stored dtype and look for Inf and NaN in what was stored.
//
// Rows are short (64 to 256 numbers) and land in adjacent pieces as long as slots are adjacent:
// the cost is one pass over the input, and the check is a maximum of the magnitudes' bits.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/append.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu.hpp"
#include "kernels/q8.hpp"
#include "shoal/status.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU = hn::Rebind<uint32_t, DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using VU = hn::Vec<DU>;
using VU16 = hn::Vec<DU16>;
constexpr DU kU;
constexpr DU16 kU16;
constexpr uint32_t kLanes = static_cast<uint32_t>(HWY_LANES(float));

// Every converter: convert(from, to, i) handles elements i .. i + kLanes, finite() sums up.

struct F32ToF32 {
    VU largest = hn::Zero(kU);
    HWY_INLINE void convert(const std::byte* from, std::byte* to, uint32_t i) {
        const VU bits = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(from) + i);
        hn::StoreU(bits, kU, reinterpret_cast<uint32_t*>(to) + i);
        largest = hn::Max(largest, hn::And(bits, hn::Set(kU, 0x7fffffffU)));
    }
    HWY_INLINE bool finite() const {
        return hn::AllTrue(kU, hn::Lt(largest, hn::Set(kU, 0x7f800000U)));
    }
};

struct F32ToBf16 {
    VU largest = hn::Zero(kU);
    HWY_INLINE void convert(const std::byte* from, std::byte* to, uint32_t i) {
        const VU bits = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(from) + i);
        const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(kU, 1));
        const VU rounded = hn::Add(bits, hn::Add(odd, hn::Set(kU, 0x7fffU)));
        // A NaN must not be rounded up into Inf or over the sign: it is made quiet instead.
        const auto is_nan =
            hn::Gt(hn::And(bits, hn::Set(kU, 0x7fffffffU)), hn::Set(kU, 0x7f800000U));
        const VU kept = hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(kU, 0x00400000U)), rounded);
        largest = hn::Max(largest, hn::And(kept, hn::Set(kU, 0x7fffffffU)));
        hn::StoreU(hn::TruncateTo(kU16, hn::ShiftRight<16>(kept)), kU16,
                   reinterpret_cast<uint16_t*>(to) + i);
    }
    HWY_INLINE bool finite() const {
        return hn::AllTrue(kU, hn::Lt(largest, hn::Set(kU, 0x7f800000U)));
    }
};

// 16-bit numbers whose exponent field is `kExponent` are Inf or NaN.
template <uint16_t kExponent>
struct Largest16 {
    VU16 largest = hn::Zero(kU16);
    HWY_INLINE void see(VU16 bits) {
        largest = hn::Max(largest, hn::And(bits, hn::Set(kU16, 0x7fff)));
    }
    HWY_INLINE bool finite() const {
        return hn::AllTrue(kU16, hn::Lt(largest, hn::Set(kU16, kExponent)));
    }
};

template <uint16_t kExponent>
struct Copy16 : Largest16<kExponent> {
    HWY_INLINE void convert(const std::byte* from, std::byte* to, uint32_t i) {
        const VU16 bits = hn::LoadU(kU16, reinterpret_cast<const uint16_t*>(from) + i);
        hn::StoreU(bits, kU16, reinterpret_cast<uint16_t*>(to) + i);
        this->see(bits);
    }
};

struct F32ToF16 : Largest16<0x7c00> {
    HWY_INLINE void convert(const std::byte* from, std::byte* to, uint32_t i) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
        // Highway's software conversion does not round to nearest even.
        for (uint32_t lane = i; lane < i + kLanes; ++lane) {
            store_element(to, DType::f16, lane, load_element(from, DType::f32, lane));
        }
        see(hn::LoadU(kU16, reinterpret_cast<const uint16_t*>(to) + i));
#else
        const hn::Rebind<hwy::float16_t, DF> f16;
        const auto half =
            hn::DemoteTo(f16, hn::LoadU(DF(), reinterpret_cast<const float*>(from) + i));
        const VU16 bits = hn::BitCast(kU16, half);
        hn::StoreU(bits, kU16, reinterpret_cast<uint16_t*>(to) + i);
        see(bits);
#endif
    }
};

// Pairs that no engine uses today: f16 to bf16 and the like, q8 to others.
struct AnyToAny {
    DType from_dtype = DType::f32;
    DType to_dtype = DType::f32;
    uint32_t head_dim = 0;
    bool all_finite = true;
    void convert(const std::byte* from, std::byte* to, uint32_t i) {
        const float scale = bf16_to_f32(tensor_scale(from, from_dtype, head_dim));
        for (uint32_t lane = i; lane < i + kLanes; ++lane) {
            store_element(to, to_dtype, lane, load_element(from, from_dtype, lane, scale));
            all_finite = all_finite && std::isfinite(load_element(to, to_dtype, lane));
        }
    }
    bool finite() const { return all_finite; }
};

template <typename Converter>
AppendResult append_rows(const AppendInput& in, uint32_t head_dim, size_t part_offset,
                         Converter converter) {
    for (uint32_t i = 0; i < in.rows.n; ++i) {
        const std::byte* from = in.rows.data + i * in.rows.n_stride_bytes +
                                in.head_first * in.rows.head_stride_bytes;
        std::byte* to = in.kv.piece(static_cast<uint32_t>(in.slots[i])) + part_offset;
        for (uint32_t h = 0; h < in.kv.format.kv_head_count; ++h) {
            for (uint32_t c = 0; c < head_dim; c += kLanes) converter.convert(from, to, c);
            from += in.rows.head_stride_bytes;
            to += in.kv.format.row_stride_bytes;
        }
    }
    return {converter.finite()};
}

AppendResult append_here(const AppendInput& in) {
    const PieceFormat& format = in.kv.format;
    const bool is_k = in.part == RowPart::k;
    const DType from = in.rows.dtype;
    const DType to = is_k ? format.k_dtype : format.v_dtype;
    const uint32_t head_dim = is_k ? format.k_head_dim : format.v_head_dim;
    const size_t offset = is_k ? 0 : format.v_offset_bytes;
    SHOAL_ASSERT(head_dim % 16 == 0);
    if (from == DType::f32 && to == DType::f16)
        return append_rows(in, head_dim, offset, F32ToF16{});
    if (from == DType::f32 && to == DType::bf16) {
        return append_rows(in, head_dim, offset, F32ToBf16{});
    }
    if (from == DType::f32 && to == DType::f32)
        return append_rows(in, head_dim, offset, F32ToF32{});
    if (from == DType::f16 && to == DType::f16) {
        return append_rows(in, head_dim, offset, Copy16<0x7c00>{});
    }
    if (from == DType::bf16 && to == DType::bf16) {
        return append_rows(in, head_dim, offset, Copy16<0x7f80>{});
    }
    return append_rows(in, head_dim, offset, AnyToAny{from, to, head_dim});
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(append_here);
AppendResult append(const AppendInput& in) {
    const PieceFormat& format = in.kv.format;
    const DType to = in.part == RowPart::k ? format.k_dtype : format.v_dtype;
    return to == DType::q8 ? append_q8(in) : HWY_DYNAMIC_DISPATCH(append_here)(in);
}

}  // namespace shoal::kernels::cpu
#endif
