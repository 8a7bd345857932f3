// What the attention kernels share, compiled once per instruction set: rows of any dtype as f32
// vectors, and exp.
#if defined(SHOAL_KERNELS_CPU_ROWS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef SHOAL_KERNELS_CPU_ROWS_INL_HPP
#undef SHOAL_KERNELS_CPU_ROWS_INL_HPP
#else
#define SHOAL_KERNELS_CPU_ROWS_INL_HPP
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::CappedTag<float, 16>;
using F32Vec = hn::Vec<F32Tag>;
inline constexpr size_t kLanes = hn::MaxLanes(F32Tag());
// 32 vector registers, or the 16 of AVX2.
inline constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON;

// Rows of q8 are int8_t here.
template <typename T>
constexpr bool is_q8() {
    return sizeof(T) == sizeof(int8_t);
}

// Lanes() elements of a row from element `i` on, as f32; of a q8 row its codes.
template <typename T>
HWY_INLINE F32Vec load_row(const std::byte* row, size_t i) {
    const F32Tag d;
    if constexpr (sizeof(T) == sizeof(float)) {
        return hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
    } else if constexpr (is_q8<T>()) {
        const hn::RebindToSigned<F32Tag> i32;
        const hn::Rebind<int8_t, F32Tag> i8;
        const auto codes = hn::LoadU(i8, reinterpret_cast<const int8_t*>(row) + i);
        return hn::ConvertTo(d, hn::PromoteTo(i32, codes));
    } else {
        const hn::Rebind<T, F32Tag> narrow;
        return hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const T*>(row) + i));
    }
}

// The same times the row's scale, where it has one.
template <typename T>
HWY_INLINE F32Vec load_scaled(const std::byte* row, size_t i, float scale) {
    if constexpr (is_q8<T>()) return hn::Mul(load_row<T>(row, i), hn::Set(F32Tag(), scale));
    else return load_row<T>(row, i);
}

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

// Adds up the 128-bit blocks of a vector.
template <class V>
HWY_INLINE auto add_blocks(V v) {
    const hn::DFromV<V> d;
    if constexpr (hn::MaxLanes(d) <= 4) {
        return v;
    } else {
        const hn::Half<decltype(d)> half;
        return add_blocks(hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
}
#endif

// 2^r for r in [-0.5, 0.5]: degree 5 minimax polynomial with the constant term held at 1 (9e-8
// before rounding), so that 2^0 is exactly 1.
HWY_INLINE F32Vec exp2_fraction(F32Vec r) {
    const F32Tag d;
    F32Vec p = hn::MulAdd(hn::Set(d, 0.0013264727F), r, hn::Set(d, 0.0096715127F));
    p = hn::MulAdd(p, r, hn::Set(d, 0.0555073374F));
    p = hn::MulAdd(p, r, hn::Set(d, 0.2402224208F));
    p = hn::MulAdd(p, r, hn::Set(d, 0.6931469776F));
    return hn::MulAdd(p, r, hn::Set(d, 1.0F));
}

// 2^x for x <= 0, relative error below 3e-7 down to -126; exactly 0 at -127 and below, -inf
// included; exactly 1 at 0. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits,
// ready to be shifted into the exponent: 11 instructions. Between -127 and -126 the result is
// some number below 2^-126.
HWY_INLINE F32Vec exp2_nonpositive(F32Vec x) {
    const F32Tag d;
    const hn::RebindToSigned<F32Tag> di;
    const F32Vec magic = hn::Set(d, 12582912.0F);
    x = hn::Max(x, hn::Set(d, -127.0F));
    const F32Vec shifted = hn::Add(x, magic);
    const F32Vec r = hn::Sub(x, hn::Sub(shifted, magic));
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
    return hn::BitCast(d, hn::Add(hn::BitCast(di, exp2_fraction(r)), exponent));
}

// e^x for x <= 80, relative error below 3e-7 however large -x is (ln 2 is split in two);
// exactly 0 below -87 and at -inf.
HWY_INLINE F32Vec exp_below(F32Vec x) {
    const F32Tag d;
    const hn::RebindToSigned<F32Tag> di;
    const F32Vec log2_e = hn::Set(d, 1.44269504F);
    const F32Vec least = hn::Set(d, -87.0F);
    const auto vanishes = hn::Lt(x, least);
    x = hn::Max(x, least);
    const F32Vec whole = hn::Round(hn::Mul(x, log2_e));
    F32Vec r = hn::NegMulAdd(whole, hn::Set(d, 0.693145752F), x);
    r = hn::NegMulAdd(whole, hn::Set(d, 1.42860677e-6F), r);
    const F32Vec p = exp2_fraction(hn::Mul(r, log2_e));
    const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, whole));
    return hn::IfThenZeroElse(vanishes, hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent)));
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
