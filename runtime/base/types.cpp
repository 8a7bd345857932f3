#include "shoal/types.hpp"

#include "shoal/status.hpp"

namespace shoal {

size_t dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::f16:
        case DType::bf16: return 2;
        case DType::f32: return 4;
    }
    SHOAL_ASSERT(false && "a dtype outside the enumeration");
    return 0;
}

const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::f16: return "f16";
        case DType::bf16: return "bf16";
        case DType::f32: return "f32";
    }
    return "unknown";
}

}  // namespace shoal
