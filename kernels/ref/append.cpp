// append, element by element.
#include <cmath>

#include "kernels/convert.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {

AppendResult append(const AppendInput& in) {
    const PieceFormat& format = in.kv.format;
    const bool is_k = in.part == RowPart::k;
    const DType dtype = is_k ? format.k_dtype : format.v_dtype;
    const uint32_t head_dim = is_k ? format.k_head_dim : format.v_head_dim;
    AppendResult result;
    for (uint32_t i = 0; i < in.rows.n; ++i) {
        const uint32_t slot = static_cast<uint32_t>(in.slots[i]);
        for (uint32_t h = 0; h < format.kv_head_count; ++h) {
            const std::byte* from = in.rows.data + i * in.rows.n_stride_bytes +
                                    (in.head_first + h) * in.rows.head_stride_bytes;
            std::byte* to = is_k ? in.kv.k_row(slot, h) : in.kv.v_row(slot, h);
            for (uint32_t c = 0; c < head_dim; ++c) {
                store_element(to, dtype, c, load_element(from, in.rows.dtype, c));
                if (!std::isfinite(load_element(to, dtype, c))) result.finite = false;
            }
        }
    }
    return result;
}

}  // namespace shoal::kernels::ref
