#include "shoal/types.hpp"

#include "shoal/status.hpp"

namespace shoal {

size_t dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::f16:
        case DType::bf16: return 2;
        case DType::f32: return 4;
        case DType::q8: return 1;
    }
    SHOAL_ASSERT(false && "a dtype outside the enumeration");
    return 0;
}

size_t row_bytes(DType dtype, uint32_t head_dim) {
    return head_dim * dtype_bytes(dtype) + (dtype == DType::q8 ? sizeof(uint16_t) : 0);
}

const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::f16: return "f16";
        case DType::bf16: return "bf16";
        case DType::f32: return "f32";
        case DType::q8: return "q8";
    }
    return "unknown";
}

}  // namespace shoal
