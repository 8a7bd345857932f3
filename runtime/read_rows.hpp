// Rows of a store as dense tensors: for state save and restore of engines, and saved files.
#pragma once

#include <span>

#include "runtime/session_state.hpp"

namespace shoal {

struct ReadRows {
    uint32_t layer = 0;
    kernels::RowPart part = kernels::RowPart::k;
    std::span<const int64_t> slots;
    DType dtype = DType::f16;  // of what is read: another than the stored one is converted
};

// Bytes of one slot's rows: kv_head_count rows of row_bytes().
size_t read_slot_bytes(const LayerShape& shape, kernels::RowPart part, DType dtype);

// `out`: [slots, kv_head_count, head_dim], dense. Slots never written read as zero.
Status read_rows(const SessionState& state, const Store& store, const ReadRows& in,
                 std::span<std::byte> out);

}  // namespace shoal
