// Page bounds of a small group, encoded and ready to scan.
#pragma once

#include <algorithm>
#include <numbers>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {

struct PageCase {
    const char* note = "";
    uint32_t slots = 300;
    uint32_t page_slots = 16;
    uint32_t kv_heads = 1;
    uint32_t q_per_kv = 1;
    uint32_t head_dim = 64;
    DType dtype = DType::f16;
    MaskKind mask = MaskKind::all;
};

// Rows, their pages encoded by one backend, a query per head and masks.
class TestPages {
public:
    TestPages(const PageCase& c, const Backend& backend, uint32_t seed = 1)
        : case_(c), rows_(make_piece_format(c.kv_heads, c.head_dim, c.head_dim, c.dtype, c.dtype),
                          c.slots),
          pages_(page_count() * page_stride(c)), scale_(1.0F / std::sqrt(float(c.head_dim))) {
        rows_.fill_all(seed);
        for (uint32_t page = 0; page < page_count(); ++page) {
            for (uint32_t h = 0; h < c.kv_heads; ++h) {
                backend.page_encode(encode_input(page, h, written(page)), bounds(page, h));
            }
        }
        q_ = random_normal(size_t{q_head_count()} * (c.head_dim + 3), seed + 9, 2.0F);
        q_[0] = 0.0F;
        lse_ = random_normal(q_head_count(), seed + 5);
        masks_ = make_masks(c.mask, c.slots, seed, c.page_slots);
    }

    uint32_t page_count() const {
        return (case_.slots + case_.page_slots - 1) / case_.page_slots;
    }
    uint32_t q_head_count() const { return case_.kv_heads * case_.q_per_kv; }
    uint32_t q_stride() const { return case_.head_dim + 3; }
    TestRows& rows() { return rows_; }
    bool intact() const { return pages_.intact(); }
    const SpanMask& mask(uint32_t span) const { return masks_[span]; }
    std::byte* bounds(uint32_t page, uint32_t head) {
        return pages_.data() + page * page_stride(case_) + head * head_stride(case_);
    }
    float bound(uint32_t page, uint32_t head, uint32_t i) {
        return load_element(bounds(page, head), page_bound_dtype(case_.dtype), i);
    }
    float least(uint32_t page, uint32_t head, uint32_t c) { return bound(page, head, c); }
    float largest(uint32_t page, uint32_t head, uint32_t c) {
        return bound(page, head, case_.head_dim + c);
    }
    // Slots of a page that hold a key.
    uint64_t written(uint32_t page) const {
        const uint32_t count = std::min(case_.slots - page * case_.page_slots, case_.page_slots);
        return count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    }
    PageEncodeInput encode_input(uint32_t page, uint32_t head, uint64_t slots) const {
        return {rows_.view(), head, case_.page_slots, page, slots};
    }
    PageScanInput scan_input(Combine combine, float threshold) {
        PageScanInput in;
        in.pages = pages_.data();
        in.page_stride_bytes = page_stride(case_);
        in.head_stride_bytes = head_stride(case_);
        in.bound_dtype = page_bound_dtype(case_.dtype);
        in.page_slots = case_.page_slots;
        in.k_head_dim = case_.head_dim;
        in.kv_head_count = case_.kv_heads;
        in.q_per_kv = case_.q_per_kv;
        in.q = q_.data();
        in.q_head_stride = q_stride();
        in.scale = scale_;
        in.lse_guess = lse_.data();
        in.masks = masks_.data();
        in.page_end = page_count();
        in.combine = combine;
        in.candidate_threshold = threshold;
        return in;
    }
    // The exact score of a slot for one query head, log2 domain, and the sum of its magnitudes.
    struct Exact {
        double score = 0.0;
        double magnitude = 0.0;
    };
    Exact exact_score(uint32_t slot, uint32_t head) const {
        double sum = 0.0;
        double magnitude = 0.0;
        for (uint32_t c = 0; c < case_.head_dim; ++c) {
            const double product = double{q_[head * q_stride() + c]} *
                                   double{rows_.k_at(slot, head / case_.q_per_kv, c)};
            sum += product;
            magnitude += std::abs(product);
        }
        const double scale = double{scale_} * std::numbers::log2e;
        return {sum * scale - double{lse_[head]}, magnitude * scale};
    }

private:
    // Gaps between heads and between pages: strides must be obeyed.
    static size_t head_stride(const PageCase& c) { return page_bound_bytes(c.head_dim) + 64; }
    static size_t page_stride(const PageCase& c) { return c.kv_heads * head_stride(c) + 64; }

    PageCase case_;
    TestRows rows_;
    Guarded<std::byte> pages_;
    float scale_ = 0.0F;
    std::vector<float> q_;
    std::vector<float> lse_;
    std::vector<SpanMask> masks_;
};

struct PageScan {
    explicit PageScan(const TestPages& pages)
        : scores(pages.page_count()), sums(pages.q_head_count()), candidates(pages.page_count()) {
        out.scores = scores.data();
        out.head_sums = sums.data();
        out.candidates = candidates.data();
    }
    bool intact() const { return scores.intact() && sums.intact() && candidates.intact(); }
    Guarded<float> scores;
    Guarded<double> sums;
    Guarded<uint32_t> candidates;
    PageScanOutput out;
};

// The visible or the selectable slots of a page, bit by bit.
inline uint64_t page_bits_of(const TestPages& pages, const PageCase& c, uint32_t page,
                             bool selectable) {
    uint64_t bits = 0;
    for (uint32_t t = 0; t < c.page_slots; ++t) {
        const uint32_t slot = page * c.page_slots + t;
        if (slot >= c.slots) break;
        const SpanMask& mask = pages.mask(slot / kSpanSlots);
        const uint64_t* words = selectable ? mask.selectable : mask.visible;
        bits |= ((words[slot % kSpanSlots / 64] >> (slot % 64)) & 1U) << t;
    }
    return bits;
}

}  // namespace shoal::kernels::test
