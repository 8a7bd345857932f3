#include "runtime/label_index.hpp"

#include <algorithm>
#include <cstring>

#include "offload/executor.hpp"
#include "shoal/status.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::KvView;

namespace {

bool has_key(const SpanWritten& written, uint32_t slot_in_span) {
    return ((written.k[slot_in_span / 64] >> (slot_in_span % 64)) & 1U) != 0;
}

bool all_keys(const SpanWritten& written) {
    return (written.k[0] & written.k[1]) == ~uint64_t{0};
}

}  // namespace

void LabelIndex::start(const kernels::Backend& backend,
                       std::span<const kernels::LabelFormat> formats, const Memory& memory) {
    backend_ = &backend;
    formats_ = formats;
    memory_ = memory;
    for (const kernels::LabelFormat& format : formats) {
        SHOAL_ASSERT(format.channels.size() <= kChannelsMax);
        head_offset_bytes_.push_back(span_stride_bytes_);
        span_stride_bytes_ += format.span_bytes;
        open_head_offset_bytes_.push_back(open_bytes_);
        open_bytes_ += kernels::open_span_bytes(format);
    }
    full_spans_.reserve(64);
    clear();
}

void LabelIndex::clear() {
    span_top_ = 0;
    span_open_ = kNoSpan;
    if (started()) {
        std::memset(memory_.channel_scale_max, 0,
                    formats_.size() * kChannelsMax * sizeof(float));
    }
}

kernels::LabelEncodeInput LabelIndex::input(const KvView& kv, uint32_t span, uint32_t kv_head,
                                            const SpanWritten& written) {
    kernels::LabelEncodeInput in;
    in.format = &formats_[kv_head];
    in.kv = kv;
    in.kv_head = kv_head;
    in.span = span;
    in.written[0] = written.k[0];
    in.written[1] = written.k[1];
    in.channel_scale_max = memory_.channel_scale_max + size_t{kv_head} * kChannelsMax;
    return in;
}

void LabelIndex::encode_span(const KvView& kv, uint32_t span, uint32_t kv_head,
                             const SpanWritten& written) {
    backend_->label_encode(input(kv, span, kv_head, written), span_at(span, kv_head));
}

// One KV head is one job: two spans of a head would race on its channel_scale_max.
void LabelIndex::encode_spans(const KvView& kv, std::span<const uint32_t> spans,
                              std::span<const SpanWritten> written, const Executor& executor) {
    if (spans.empty()) return;
    counters_.spans_encoded += spans.size();
    offload::run_on(executor, static_cast<uint32_t>(formats_.size()),
                    [&](uint32_t kv_head, uint32_t) {
                        for (const uint32_t span : spans) {
                            encode_span(kv, span, kv_head, written[span]);
                        }
                    });
}

void LabelIndex::add_to_open(const KvView& kv, uint32_t slot) {
    const uint32_t span = slot / kSpanSlots;
    for (uint32_t kv_head = 0; kv_head < formats_.size(); ++kv_head) {
        backend_->label_encode_open(input(kv, span, kv_head, SpanWritten{}), slot % kSpanSlots,
                                    memory_.open + open_head_offset_bytes_[kv_head]);
    }
}

void LabelIndex::overwrite(const KvView& kv, uint32_t slot, const SpanWritten& written) {
    const uint32_t span = slot / kSpanSlots;
    bool ranged_again = false;
    for (uint32_t kv_head = 0; kv_head < formats_.size(); ++kv_head) {
        const kernels::LabelEncodeInput in = input(kv, span, kv_head, written);
        if (backend_->label_encode_row(in, slot % kSpanSlots, span_at(span, kv_head))) continue;
        encode_span(kv, span, kv_head, written);
        ranged_again = true;
    }
    counters_.spans_ranged_again += ranged_again ? 1 : 0;
}

void LabelIndex::on_keys(const KvView& kv, SlotRange slots, std::span<const SpanWritten> written,
                         const Executor& executor) {
    full_spans_.clear();
    for (uint32_t begin = slots.begin; begin < slots.end;) {
        const uint32_t span = begin / kSpanSlots;
        const uint32_t end = std::min(slots.end, (span + 1) * kSpanSlots);
        const bool closed = span < span_top_ && span != span_open_;
        const bool whole = end - begin == kSpanSlots;
        if (!closed && span_open_ != kNoSpan && span != span_open_) {
            full_spans_.push_back(span_open_);  // a higher span is written: the open one closes
            span_open_ = kNoSpan;
        }
        // Spans that a gap leaves behind have no rows yet; their first row encodes them.
        for (uint32_t skipped = span_top_; skipped < span; ++skipped)
            full_spans_.push_back(skipped);
        if (whole || (!closed && all_keys(written[span]))) {
            full_spans_.push_back(span);
            if (span_open_ == span) span_open_ = kNoSpan;
        } else if (closed) {
            for (uint32_t slot = begin; slot < end; ++slot) overwrite(kv, slot, written[span]);
        } else {
            span_open_ = span;
            for (uint32_t slot = begin; slot < end; ++slot) add_to_open(kv, slot);
        }
        span_top_ = std::max(span_top_, span + 1);
        begin = end;
    }
    encode_spans(kv, full_spans_, written, executor);
}

void LabelIndex::truncate(const KvView& kv, uint32_t slot_begin,
                          std::span<const SpanWritten> written) {
    const uint32_t span = slot_begin / kSpanSlots;
    if (!started() || span >= span_top_) return;
    span_top_ = span;
    span_open_ = kNoSpan;
    if (slot_begin % kSpanSlots == 0) return;
    span_top_ = span + 1;
    span_open_ = span;
    for (uint32_t slot = span * kSpanSlots; slot < slot_begin; ++slot) {
        if (has_key(written[span], slot % kSpanSlots)) add_to_open(kv, slot);
    }
}

void LabelIndex::copy_from(const LabelIndex& other) {
    SHOAL_ASSERT(started() && formats_.data() == other.formats_.data());
    std::memcpy(memory_.spans, other.memory_.spans, other.span_top_ * span_stride_bytes_);
    std::memcpy(memory_.open, other.memory_.open, open_bytes_);
    std::memcpy(memory_.channel_scale_max, other.memory_.channel_scale_max,
                formats_.size() * kChannelsMax * sizeof(float));
    span_top_ = other.span_top_;
    span_open_ = other.span_open_;
}

void LabelIndex::describe(kernels::LabelScanInput& scan) const {
    scan.formats = formats_.data();
    scan.spans = memory_.spans;
    scan.span_stride_bytes = span_stride_bytes_;
    scan.head_offset_bytes = head_offset_bytes_.data();
    scan.open = span_open_ == kNoSpan ? nullptr : memory_.open;
    scan.open_head_offset_bytes = open_head_offset_bytes_.data();
    scan.open_span = span_open_;
    scan.kv_head_count = static_cast<uint32_t>(formats_.size());
}

}  // namespace shoal
