#include "mask.hpp"

#include <algorithm>
#include <cstring>

namespace shoal::llama_cpp {

namespace {

constexpr uint16_t kVisible = 0x0000;
constexpr uint16_t kVisibleMinusZero = 0x8000;
constexpr uint16_t kHidden = 0xFC00;  // -infinity

// Elements compared at once: 128 bytes, two cache lines. The inner loop has no branch, so every
// compiler turns it into vector code for the baseline ISA; wider vectors gain nothing, since the
// row comes from L2.
constexpr size_t kBlock = 64;
constexpr size_t kWords = kBlock * sizeof(uint16_t) / sizeof(uint64_t);

// Number of elements at the start of [row, row + count) that equal `value`.
size_t run_length(const uint16_t* row, size_t count, uint16_t value) {
    const uint64_t pattern = 0x0001000100010001ULL * value;
    size_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
        uint64_t words[kWords];
        std::memcpy(words, row + i, sizeof(words));
        uint64_t difference = 0;
        for (size_t w = 0; w < kWords; ++w) difference |= words[w] ^ pattern;
        if (difference != 0) break;
    }
    while (i < count && row[i] == value) ++i;
    return i;
}

bool append_row(const uint16_t* row, uint32_t slot_count, std::vector<SlotRange>& ranges) {
    const size_t first = ranges.size();
    uint32_t slot = 0;
    while (slot < slot_count) {
        const uint16_t value = row[slot];
        const auto length = static_cast<uint32_t>(run_length(row + slot, slot_count - slot, value));
        if (value == kVisible || value == kVisibleMinusZero) {
            if (ranges.size() > first && ranges.back().end == slot) {
                ranges.back().end = slot + length;
            } else {
                ranges.push_back({slot, slot + length});
            }
        } else if (value != kHidden) {
            return false;
        }
        slot += length;
    }
    return true;
}

}  // namespace

bool mask_to_ranges(const MaskView& mask, MaskRanges& ranges) {
    ranges.offsets.clear();
    ranges.ranges.clear();
    ranges.offsets.push_back(0);
    for (uint32_t stream = 0; stream < mask.stream_count; ++stream) {
        for (uint32_t query = 0; query < mask.queries_per_stream; ++query) {
            const uint16_t* row =
                mask.data + stream * mask.stream_stride + query * mask.row_stride;
            if (!append_row(row, mask.slot_count, ranges.ranges)) return false;
            ranges.offsets.push_back(static_cast<uint32_t>(ranges.ranges.size()));
        }
    }
    return true;
}

}  // namespace shoal::llama_cpp
