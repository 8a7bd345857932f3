// The order in which the slots of a store were written, and which of them are present.
//
// Every write gives a slot a new stamp. Engines that manage slots themselves reuse them in any
// order, so "the first tokens" and "the last tokens" of a query are the lowest and highest stamps
// among the slots it may see. A summary per span keeps both questions cheap: only the few spans
// that can hold an answer are looked into.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/views.hpp"
#include "shoal/types.hpp"

namespace shoal {

class SlotOrder {
public:
    // `memory`: bytes(slot_count_max) zero bytes, 8 B aligned, that outlive this object. May be
    // null for 0 slots.
    SlotOrder(std::byte* memory, uint32_t slot_count_max);
    static uint64_t bytes(uint32_t slot_count_max);

    void write(uint32_t slot);
    void forget_from(uint32_t slot_begin);  // slots [slot_begin, ...) count as never written
    void copy_from(const SlotOrder& other);  // of a store with as many slots

    // Slots that were written, lowest stamp first.
    std::vector<uint32_t> written_in_order() const;
    bool is_written(uint32_t slot) const { return stamps_[slot] != 0; }
    uint32_t slot_end() const { return slot_end_; }  // one past the highest slot written
    uint32_t slot_count_max() const { return static_cast<uint32_t>(stamps_.size()); }

    // The `count` slots with the lowest (first) or highest (last) stamps among the visible ones,
    // ascending by slot; fewer when fewer are visible. `masks`: [spans up to slot_end].
    // Appends to `out`.
    void first(uint32_t count, std::span<const kernels::SpanMask> masks,
               std::vector<uint32_t>& out) const;
    void last(uint32_t count, std::span<const kernels::SpanMask> masks,
              std::vector<uint32_t>& out) const;

private:
    struct SpanBounds {
        uint64_t stamp_min;  // lower bound of the stamps in the span
        uint64_t stamp_max;  // upper bound; 0 = never written
    };
    struct Entry {
        uint64_t key;  // orders as wanted: lowest first
        uint32_t index;
    };
    void pick(uint32_t count, bool lowest, std::span<const kernels::SpanMask> masks,
              std::vector<uint32_t>& out) const;

    std::span<uint64_t> stamps_;  // [slot_count_max], 0 = never written
    std::span<SpanBounds> spans_;
    uint64_t next_stamp_ = 1;
    uint32_t slot_end_ = 0;
    mutable std::vector<Entry> span_heap_;  // workspace of pick()
    mutable std::vector<Entry> found_;
};

}  // namespace shoal
