#include "runtime/slot_order.hpp"

#include <algorithm>
#include <bit>

#include "shoal/status.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::SpanMask;

namespace {

uint32_t span_count_of(uint32_t slot_count) { return (slot_count + kSpanSlots - 1) / kSpanSlots; }

template <typename Body>
void for_each_visible(const SpanMask& mask, uint32_t span, Body&& body) {
    for (uint32_t word = 0; word < 2; ++word) {
        for (uint64_t bits = mask.visible[word]; bits != 0; bits &= bits - 1) {
            body(span * kSpanSlots + word * 64 + static_cast<uint32_t>(std::countr_zero(bits)));
        }
    }
}

}  // namespace

SlotOrder::SlotOrder(std::byte* memory, uint32_t slot_count_max)
    : stamps_(reinterpret_cast<uint64_t*>(memory), slot_count_max),
      spans_(reinterpret_cast<SpanBounds*>(memory + slot_count_max * sizeof(uint64_t)),
             span_count_of(slot_count_max)) {
    span_heap_.reserve(spans_.size());
    found_.reserve(4096);
}

uint64_t SlotOrder::bytes(uint32_t slot_count_max) {
    return uint64_t{slot_count_max} * sizeof(uint64_t) +
           uint64_t{span_count_of(slot_count_max)} * sizeof(SpanBounds);
}

void SlotOrder::write(uint32_t slot) {
    SHOAL_ASSERT(slot < stamps_.size());
    const uint64_t stamp = next_stamp_++;
    stamps_[slot] = stamp;
    SpanBounds& bounds = spans_[slot / kSpanSlots];
    if (bounds.stamp_max == 0) bounds.stamp_min = stamp;
    bounds.stamp_max = stamp;
    slot_end_ = std::max(slot_end_, slot + 1);
}

void SlotOrder::forget_from(uint32_t slot_begin) {
    if (slot_begin >= slot_end_) return;
    std::fill(stamps_.begin() + slot_begin, stamps_.begin() + slot_end_, 0);
    const uint32_t span_end = span_count_of(slot_end_);
    slot_end_ = slot_begin;
    while (slot_end_ > 0 && !is_written(slot_end_ - 1)) --slot_end_;
    // Also of spans that lost nothing but had gaps alone: copy_from() may turn the clock back, and
    // bounds of later stamps would then hide earlier ones.
    for (uint32_t span = span_count_of(slot_end_); span < span_end; ++span) {
        spans_[span] = SpanBounds{0, 0};
    }
}

void SlotOrder::copy_from(const SlotOrder& other) {
    SHOAL_ASSERT(stamps_.size() == other.stamps_.size());
    forget_from(other.slot_end_);
    std::copy_n(other.stamps_.begin(), other.slot_end_, stamps_.begin());
    std::copy_n(other.spans_.begin(), span_count_of(other.slot_end_), spans_.begin());
    next_stamp_ = other.next_stamp_;
    slot_end_ = other.slot_end_;
}

std::vector<uint32_t> SlotOrder::written_in_order() const {
    std::vector<uint32_t> slots;
    for (uint32_t slot = 0; slot < slot_end_; ++slot) {
        if (is_written(slot)) slots.push_back(slot);
    }
    std::sort(slots.begin(), slots.end(),
              [this](uint32_t a, uint32_t b) { return stamps_[a] < stamps_[b]; });
    return slots;
}

void SlotOrder::first(uint32_t count, std::span<const SpanMask> masks,
                      std::vector<uint32_t>& out) const {
    pick(count, true, masks, out);
}

void SlotOrder::last(uint32_t count, std::span<const SpanMask> masks,
                     std::vector<uint32_t>& out) const {
    pick(count, false, masks, out);
}

// Spans are visited best bound first; the walk stops when `count` slots are found and no bound
// left can beat the worst of them. A stale bound is only too wide, which costs time, not truth.
void SlotOrder::pick(uint32_t count, bool lowest, std::span<const SpanMask> masks,
                     std::vector<uint32_t>& out) const {
    if (count == 0) return;
    const auto key_of = [lowest](uint64_t stamp) { return lowest ? stamp : ~stamp; };
    const auto worse = [](const Entry& a, const Entry& b) { return a.key > b.key; };
    const auto better = [](const Entry& a, const Entry& b) { return a.key < b.key; };

    span_heap_.clear();
    for (uint32_t span = 0; span < masks.size(); ++span) {
        if (masks[span].none_visible()) continue;
        const SpanBounds& bounds = spans_[span];
        span_heap_.push_back({key_of(lowest ? bounds.stamp_min : bounds.stamp_max), span});
    }
    std::make_heap(span_heap_.begin(), span_heap_.end(), worse);
    found_.clear();  // a heap of the best `count` slots, the worst of them on top
    while (!span_heap_.empty()) {
        if (found_.size() == count && span_heap_.front().key > found_.front().key) break;
        const uint32_t span = span_heap_.front().index;
        std::pop_heap(span_heap_.begin(), span_heap_.end(), worse);
        span_heap_.pop_back();
        for_each_visible(masks[span], span, [&](uint32_t slot) {
            const Entry entry{key_of(stamps_[slot]), slot};
            if (found_.size() < count) {
                found_.push_back(entry);
                std::push_heap(found_.begin(), found_.end(), better);
            } else if (entry.key < found_.front().key) {
                std::pop_heap(found_.begin(), found_.end(), better);
                found_.back() = entry;
                std::push_heap(found_.begin(), found_.end(), better);
            }
        });
    }
    const size_t begin = out.size();
    for (const Entry& entry : found_) out.push_back(entry.index);
    std::sort(out.begin() + static_cast<ptrdiff_t>(begin), out.end());
}

}  // namespace shoal
