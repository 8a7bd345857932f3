#include "runtime/page_index.hpp"

#include <algorithm>
#include <cstring>

#include "offload/executor.hpp"
#include "shoal/status.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::KvView;
using kernels::PieceFormat;

namespace {

size_t page_stride(const PieceFormat& piece) {
    return piece.kv_head_count * kernels::page_bound_bytes(piece.k_head_dim);
}

uint32_t pages_of(uint32_t slots, uint32_t page_slots) {
    return (slots + page_slots - 1) / page_slots;
}

}  // namespace

uint64_t PageIndex::bytes(const PieceFormat& piece, uint32_t page_slots, uint32_t slot_count) {
    return pages_of(slot_count, page_slots) * page_stride(piece);
}

void PageIndex::start(const kernels::Backend& backend, uint32_t page_slots, std::byte* pages) {
    SHOAL_ASSERT(kernels::unsupported_page_reason(page_slots).empty());
    backend_ = &backend;
    page_slots_ = page_slots;
    pages_ = pages;
    clear();
}

void PageIndex::encode(const KvView& kv, uint32_t page, std::span<const SpanWritten> written) {
    kernels::PageEncodeInput in;
    in.kv = kv;
    in.page_slots = page_slots_;
    in.page = page;
    in.slots = kernels::page_bits(written[page * page_slots_ / kSpanSlots].k, page, page_slots_);
    std::byte* bounds = pages_ + page * page_stride(kv.format);
    for (; in.kv_head < kv.format.kv_head_count; ++in.kv_head) {
        backend_->page_encode(in, bounds);
        bounds += kernels::page_bound_bytes(kv.format.k_head_dim);
    }
}

// Slots of one page, none of which held a key.
void PageIndex::extend(const KvView& kv, SlotRange slots) {
    kernels::PageEncodeInput in;
    in.kv = kv;
    in.page_slots = page_slots_;
    in.page = slots.begin / page_slots_;
    const uint32_t count = slots.end - slots.begin;
    in.slots = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1)
               << (slots.begin % page_slots_);
    std::byte* bounds = pages_ + in.page * page_stride(kv.format);
    for (; in.kv_head < kv.format.kv_head_count; ++in.kv_head) {
        backend_->page_extend(in, bounds);
        bounds += kernels::page_bound_bytes(kv.format.k_head_dim);
    }
}

void PageIndex::on_keys(const KvView& kv, SlotRange slots, std::span<const SpanWritten> written,
                        const Executor& executor) {
    // Only the end of the last page can be added to: a token that is decoded costs one key, not
    // the keys of its page.
    const uint32_t in_page = slots.begin % page_slots_;
    if (slots.begin == slot_end_ && in_page != 0) {
        const uint32_t end = std::min(slots.end, slots.begin - in_page + page_slots_);
        extend(kv, {slots.begin, end});
        slot_end_ = slots.begin = end;
    }
    const uint32_t first = slots.begin / page_slots_;
    const uint32_t count = slots.begin == slots.end ? 0 : pages_of(slots.end, page_slots_) - first;
    offload::run_on(executor, count,
                    [&](uint32_t page, uint32_t) { encode(kv, first + page, written); });
    slot_end_ = std::max(slot_end_, slots.end);
}

void PageIndex::truncate(const KvView& kv, uint32_t slot_begin,
                         std::span<const SpanWritten> written) {
    if (!started() || slot_begin >= slot_end_) return;
    slot_end_ = slot_begin;
    if (slot_begin % page_slots_ != 0) encode(kv, slot_begin / page_slots_, written);
}

void PageIndex::copy_from(const PieceFormat& piece, const PageIndex& other) {
    SHOAL_ASSERT(started() && page_slots_ == other.page_slots_);
    std::memcpy(pages_, other.pages_, bytes(piece, page_slots_, other.slot_end_));
    slot_end_ = other.slot_end_;
}

void PageIndex::describe(const PieceFormat& piece, kernels::PageScanInput& scan) const {
    scan.pages = pages_;
    scan.page_stride_bytes = page_stride(piece);
    scan.head_stride_bytes = kernels::page_bound_bytes(piece.k_head_dim);
    scan.bound_dtype = kernels::page_bound_dtype(piece.k_dtype);
    scan.page_slots = page_slots_;
    scan.k_head_dim = piece.k_head_dim;
    scan.kv_head_count = piece.kv_head_count;
}

}  // namespace shoal
