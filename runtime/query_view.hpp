// What one query may see in one store, prepared once per step and used by every layer.
#pragma once

#include <span>
#include <vector>

#include "kernels/views.hpp"
#include "runtime/slot_order.hpp"
#include "shoal/config.hpp"

namespace shoal {

class QueryView {
public:
    // Working memory of one view of a store with this many slots; a multiple of 64.
    static uint64_t bytes(uint32_t slot_count_max);
    // Where that memory lies, 64 B aligned; it must outlive the view. Before prepare().
    void use(std::byte* memory, uint32_t slot_count_max);

    // `ranges`: ascending, disjoint, none empty, inside the store: checked by the step before.
    void prepare(std::span<const SlotRange> ranges, const SlotOrder& order,
                 const Config::Safety& safety);

    uint32_t visible_count() const { return visible_count_; }
    std::span<const SlotRange> ranges() const { return ranges_; }
    // Every visible slot, ascending.
    kernels::SlotList visible() const;
    // Sinks and recent window, ascending: always attended, never subject to a selector.
    std::span<const uint32_t> safety() const { return safety_; }
    // One per span up to the last visible slot.
    std::span<const kernels::SpanMask> masks() const { return {masks_, mask_count_}; }

private:
    std::vector<SlotRange> ranges_;
    std::vector<uint32_t> safety_;
    kernels::SpanMask* masks_ = nullptr;
    uint32_t mask_count_ = 0;
    uint32_t* visible_slots_ = nullptr;     // written when asked for; a single run needs none
    mutable bool visible_listed_ = false;
    uint32_t visible_count_ = 0;
};

// Sets the bits [begin, end) of the spans' visible words.
void mark_visible(std::span<kernels::SpanMask> masks, SlotRange range);

// Merges two ascending lists without common elements into `out`, ascending. `back` lies in the
// same array, right behind where `front` fits: out + front.size().
void merge_into_front(std::span<const uint32_t> front, std::span<const uint32_t> back,
                      uint32_t* out);

}  // namespace shoal
