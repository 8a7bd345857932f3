#include "runtime/finite.hpp"

#include <cstring>

namespace shoal {

namespace {

// NaN and Inf have all exponent bits set. No branch in the loop: it vectorises.
template <typename Word>
bool row_finite(const std::byte* data, uint32_t count, Word exponent) {
    uint32_t bad = 0;
    for (uint32_t i = 0; i < count; ++i) {
        Word word;
        std::memcpy(&word, data + i * sizeof(Word), sizeof(Word));
        bad |= static_cast<uint32_t>((word & exponent) == exponent);
    }
    return bad == 0;
}

}  // namespace

bool all_finite(const ConstTensor& tensor) {
    if (tensor.empty()) return true;
    for (uint32_t i = 0; i < tensor.n; ++i) {
        for (uint32_t h = 0; h < tensor.heads; ++h) {
            const std::byte* row =
                tensor.data + i * tensor.n_stride_bytes + h * tensor.head_stride_bytes;
            bool finite = true;
            switch (tensor.dtype) {
                case DType::f32:
                    finite = row_finite<uint32_t>(row, tensor.head_dim, 0x7f800000U);
                    break;
                case DType::f16:
                    finite = row_finite<uint16_t>(row, tensor.head_dim, uint16_t{0x7c00});
                    break;
                case DType::bf16:
                    finite = row_finite<uint16_t>(row, tensor.head_dim, uint16_t{0x7f80});
                    break;
                case DType::q8:  // the scale behind the codes
                    finite = row_finite<uint16_t>(row + tensor.head_dim, 1, uint16_t{0x7f80});
                    break;
            }
            if (!finite) return false;
        }
    }
    return true;
}

}  // namespace shoal
