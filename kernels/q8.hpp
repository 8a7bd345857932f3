// Rows of q8: whole numbers ("codes") from -127 to 127, and one scale. A number is code x scale.
//
//   scale = largest magnitude / 127, as bf16, to nearest even      code = number / scale, likewise
//
// A bf16 scale is off by 1/256 at most, so that the largest code is 127 in every row: a row that is
// read back as f32 and stored again is the same row; so is one read as f16 whose numbers f16 holds
// (scales from 2^-24 to 515). A code times a scale has 15 bits: f32 holds it exactly, and every
// backend sees the same numbers.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/views.hpp"

namespace shoal::kernels {

// Rows without a larger magnitude are stored as zeros: reciprocals of their scales would overflow.
inline constexpr float kQ8LeastMagnitude = 0x1.0p-100F;
inline constexpr uint16_t kQ8NotFinite = 0x7fc0;  // the scale of a row that held NaN or Inf

// The scale of a row, as bf16 bits. `largest` is finite.
inline uint16_t q8_scale(float largest) {
    return largest < kQ8LeastMagnitude ? uint16_t{0} : f32_to_bf16(largest / 127.0F);
}
inline float q8_inverse(uint16_t scale) { return scale == 0 ? 0.0F : 1.0F / bf16_to_f32(scale); }
// Whether every code times the scale is a number, as in every row that is made of numbers.
inline bool q8_scale_finite(uint16_t scale) { return std::isfinite(127.0F * bf16_to_f32(scale)); }

// Writes the codes of a row and returns its scale. NaN or Inf: codes are 0, the scale is
// kQ8NotFinite.
inline uint16_t q8_store_row(const float* row, uint32_t head_dim, std::byte* codes) {
    float largest = 0.0F;
    bool finite = true;
    for (uint32_t c = 0; c < head_dim; ++c) {
        finite = finite && std::isfinite(row[c]);
        largest = std::max(largest, std::abs(row[c]));
    }
    const uint16_t scale = finite ? q8_scale(largest) : kQ8NotFinite;
    const float inverse = finite ? q8_inverse(scale) : 0.0F;
    for (uint32_t c = 0; c < head_dim; ++c) {
        const float code = finite ? std::nearbyint(row[c] * inverse) : 0.0F;
        codes[c] = static_cast<std::byte>(static_cast<int8_t>(code));
    }
    return scale;
}

// The scale of a row of a tensor, which follows its numbers; 0 for other dtypes.
inline uint16_t tensor_scale(const std::byte* row, DType dtype, uint32_t head_dim) {
    uint16_t scale = 0;
    if (dtype == DType::q8) std::memcpy(&scale, row + head_dim, sizeof(scale));
    return scale;
}

// What load_element() takes: 1 for other dtypes.
inline float k_scale(const KvView& kv, uint32_t slot, uint32_t kv_head) {
    return kv.format.k_dtype == DType::q8 ? bf16_to_f32(kv.scales_of(slot)[2 * kv_head]) : 1.0F;
}
inline float v_scale(const KvView& kv, uint32_t slot, uint32_t kv_head) {
    return kv.format.v_dtype == DType::q8 ? bf16_to_f32(kv.scales_of(slot)[2 * kv_head + 1]) : 1.0F;
}

}  // namespace shoal::kernels
