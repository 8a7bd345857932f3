// Scalar conversions between f32 and the stored dtypes: round to nearest even, NaN kept and made
// quiet, subnormals kept, too large becomes Inf. Bit for bit what F16C (and so ggml) does.
#pragma once

#include <bit>
#include <cstring>

#include "shoal/types.hpp"

namespace shoal::kernels {

inline float f16_to_f32(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
    const uint32_t magnitude = half & 0x7fffU;
    // Normal numbers, Inf and NaN: shift into place, rebias by a multiplication (quiets NaN).
    const float normal = std::bit_cast<float>((magnitude << 13) + (0xe0U << 23)) * 0x1.0p-112F;
    const float subnormal = static_cast<float>(magnitude) * 0x1.0p-24F;
    return std::bit_cast<float>(
        std::bit_cast<uint32_t>(magnitude < 0x0400U ? subnormal : normal) | sign);
}

inline uint16_t f32_to_f16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    uint32_t half = 0;
    if (magnitude > 0x7f800000U) {
        half = 0x7e00U | ((magnitude >> 13) & 0x03ffU);
    } else if (magnitude >= 0x47800000U) {  // 65,536 and up
        half = 0x7c00U;
    } else if (magnitude < 0x38800000U) {  // below 2^-14: the addition rounds to units of 2^-24
        half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
    } else {
        half = (magnitude - (112U << 23) + 0x0fffU + ((magnitude >> 13) & 1U)) >> 13;
    }
    return static_cast<uint16_t>(half | sign);
}

inline float bf16_to_f32(uint16_t bits) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t f32_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
    return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

constexpr uint32_t element_bytes(DType dtype) {
    return dtype == DType::f32 ? 4 : dtype == DType::q8 ? 1 : 2;
}

// Element `i` of a dense row at `row`, of any alignment. `scale`: of a q8 row.
inline float load_element(const std::byte* row, DType dtype, size_t i, float scale = 1.0F) {
    if (dtype == DType::q8) return static_cast<float>(static_cast<int8_t>(row[i])) * scale;
    if (dtype == DType::f32) {
        float value = 0.0F;
        std::memcpy(&value, row + i * sizeof(value), sizeof(value));
        return value;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, row + i * sizeof(bits), sizeof(bits));
    return dtype == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// Not for q8: its rows are written whole (kernels/q8.hpp).
inline void store_element(std::byte* row, DType dtype, size_t i, float value) {
    if (dtype == DType::f32) {
        std::memcpy(row + i * sizeof(value), &value, sizeof(value));
        return;
    }
    const uint16_t bits = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(row + i * sizeof(bits), &bits, sizeof(bits));
}

}  // namespace shoal::kernels
