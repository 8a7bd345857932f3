#include "runtime/read_rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/q8.hpp"

namespace shoal {

using kernels::RowPart;

namespace {

constexpr float kF16Max = 65504.0F;

// One row of the head `head` of a group, to `out`.
void copy_row(const kernels::KvView& kv, const ReadRows& in, uint32_t slot, uint32_t head,
              std::byte* out) {
    const bool is_k = in.part == RowPart::k;
    const DType stored = is_k ? kv.format.k_dtype : kv.format.v_dtype;
    const uint32_t head_dim = is_k ? kv.format.k_head_dim : kv.format.v_head_dim;
    const std::byte* row = is_k ? kv.k_row(slot, head) : kv.v_row(slot, head);
    if (in.dtype == stored) {
        std::memcpy(out, row, head_dim * dtype_bytes(stored));
        if (stored != DType::q8) return;
        const uint16_t& scale = kv.scales_of(slot)[2 * head + (is_k ? 0 : 1)];
        std::memcpy(out + head_dim, &scale, sizeof(scale));
        return;
    }
    const float scale =
        is_k ? kernels::k_scale(kv, slot, head) : kernels::v_scale(kv, slot, head);
    // A scale is rounded: numbers next to the largest f16 may have become larger.
    const float most = stored == DType::q8 && in.dtype == DType::f16 ? kF16Max : INFINITY;
    for (uint32_t c = 0; c < head_dim; ++c) {
        const float value = kernels::load_element(row, stored, c, scale);
        kernels::store_element(out, in.dtype, c, std::clamp(value, -most, most));
    }
}

// The rows of a group of slots that can be in RAM together.
Status read_group(const GroupStore& data, const ReadRows& in, uint32_t kv_head_first,
                  uint32_t slot_count_max, size_t stride, std::byte* out) {
    const bool is_k = in.part == RowPart::k;
    const auto written = [&](int64_t slot) {
        return slot >= 0 && slot < slot_count_max &&
               data.has_row(static_cast<uint32_t>(slot), is_k);
    };
    data.rows.begin_wave();
    for (const int64_t slot : in.slots) {
        const auto begin = static_cast<uint32_t>(slot);
        if (written(slot)) data.rows.want(SlotRange{begin, begin + 1});
    }
    SHOAL_TRY(data.rows.hold(SlotRange{}, offload::HoldFor::reading));
    const kernels::KvView kv = data.rows.view();
    const kernels::PieceFormat& format = kv.format;
    const size_t head_bytes = row_bytes(in.dtype, is_k ? format.k_head_dim : format.v_head_dim);
    for (size_t i = 0; i < in.slots.size(); ++i) {
        std::byte* to = out + i * stride + kv_head_first * head_bytes;
        if (!written(in.slots[i])) {
            std::memset(to, 0, format.kv_head_count * head_bytes);
            continue;
        }
        for (uint32_t head = 0; head < format.kv_head_count; ++head, to += head_bytes) {
            copy_row(kv, in, static_cast<uint32_t>(in.slots[i]), head, to);
        }
    }
    return Status::ok();
}

}  // namespace

size_t read_slot_bytes(const LayerShape& shape, RowPart part, DType dtype) {
    return shape.kv_head_count *
           row_bytes(dtype, part == RowPart::k ? shape.k_head_dim : shape.v_head_dim);
}

Status read_rows(const SessionState& state, const Store& store, const ReadRows& in,
                 std::span<std::byte> out) {
    const size_t stride = read_slot_bytes(state.shape.layers[in.layer], in.part, in.dtype);
    SHOAL_ASSERT(out.size() == in.slots.size() * stride);
    const SlotRange groups = state.groups.of_layer(in.layer);
    const size_t slots_at_once = store.spills() ? kernels::kSpanSlots : in.slots.size();
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        for (size_t begin = 0; begin < in.slots.size(); begin += slots_at_once) {
            ReadRows some = in;
            some.slots = in.slots.subspan(begin, std::min(slots_at_once, in.slots.size() - begin));
            SHOAL_TRY(read_group(store.group(g), some, state.groups.all()[g].kv_head_first,
                                 state.limits.slot_count_max, stride, out.data() + begin * stride));
        }
    }
    return Status::ok();
}

}  // namespace shoal
