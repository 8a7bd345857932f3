// Labels of a small group, encoded and ready to scan.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {

// Which channels a label keeps: `two` .. `sixteen` are uniform at one bit a dimension.
enum class LabelKind { mixed, two, four, eight, sixteen, ragged };

struct LabelCase {
    const char* note = "";
    uint32_t slots = 300;
    uint32_t kv_heads = 1;
    uint32_t q_per_kv = 1;
    uint32_t head_dim = 64;
    DType dtype = DType::f16;
    LabelKind kind = LabelKind::mixed;
    MaskKind mask = MaskKind::all;
    bool open = true;  // the last span is scored from f16
};

inline void add_channels(std::vector<LabelChannel>& channels, const std::vector<uint16_t>& order,
                         size_t count, uint32_t bits) {
    for (size_t i = 0; i < count && channels.size() < order.size(); ++i) {
        channels.push_back({order[channels.size()], static_cast<uint8_t>(bits)});
    }
}

inline LabelFormat make_test_format(LabelKind kind, uint32_t head_dim, uint32_t seed) {
    std::vector<uint16_t> order(head_dim);
    std::iota(order.begin(), order.end(), uint16_t{0});
    std::shuffle(order.begin(), order.end(), std::minstd_rand(seed + 1));
    std::vector<LabelChannel> channels;
    switch (kind) {
        case LabelKind::mixed:
            add_channels(channels, order, head_dim / 10, 4);
            add_channels(channels, order, (head_dim - head_dim / 10 * 4) / 2, 2);
            break;
        case LabelKind::two: add_channels(channels, order, head_dim / 2, 2); break;
        case LabelKind::four: add_channels(channels, order, head_dim / 4, 4); break;
        case LabelKind::eight: add_channels(channels, order, head_dim / 8, 8); break;
        case LabelKind::sixteen: add_channels(channels, order, head_dim / 16, 16); break;
        case LabelKind::ragged:  // every class, none of them filling a dword
            add_channels(channels, order, 3, 8);
            add_channels(channels, order, 7, 2);
            add_channels(channels, order, 5, 4);
            break;
    }
    std::vector<float> mean = random_normal(channels.size(), seed, 0.5F);
    return make_label_format(std::move(channels), std::move(mean), head_dim);
}

class TestLabels {
public:
    // Encodes with `backend`. The last `unwritten` slots are never written.
    TestLabels(const LabelCase& c, const Backend& backend, uint32_t seed = 1)
        : rows_(make_piece_format(c.kv_heads, c.head_dim, c.head_dim, c.dtype, c.dtype), c.slots),
          case_(c) {
        rows_.fill_all(seed);
        for (uint32_t h = 0; h < c.kv_heads; ++h) {
            formats_.push_back(make_test_format(c.kind, c.head_dim, seed + h));
            head_offsets_.push_back(stride_);
            stride_ += formats_[h].span_bytes;
            open_offsets_.push_back(open_bytes_);
            open_bytes_ += open_span_bytes(formats_[h]);
            scale_max_.emplace_back(formats_[h].channels.size(), 0.0F);
        }
        spans_ = std::make_unique<Guarded<std::byte>>(stride_ * span_count());
        open_ = std::make_unique<Guarded<std::byte>>(open_bytes_);
        for (uint32_t span = 0; span < span_count(); ++span) {
            for (uint32_t h = 0; h < c.kv_heads; ++h) encode(backend, span, h);
        }
        make_queries(backend, seed);
        masks_ = make_masks(c.mask, c.slots, seed);
    }

    uint32_t span_count() const { return (case_.slots + kSpanSlots - 1) / kSpanSlots; }
    uint32_t q_head_count() const { return case_.kv_heads * case_.q_per_kv; }
    bool is_open(uint32_t span) const { return case_.open && span + 1 == span_count(); }
    bool intact() const { return spans_->intact() && open_->intact(); }
    const LabelFormat& format(uint32_t head) const { return formats_[head]; }
    std::vector<float>& scale_max(uint32_t head) { return scale_max_[head]; }
    std::byte* span(uint32_t s, uint32_t head) {
        return spans_->data() + s * stride_ + head_offsets_[head];
    }
    std::byte* open(uint32_t head) { return open_->data() + open_offsets_[head]; }
    TestRows& rows() { return rows_; }
    const SpanMask& mask(uint32_t s) const { return masks_[s]; }

    LabelEncodeInput encode_input(uint32_t s, uint32_t head) {
        LabelEncodeInput in{&formats_[head], rows_.view(), head, s, {0, 0}, nullptr};
        for (uint32_t t = 0; t < kSpanSlots && s * kSpanSlots + t < case_.slots; ++t) {
            in.written[t / 64] |= uint64_t{1} << (t % 64);
        }
        in.channel_scale_max = scale_max_[head].data();
        return in;
    }
    LabelScanInput scan_input(Combine combine, float threshold) const {
        LabelScanInput in;
        in.formats = formats_.data();
        in.spans = spans_->data();
        in.span_stride_bytes = stride_;
        in.head_offset_bytes = head_offsets_.data();
        in.open = open_->data();
        in.open_head_offset_bytes = open_offsets_.data();
        if (case_.open) in.open_span = span_count() - 1;
        in.kv_head_count = case_.kv_heads;
        in.q_per_kv = case_.q_per_kv;
        in.queries = queries_.data();
        in.lse_guess = lse_.data();
        in.masks = masks_.data();
        in.span_end = span_count();
        in.combine = combine;
        in.candidate_threshold = threshold;
        return in;
    }

private:
    void encode(const Backend& backend, uint32_t s, uint32_t head) {
        const LabelEncodeInput in = encode_input(s, head);
        if (!is_open(s)) return backend.label_encode(in, span(s, head));
        for (uint32_t t = 0; s * kSpanSlots + t < case_.slots; ++t) {
            backend.label_encode_open(in, t, open(head));
        }
    }
    void make_queries(const Backend& backend, uint32_t seed) {
        queries_.resize(q_head_count());
        lse_ = random_normal(q_head_count(), seed + 5);
        for (uint32_t head = 0; head < q_head_count(); ++head) {
            const uint32_t kv_head = head / case_.q_per_kv;
            const std::vector<float> q = random_normal(case_.head_dim, seed + head + 9, 2.0F);
            const float scale = 1.0F / std::sqrt(static_cast<float>(case_.head_dim));
            backend.label_query({&formats_[kv_head], q.data(), scale, scale_max_[kv_head].data()},
                                queries_[head]);
        }
    }

    TestRows rows_;
    LabelCase case_;
    std::vector<LabelFormat> formats_;
    std::vector<size_t> head_offsets_;
    std::vector<size_t> open_offsets_;
    size_t stride_ = 0;
    size_t open_bytes_ = 0;
    std::vector<std::vector<float>> scale_max_;
    std::unique_ptr<Guarded<std::byte>> spans_;
    std::unique_ptr<Guarded<std::byte>> open_;
    std::vector<LabelQuery> queries_;
    std::vector<float> lse_;
    std::vector<SpanMask> masks_;
};

}  // namespace shoal::kernels::test
