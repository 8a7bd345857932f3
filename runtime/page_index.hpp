// The page bounds of one group of one store, kept right under append and overwrite.
//
// Every page that holds a key has bounds: the least and the largest key of each channel and KV
// head, over the slots that hold one. They never depend on how the keys came: a page that grows at
// its end is widened, any other change makes its bounds anew from the rows.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.hpp"
#include "runtime/label_index.hpp"

namespace shoal {

class PageIndex {
public:
    // Bytes that the pages of `slot_count` slots take.
    static uint64_t bytes(const kernels::PieceFormat& piece, uint32_t page_slots,
                          uint32_t slot_count);

    // `pages`: bytes() of the slots that the store may hold; in RAM as far as keys are written.
    void start(const kernels::Backend& backend, uint32_t page_slots, std::byte* pages);
    bool started() const { return backend_ != nullptr; }
    void clear() { slot_end_ = 0; }

    // Slots [begin, end) just got keys; `written` describes every span of the store.
    void on_keys(const kernels::KvView& kv, SlotRange slots, std::span<const SpanWritten> written,
                 const Executor& executor);
    // Slots [slot_begin, ...) are gone: the page that is cut shrinks.
    void truncate(const kernels::KvView& kv, uint32_t slot_begin,
                  std::span<const SpanWritten> written);
    // Becomes what `other` is, an index of a group with the same rows and pages. Memory for as
    // many pages is in RAM already.
    void copy_from(const kernels::PieceFormat& piece, const PageIndex& other);

    // Fills everything of a scan that comes from the index.
    void describe(const kernels::PieceFormat& piece, kernels::PageScanInput& scan) const;
    uint32_t page_slots() const { return page_slots_; }
    // Spans that hold pages.
    uint32_t span_count() const {
        return (slot_end_ + kernels::kSpanSlots - 1) / kernels::kSpanSlots;
    }

private:
    void encode(const kernels::KvView& kv, uint32_t page, std::span<const SpanWritten> written);
    void extend(const kernels::KvView& kv, SlotRange slots);

    const kernels::Backend* backend_ = nullptr;
    std::byte* pages_ = nullptr;  // [page][kv_head] bounds
    uint32_t page_slots_ = 0;
    uint32_t slot_end_ = 0;       // behind the highest slot that ever got a key
};

}  // namespace shoal
