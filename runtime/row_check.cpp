#include "runtime/row_check.hpp"

#include <xxhash.h>

#include <algorithm>
#include <bit>

namespace shoal {

using kernels::RowPart;

uint64_t RowCheck::hash(const kernels::KvView& rows, RowPart part, uint32_t slot) const {
    const kernels::PieceFormat& format = rows.format;
    const bool is_k = part == RowPart::k;
    const size_t bytes = is_k ? format.k_head_dim * dtype_bytes(format.k_dtype)
                              : format.v_head_dim * dtype_bytes(format.v_dtype);
    uint64_t hash = seed_ * 2 + (is_k ? 0 : 1);
    for (uint32_t h = 0; h < format.kv_head_count; ++h) {
        const std::byte* row = is_k ? rows.k_row(slot, h) : rows.v_row(slot, h);
        hash = XXH3_64bits_withSeed(row, bytes, hash);
        if ((is_k ? format.k_dtype : format.v_dtype) != DType::q8) continue;
        hash += rows.scales_of(slot)[2 * h + (is_k ? 0 : 1)];
    }
    return hash;
}

void RowCheck::record(const kernels::KvView& rows, RowPart part, std::span<const int64_t> slots) {
    if (!is_on()) return;
    for (const int64_t slot : slots) {
        of(part)[static_cast<size_t>(slot)] = hash(rows, part, static_cast<uint32_t>(slot));
    }
}

void RowCheck::copy_from(const RowCheck& from, RowPart part) {
    if (is_on()) std::copy(from.of(part).begin(), from.of(part).end(), of(part).begin());
}

uint32_t RowCheck::first_wrong(const kernels::KvView& rows,
                               std::span<const kernels::SpanMask> masks,
                               SlotRange spans) const {
    if (!is_on()) return UINT32_MAX;
    for (uint32_t span = spans.begin; span < spans.end; ++span) {
        for (uint32_t word = 0; word < 2; ++word) {
            for (uint64_t left = masks[span].visible[word]; left != 0; left &= left - 1) {
                const uint32_t slot = span * kernels::kSpanSlots + word * 64 +
                                      static_cast<uint32_t>(std::countr_zero(left));
                for (const RowPart part : {RowPart::k, RowPart::v}) {
                    if (hash(rows, part, slot) != of(part)[slot]) return slot;
                }
            }
        }
    }
    return UINT32_MAX;
}

}  // namespace shoal
