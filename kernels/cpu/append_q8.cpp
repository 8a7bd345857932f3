// append to q8 rows: two passes over a row, the first for its largest magnitude, which also shows
// NaN and Inf; the second finds the row in L1. The codes are ref's bit for bit.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/append_q8.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <bit>

#include "kernels/cpu/cpu.hpp"
#include "kernels/cpu/rows-inl.hpp"
#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"
#include "shoal/status.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128

template <typename T>
uint16_t quantise_row(const std::byte* row, uint32_t head_dim, std::byte* codes) {
    const F32Tag d;
    const hn::RebindToUnsigned<F32Tag> u32;
    const hn::Rebind<int8_t, F32Tag> i8;
    // Magnitudes are ordered as their bits, NaN above all.
    auto most = hn::Zero(u32);
    for (uint32_t c = 0; c < head_dim; c += kLanes) {
        most = hn::Max(most, hn::BitCast(u32, hn::Abs(load_row<T>(row, c))));
    }
    const uint32_t largest = hn::GetLane(hn::MaxOfLanes(u32, most));
    const bool finite = largest < 0x7f800000U;
    const uint16_t scale = finite ? q8_scale(std::bit_cast<float>(largest)) : kQ8NotFinite;
    const float inverse = finite ? q8_inverse(scale) : 0.0F;
    if (inverse == 0.0F) {
        std::memset(codes, 0, head_dim);
        return scale;
    }
    for (uint32_t c = 0; c < head_dim; c += kLanes) {
        const auto code = hn::NearestInt(hn::Mul(load_row<T>(row, c), hn::Set(d, inverse)));
        hn::StoreU(hn::DemoteTo(i8, code), i8, reinterpret_cast<int8_t*>(codes) + c);
    }
    return scale;
}

template <typename T>
AppendResult quantise_rows(const AppendInput& in) {
    const PieceFormat& format = in.kv.format;
    const bool is_k = in.part == RowPart::k;
    const uint32_t head_dim = is_k ? format.k_head_dim : format.v_head_dim;
    SHOAL_ASSERT(head_dim % 16 == 0);
    AppendResult result;
    for (uint32_t i = 0; i < in.rows.n; ++i) {
        const auto slot = static_cast<uint32_t>(in.slots[i]);
        const std::byte* from = in.rows.data + i * in.rows.n_stride_bytes +
                                in.head_first * in.rows.head_stride_bytes;
        std::byte* to = is_k ? in.kv.k_row(slot, 0) : in.kv.v_row(slot, 0);
        uint16_t* scales = in.kv.scales_of(slot) + (is_k ? 0 : 1);
        for (uint32_t h = 0; h < format.kv_head_count; ++h) {
            scales[2 * h] = quantise_row<T>(from, head_dim, to);
            result.finite = result.finite && q8_scale_finite(scales[2 * h]);
            from += in.rows.head_stride_bytes;
            to += format.row_stride_bytes;
        }
    }
    return result;
}

AppendResult append_q8_here(const AppendInput& in) {
    switch (in.rows.dtype) {
        case DType::f16: return quantise_rows<hwy::float16_t>(in);
        case DType::bf16: return quantise_rows<hwy::bfloat16_t>(in);
        case DType::f32: return quantise_rows<float>(in);
        case DType::q8: break;
    }
    return ref::append(in);  // copies
}

#else

// Highway's portable NearestInt does not round to nearest even.
AppendResult append_q8_here(const AppendInput& in) { return ref::append(in); }

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(append_q8_here);
AppendResult append_q8(const AppendInput& in) { return HWY_DYNAMIC_DISPATCH(append_q8_here)(in); }

}  // namespace shoal::kernels::cpu
#endif
