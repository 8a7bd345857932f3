#include "runtime/query_view.hpp"

#include <algorithm>
#include <numeric>

#include "shoal/status.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::SpanMask;

namespace {

uint64_t span_count_of(uint32_t slots) { return (uint64_t{slots} + kSpanSlots - 1) / kSpanSlots; }

// Bits [begin, end) of a 64-bit word; end <= 64.
uint64_t bit_range(uint32_t begin, uint32_t end) {
    if (begin >= end) return 0;
    const uint64_t up_to_end = end == 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
    return up_to_end & ~((uint64_t{1} << begin) - 1);
}

}  // namespace

void mark_visible(std::span<SpanMask> masks, SlotRange range) {
    for (uint32_t word = range.begin / 64; word * 64 < range.end; ++word) {
        const uint32_t base = word * 64;
        const uint32_t begin = std::max(range.begin, base) - base;
        const uint32_t end = std::min(range.end, base + 64) - base;
        masks[word / 2].visible[word % 2] |= bit_range(begin, end);
    }
}

// Writing never passes what is still to be read: out + i + j <= back + j while front is left.
void merge_into_front(std::span<const uint32_t> front, std::span<const uint32_t> back,
                      uint32_t* out) {
    SHOAL_ASSERT(back.data() == out + front.size());
    size_t j = 0;
    for (const uint32_t slot : front) {
        while (j < back.size() && back[j] < slot) *out++ = back[j++];
        *out++ = slot;
    }
}

uint64_t QueryView::bytes(uint32_t slot_count_max) {
    const uint64_t spans = span_count_of(slot_count_max);
    return spans * (sizeof(SpanMask) + kSpanSlots * sizeof(uint32_t));
}

void QueryView::use(std::byte* memory, uint32_t slot_count_max) {
    masks_ = reinterpret_cast<SpanMask*>(memory);
    visible_slots_ = reinterpret_cast<uint32_t*>(
        memory + span_count_of(slot_count_max) * sizeof(SpanMask));
    ranges_.reserve(64);
    safety_.reserve(1024);
}

void QueryView::prepare(std::span<const SlotRange> ranges, const SlotOrder& order,
                        const Config::Safety& safety) {
    uint32_t last_end = 0;
    visible_count_ = 0;
    for (const SlotRange& range : ranges) {
        SHOAL_ASSERT(range.begin < range.end && range.begin >= last_end &&
                     range.end <= order.slot_end());
        last_end = range.end;
        visible_count_ += range.end - range.begin;
    }
    ranges_.assign(ranges.begin(), ranges.end());
    visible_listed_ = false;
    safety_.clear();
    mask_count_ = static_cast<uint32_t>(span_count_of(last_end));
    const std::span<SpanMask> masks(masks_, mask_count_);
    std::fill(masks.begin(), masks.end(), SpanMask{});
    for (const SlotRange& range : ranges_) mark_visible(masks, range);

    order.first(safety.sinks, masks, safety_);
    order.last(safety.window, masks, safety_);
    std::sort(safety_.begin(), safety_.end());
    safety_.erase(std::unique(safety_.begin(), safety_.end()), safety_.end());

    for (SpanMask& mask : masks) {
        mask.selectable[0] = mask.visible[0];
        mask.selectable[1] = mask.visible[1];
    }
    for (const uint32_t slot : safety_) {
        masks[slot / kSpanSlots].selectable[slot % kSpanSlots / 64] &=
            ~(uint64_t{1} << (slot % 64));
    }
}

kernels::SlotList QueryView::visible() const {
    if (ranges_.empty()) return {};
    if (ranges_.size() == 1) return {nullptr, ranges_[0].begin, visible_count_};
    if (!visible_listed_) {
        uint32_t* out = visible_slots_;
        for (const SlotRange& range : ranges_) {
            std::iota(out, out + (range.end - range.begin), range.begin);
            out += range.end - range.begin;
        }
        visible_listed_ = true;
    }
    return {visible_slots_, 0, visible_count_};
}

}  // namespace shoal
