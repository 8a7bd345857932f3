// From the engine's attention mask to the slots that each query may attend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "shoal/types.hpp"

namespace shoal::llama_cpp {

// Slots visible to each query, in the form of shoal::Visibility.
struct MaskRanges {
    std::vector<uint32_t> offsets;  // [query_count + 1]
    std::vector<SlotRange> ranges;  // ascending and disjoint per query
};

// `mask`: f16 bits, one row of `slot_count` per query, rows `row_stride` elements apart; 0 is
// visible, -infinity is not. Returns false when an element is anything else (ALiBi): `ranges` is
// then of no use.
//
// Cost: one read of the mask. 131,072 slots, one query: 7.3 us with the row in L2 (the engine has
// just written it), 38 us from DRAM (one AVX-512 server core).
bool mask_to_ranges(const uint16_t* mask, size_t row_stride, uint32_t query_count,
                    uint32_t slot_count, MaskRanges& ranges);

}  // namespace shoal::llama_cpp
