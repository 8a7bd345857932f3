// Borrowed views that every kernel takes. Nothing here owns memory, knows a tier or a policy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shoal/types.hpp"

namespace shoal::kernels {

// Slots of a store that share label ranges.
inline constexpr uint32_t kSpanSlots = 128;

// How one token's rows lie in its piece: [kv_head][K | V], K and V of a head adjacent.
struct PieceFormat {
    DType k_dtype = DType::f16;
    DType v_dtype = DType::f16;
    uint32_t kv_head_count = 0;       // heads in the piece: all of a layer, or 1 under `head`
    uint32_t k_head_dim = 0;          // 32 .. 256, multiple of 16
    uint32_t v_head_dim = 0;          // 32 .. 256, multiple of 16
    uint32_t v_offset_bytes = 0;      // from a head's K to its V
    uint32_t row_stride_bytes = 0;    // from one head's row to the next
    uint32_t piece_stride_bytes = 0;  // from one token's piece to the next inside a block

    bool has_scales() const { return k_dtype == DType::q8 || v_dtype == DType::q8; }
    // Of one token: K and V of every head, scales included.
    uint32_t token_bytes() const { return kv_head_count * row_stride_bytes + scale_bytes(); }
    // Of one token: a scale for K and one for V of every head, bf16.
    uint32_t scale_bytes() const { return has_scales() ? kv_head_count * 4 : 0; }
};

// The rows of one group of one store: blocks of 2^n consecutive slots, wherever they lie.
struct KvView {
    PieceFormat format;
    std::byte* const* blocks = nullptr;  // [block_count]; only blocks of slots that are read count
    uint32_t block_tokens_log2 = 0;
    // Scales of q8 rows, bf16 bits: [slot][kv_head][K, V], of every slot of the store. Not in the
    // blocks, so that pieces stay powers of two where head sizes are. Null without q8.
    uint16_t* scales = nullptr;

    std::byte* piece(uint32_t slot) const {
        const uint32_t in_block = slot & ((1U << block_tokens_log2) - 1U);
        return blocks[slot >> block_tokens_log2] + size_t{in_block} * format.piece_stride_bytes;
    }
    std::byte* k_row(uint32_t slot, uint32_t kv_head) const {
        return piece(slot) + size_t{kv_head} * format.row_stride_bytes;
    }
    std::byte* v_row(uint32_t slot, uint32_t kv_head) const {
        return k_row(slot, kv_head) + format.v_offset_bytes;
    }
    // K and V of head 0, K and V of head 1, ...
    uint16_t* scales_of(uint32_t slot) const {
        return scales == nullptr ? nullptr : scales + size_t{slot} * format.kv_head_count * 2;
    }
};

// An ascending list of slots. `slots == nullptr` means the run first, first + 1, ...
struct SlotList {
    const uint32_t* slots = nullptr;  // [count] ascending, or null
    uint32_t first = 0;               // used when slots is null
    uint32_t count = 0;
    uint32_t at(uint32_t i) const { return slots != nullptr ? slots[i] : first + i; }
};

// Which slots of a span one query may see, and which of those a selector may pick
// (visible, less the safety set). Bit t of word t / 64 is slot t of the span.
struct SpanMask {
    uint64_t visible[2] = {0, 0};
    uint64_t selectable[2] = {0, 0};
    bool none_visible() const { return (visible[0] | visible[1]) == 0; }
    bool all_selectable() const { return (selectable[0] & selectable[1]) == ~uint64_t{0}; }
};

}  // namespace shoal::kernels
