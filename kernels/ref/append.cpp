// append, element by element.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

// One row as f32.
void load_row(const std::byte* from, DType dtype, uint32_t head_dim, float* row) {
    const float scale = bf16_to_f32(tensor_scale(from, dtype, head_dim));
    for (uint32_t c = 0; c < head_dim; ++c) row[c] = load_element(from, dtype, c, scale);
}

// False: not finite.
bool store_floats(const float* row, DType dtype, uint32_t head_dim, std::byte* to) {
    bool finite = true;
    for (uint32_t c = 0; c < head_dim; ++c) {
        store_element(to, dtype, c, row[c]);
        finite = finite && std::isfinite(load_element(to, dtype, c));
    }
    return finite;
}

// A q8 row is taken as it is, if storing numbers can have made it; others are quantised.
bool store_codes(const std::byte* from, DType from_dtype, const float* row, uint32_t head_dim,
                 std::byte* to, uint16_t& scale) {
    if (from_dtype == DType::q8) {
        std::memcpy(to, from, head_dim);
        scale = tensor_scale(from, from_dtype, head_dim);
        if (std::memchr(from, 0x80, head_dim) != nullptr) return false;  // code -128
    } else {
        scale = q8_store_row(row, head_dim, to);
    }
    return q8_scale_finite(scale);
}

}  // namespace

AppendResult append(const AppendInput& in) {
    const PieceFormat& format = in.kv.format;
    const bool is_k = in.part == RowPart::k;
    const DType dtype = is_k ? format.k_dtype : format.v_dtype;
    const uint32_t head_dim = is_k ? format.k_head_dim : format.v_head_dim;
    std::vector<float> row(head_dim);
    AppendResult result;
    for (uint32_t i = 0; i < in.rows.n; ++i) {
        const uint32_t slot = static_cast<uint32_t>(in.slots[i]);
        for (uint32_t h = 0; h < format.kv_head_count; ++h) {
            const std::byte* from = in.rows.data + i * in.rows.n_stride_bytes +
                                    (in.head_first + h) * in.rows.head_stride_bytes;
            std::byte* to = is_k ? in.kv.k_row(slot, h) : in.kv.v_row(slot, h);
            load_row(from, in.rows.dtype, head_dim, row.data());
            const bool finite =
                dtype == DType::q8
                    ? store_codes(from, in.rows.dtype, row.data(), head_dim, to,
                                  in.kv.scales_of(slot)[2 * h + (is_k ? 0 : 1)])
                    : store_floats(row.data(), dtype, head_dim, to);
            result.finite = result.finite && finite;
        }
    }
    return result;
}

}  // namespace shoal::kernels::ref
