#include "runtime/query_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "shoal/status.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::SpanMask;

namespace {

constexpr uint32_t kSafetySlotsMax = 8192;

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
    const uint64_t spans = (slot_count_max + kSpanSlots - 1) / kSpanSlots;
    return spans * sizeof(SpanMask) + uint64_t{slot_count_max} * sizeof(uint32_t) +
           kSafetySlotsMax * sizeof(uint32_t);
}

// The list of visible slots grows when a query first has holes: single runs never need it.
void QueryView::reserve(uint32_t slot_count_max) {
    masks_.reserve((slot_count_max + kSpanSlots - 1) / kSpanSlots);
    ranges_.reserve(64);
    safety_.reserve(1024);
}

std::string QueryView::prepare(std::span<const SlotRange> ranges, const SlotOrder& order,
                               const Config::Safety& safety) {
    uint32_t last_end = 0;
    visible_count_ = 0;
    for (const SlotRange& range : ranges) {
        if (range.begin >= range.end || range.begin < last_end) {
            return fmt::format(
                "visibility.ranges: [{}, {}): must be ascending, disjoint and not empty",
                range.begin, range.end);
        }
        if (range.end > order.slot_end()) {
            return fmt::format(
                "visibility.ranges: [{}, {}): slots from {} on were never written in this store",
                range.begin, range.end, order.slot_end());
        }
        last_end = range.end;
        visible_count_ += range.end - range.begin;
    }
    ranges_.assign(ranges.begin(), ranges.end());
    visible_slots_.clear();
    safety_.clear();
    masks_.assign((last_end + kSpanSlots - 1) / kSpanSlots, SpanMask{});
    for (const SlotRange& range : ranges_) mark_visible(masks_, range);

    order.first(safety.sinks, masks_, safety_);
    order.last(safety.window, masks_, safety_);
    std::sort(safety_.begin(), safety_.end());
    safety_.erase(std::unique(safety_.begin(), safety_.end()), safety_.end());

    for (SpanMask& mask : masks_) {
        mask.selectable[0] = mask.visible[0];
        mask.selectable[1] = mask.visible[1];
    }
    for (const uint32_t slot : safety_) {
        masks_[slot / kSpanSlots].selectable[slot % kSpanSlots / 64] &=
            ~(uint64_t{1} << (slot % 64));
    }
    return "";
}

kernels::SlotList QueryView::visible() const {
    if (ranges_.empty()) return {};
    if (ranges_.size() == 1) return {nullptr, ranges_[0].begin, visible_count_};
    if (visible_slots_.empty()) {
        visible_slots_.resize(visible_count_);
        auto out = visible_slots_.begin();
        for (const SlotRange& range : ranges_) {
            std::iota(out, out + (range.end - range.begin), range.begin);
            out += range.end - range.begin;
        }
    }
    return {visible_slots_.data(), 0, visible_count_};
}

}  // namespace shoal
