// The labels of one group of one store, kept right under append and overwrite.
//
// Spans below the top one are closed: encoded with ranges of their own. The top span is open: its
// label channels are kept in f16 until it is full or a higher span is written. Overwriting a slot
// of a closed span re-encodes the slot when it fits the span's ranges, else the whole span is
// ranged again from the rows. Nothing is ever clipped.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.hpp"

namespace shoal {

struct LabelCounters {
    uint64_t spans_encoded = 0;
    uint64_t spans_ranged_again = 0;
};

// Which slots of a span hold a K and a V row in this group.
struct SpanWritten {
    uint64_t k[2] = {0, 0};
    uint64_t v[2] = {0, 0};
};

class LabelIndex {
public:
    // `formats`: one per KV head of the group; they must outlive the index. `memory` holds
    // span_count_max spans of span_stride_bytes; `open` holds open_bytes().
    struct Memory {
        std::byte* spans = nullptr;
        std::byte* open = nullptr;
        float* channel_scale_max = nullptr;  // [kv_head_count, kChannelsMax]
    };
    static constexpr uint32_t kChannelsMax = 256;

    void start(const kernels::Backend& backend, std::span<const kernels::LabelFormat> formats,
               const Memory& memory);
    bool started() const { return !formats_.empty(); }
    void clear();

    // Calls `need` with every range of slots whose rows on_keys(slots) may read, if `written` is
    // what it is before those slots get their keys.
    template <typename Need>
    void rows_needed(SlotRange slots, std::span<const SpanWritten> written, Need&& need) const;
    // Slots [begin, end) just got keys; `written` describes every span of the store.
    void on_keys(const kernels::KvView& kv, SlotRange slots, std::span<const SpanWritten> written,
                 const Executor& executor);
    // Slots [slot_begin, ...) are gone; the span they start in opens again.
    void truncate(const kernels::KvView& kv, uint32_t slot_begin,
                  std::span<const SpanWritten> written);

    // Becomes what `other` is, an index with the same formats: bit for bit, ranges included. Memory
    // for as many spans is in RAM already.
    void copy_from(const LabelIndex& other);

    // Fills everything of a scan that comes from the index.
    void describe(kernels::LabelScanInput& scan) const;
    const float* channel_scale_max(uint32_t kv_head) const {
        return memory_.channel_scale_max + size_t{kv_head} * kChannelsMax;
    }
    uint32_t span_count() const { return span_top_; }
    size_t span_stride_bytes() const { return span_stride_bytes_; }
    const LabelCounters& counters() const { return counters_; }
    void reset_counters() { counters_ = {}; }

private:
    static constexpr uint32_t kNoSpan = UINT32_MAX;

    void encode_spans(const kernels::KvView& kv, std::span<const uint32_t> spans,
                      std::span<const SpanWritten> written, const Executor& executor);
    void encode_span(const kernels::KvView& kv, uint32_t span, uint32_t kv_head,
                     const SpanWritten& written);
    void add_to_open(const kernels::KvView& kv, uint32_t slot);
    void overwrite(const kernels::KvView& kv, uint32_t slot, const SpanWritten& written);
    kernels::LabelEncodeInput input(const kernels::KvView& kv, uint32_t span, uint32_t kv_head,
                                    const SpanWritten& written);
    std::byte* span_at(uint32_t span, uint32_t kv_head) {
        return memory_.spans + span * span_stride_bytes_ + head_offset_bytes_[kv_head];
    }

    const kernels::Backend* backend_ = nullptr;
    std::span<const kernels::LabelFormat> formats_;
    Memory memory_;
    std::vector<size_t> head_offset_bytes_;
    std::vector<size_t> open_head_offset_bytes_;
    size_t span_stride_bytes_ = 0;
    size_t open_bytes_ = 0;
    uint32_t span_top_ = 0;         // spans [0, span_top_) have labels, open one included
    uint32_t span_open_ = kNoSpan;  // span_top_ - 1 while it is open
    std::vector<uint32_t> full_spans_;
    LabelCounters counters_;
};

template <typename Need>
void LabelIndex::rows_needed(SlotRange slots, std::span<const SpanWritten> written,
                             Need&& need) const {
    using kernels::kSpanSlots;
    const auto whole = [](uint32_t span) {
        return SlotRange{span * kSpanSlots, (span + 1) * kSpanSlots};
    };
    const uint32_t last = (slots.end - 1) / kSpanSlots;
    if (span_open_ != kNoSpan && last > span_open_) need(whole(span_open_));
    for (uint32_t span = slots.begin / kSpanSlots; span <= last; ++span) {
        const SlotRange here{std::max(slots.begin, span * kSpanSlots),
                             std::min(slots.end, (span + 1) * kSpanSlots)};
        const auto keys = static_cast<uint32_t>(std::popcount(written[span].k[0]) +
                                                std::popcount(written[span].k[1]));
        const bool closed = span < span_top_ && span != span_open_;
        const bool closes = keys + (here.end - here.begin) >= kSpanSlots;
        need(closed || closes || span < last ? whole(span) : here);
    }
}

}  // namespace shoal
