// Page bounds: per page of slots and KV head, the least and the largest key of every channel, and
// from them an upper bound of q.k over the page.
//
//   bound(q, page) = sum over channels c of max(q[c] * least[c], q[c] * largest[c])
//
// Method: Quest (arXiv 2406.10774). As published, a page is scored for each query head by itself,
// with a KV head of its own: where query heads share a KV head, and KV heads a set, that leaves
// open how their scores are brought to one measure. Here they are combined as label scores are,
// normalised by each head's log-sum-exp (kernels/label.hpp); raw bounds of different heads are
// never compared. A page is one score: a selector takes whole pages by topk over them.
#pragma once

#include "kernels/label.hpp"
#include "kernels/views.hpp"

namespace shoal::kernels {

// Slots of a page: a power of two in this range. A page never crosses a span.
inline constexpr uint32_t kPageSlotsMin = 4;
inline constexpr uint32_t kPageSlotsMax = 64;
inline constexpr uint32_t kPageSlotsDefault = 16;

// How bounds of keys of a dtype are stored. Bounds of 16-bit keys are exact; those of f32 and q8
// keys are rounded outwards, so that they stay bounds (but for keys above bf16's largest number,
// 3.39e38: theirs saturate).
constexpr DType page_bound_dtype(DType k_dtype) {
    return k_dtype == DType::f16 ? DType::f16 : DType::bf16;
}
// One page of one KV head: [k_head_dim] least keys, then [k_head_dim] largest. Multiple of 64.
constexpr size_t page_bound_bytes(uint32_t k_head_dim) {
    return 2 * size_t{k_head_dim} * sizeof(uint16_t);
}

// page_encode(in, bounds): bounds of the keys in `slots`, anew. For a page that is complete, and
//     for one with a slot overwritten. Without slots: least = +inf, largest = -inf.
// page_extend(in, bounds): widens bounds by keys just written to slots that held none. In any
//     order and in any pieces, it leaves what page_encode makes of all the slots together.
// Keys must be finite (append says whether they are).
struct PageEncodeInput {
    KvView kv;
    uint32_t kv_head = 0;     // inside the view
    uint32_t page_slots = kPageSlotsDefault;
    uint32_t page = 0;        // slots page * page_slots on
    uint64_t slots = 0;       // bit t: slot t of the page, which holds a key
};

// Bounds of the pages [page_begin, page_end) of one group for one query: every KV head of the
// group, every query head of each, combined.
struct PageScanInput {
    const std::byte* pages = nullptr;      // [page_count][kv_head_count] bounds; strides:
    size_t page_stride_bytes = 0;
    size_t head_stride_bytes = 0;
    DType bound_dtype = DType::f16;        // page_bound_dtype() of the keys
    uint32_t page_slots = kPageSlotsDefault;
    uint32_t k_head_dim = 0;
    uint32_t kv_head_count = 0;
    uint32_t q_per_kv = 1;                 // kv_head_count * q_per_kv <= kLabelQueryHeadsMax
    const float* q = nullptr;              // [kv_head_count * q_per_kv, k_head_dim]
    size_t q_head_stride = 0;              // floats from one query head to the next
    float scale = 0.0F;                    // factor on q.k, positive
    const float* lse_guess = nullptr;      // [kv_head_count * q_per_kv] log2 domain
    const SpanMask* masks = nullptr;       // [span_count] of slots, as labels take them
    uint32_t page_begin = 0;
    uint32_t page_end = 0;
    Combine combine = Combine::sum;
    float candidate_threshold = 0.0F;      // pages with score >= this are candidates
};

struct PageScanOutput {
    float* scores = nullptr;         // [page_count]: -inf where no slot is selectable
    // [q_head_count] sum over these pages of visible slots x 2^(bound - lse_guess), an upper bound
    // (but for rounding) of the same sum over the exact scores; or null.
    double* head_sums = nullptr;
    uint32_t* candidates = nullptr;  // [page_end - page_begin] ascending pages; or null
    uint32_t candidate_count = 0;
};

// The bits of one page in words of a SpanMask.
inline uint64_t page_bits(const uint64_t words[2], uint32_t page, uint32_t page_slots) {
    const uint32_t first = page * page_slots % kSpanSlots;
    const uint64_t bits = words[first / 64] >> (first % 64);
    return page_slots == 64 ? bits : bits & ((uint64_t{1} << page_slots) - 1);
}

}  // namespace shoal::kernels
