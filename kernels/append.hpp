// Converts the K or V of some tokens to the stored dtype and writes them into their slots.
#pragma once

#include "kernels/views.hpp"

namespace shoal::kernels {

enum class RowPart : uint8_t { k, v };

struct AppendInput {
    KvView kv;                        // kv_head_count heads, taken from head `head_first` of `rows`
    RowPart part = RowPart::k;
    ConstTensor rows;                 // [token_count, heads, head_dim]
    uint32_t head_first = 0;
    const int64_t* slots = nullptr;   // [token_count], each inside the view
};

struct AppendResult {
    bool finite =
        true;  // false: a NaN or Inf was in `rows` (or the value overflows the stored dtype)
};

}  // namespace shoal::kernels
