// Labels: a few quantised key channels per token, from which importance is guessed.
//
// A KV head keeps some channels of its keys, each with 2, 4, 8 or 16 bits. Keys are centred by a
// calibrated mean; the range of a channel is its minimum and maximum over a span of 128 slots.
// The scores of a span are then one integer dot product with weights made from the query.
// Method: Double Sparsity (arXiv 2408.07092), with channels per KV head, mixed bits and span
// ranges. Encoding and layout are Shoal's own.
#pragma once

#include <vector>

#include "kernels/views.hpp"

namespace shoal::kernels {

struct LabelChannel {
    uint16_t channel = 0;  // index into the key's head_dim
    uint8_t bits = 0;      // 2, 4, 8 or 16
};

// Up to four codes of one bit position, one a byte of a plane: one integer dot product.
//
// Codes are scored times `factor`: 4 for 2 bits, so that weights of 2-bit and of 4-bit channels
// share a step. codes x factor = ((dword << left) >> right) & mask, per byte.
struct LabelOp {
    static constexpr uint16_t kNoChannel = 0xffff;
    uint32_t plane = 0;
    uint32_t dword = 0;  // label_dword_index() of the plane and slot 0
    uint32_t shift = 0;  // lowest bit of the codes in their bytes
    uint32_t bits = 0;   // 2, 4 or 8
    // Byte b holds the code of channels[code_index[b]].
    uint16_t code_index[4] = {kNoChannel, kNoChannel, kNoChannel, kNoChannel};
    uint32_t factor = 1;
    uint32_t left = 0;     // 0 or 2
    uint32_t right = 0;
    uint32_t mask = 0;
    uint64_t extract = 0;  // the same as the bit matrix of a GF(2) affine instruction
    uint32_t sum_end = 0;  // ops from this one to sum_end - 1 fit one 16-bit sum together
};

// In the order of the ops' bytes, label_parameter_count() entries: a code's factor, and half the
// largest code times factor; 0 for a byte without a channel of this kind. Both empty where there
// are no such channels.
struct LabelCodeTable {
    std::vector<float> factor;
    std::vector<float> half;
};

// What one KV head's labels look like. Either all channels have 16 bits (kept as f16, no
// ranges), or none has. Made by make_label_format() only, so that encode and score agree.
struct LabelFormat {
    std::vector<LabelChannel> channels;
    std::vector<float> mean;             // [channels.size()] subtracted from the key
    std::vector<LabelOp> ops;            // 2 and 4 bits, then 8; empty when channels have 16
    uint32_t narrow_op_count = 0;        // ops of 2 and 4 bits
    LabelCodeTable tables[2];            // channels with 2 or 4 bits, channels with 8
    uint32_t k_head_dim = 0;
    uint32_t plane_count = 0;            // dwords of codes a token has
    size_t span_bytes = 0;               // one span of one KV head, multiple of 64
    bool is_f16() const { return ops.empty(); }
};

// Layout of a span of one KV head, integer labels, in the order in which a scan reads it:
//   label_parameter_count() f16 scales in the order of the ops' bytes, then as many f16 centres;
//   both are 0 for a byte without a channel;
//   then for every 16 slots the dwords of their codes, plane after plane (label_dword_index()).
// A code stands for centre + scale * (code - half the largest code). Keys beyond the range of f16
// saturate.
// f16 labels: channels.size() planes of 128 f16. The open span of a store is always kept in this
// layout (open_span_bytes).
inline constexpr uint32_t kLabelBlockSlots = 16;

// 4 * ops.size(), rounded up so that vectors need no tail.
inline size_t label_parameter_count(const LabelFormat& format) {
    return (format.ops.size() + 3) / 4 * 16;
}
// From the start of a span to its codes.
inline size_t label_code_offset(const LabelFormat& format) {
    return label_parameter_count(format) * 2 * sizeof(uint16_t);
}
// Index of a slot's dword of one plane among the codes.
inline size_t label_dword_index(const LabelFormat& format, uint32_t plane, uint32_t slot_in_span) {
    const uint32_t block = slot_in_span / kLabelBlockSlots;
    return (size_t{block} * format.plane_count + plane) * kLabelBlockSlots +
           slot_in_span % kLabelBlockSlots;
}

// `channels` (1 or more, each at most once) with their bits; packed into bytes by class, unused
// bits stay zero. `mean` has one entry per channel of `channels`.
LabelFormat make_label_format(std::vector<LabelChannel> channels, std::vector<float> mean,
                              uint32_t k_head_dim);
size_t open_span_bytes(const LabelFormat& format);
// The largest span_bytes of channels that take `row_bits` together, for memory plans.
// `channel_bits`: 2, 4, 8 or 16, or 0 for any mixture of 2 and 4.
size_t label_span_bytes_max(uint32_t row_bits, uint32_t channel_bits);

// Centred values of one slot, [channels.size()], of a span or of an open span. For tests, for
// statistics, and to range a span again whose rows are not in memory.
void label_decode(const LabelFormat& format, const std::byte* span, uint32_t slot_in_span,
                  float* values);
void label_decode_open(const LabelFormat& format, const std::byte* open, uint32_t slot_in_span,
                       float* values);

// The range of one channel in one span, as every backend stores it: rounded so that no value in
// [low, high] is clipped.
struct LabelRange {
    uint16_t scale = 0;   // f16 bits
    uint16_t center = 0;  // f16 bits
};
LabelRange label_range(float low, float high, uint32_t bits);
// What code 0 stands for.
float label_minimum(const LabelRange& range, uint32_t bits);

struct LabelEncodeInput {
    const LabelFormat* format = nullptr;
    KvView kv;
    uint32_t kv_head = 0;              // inside the view
    uint32_t span = 0;
    uint64_t written[2] = {0, 0};      // slots of the span that hold a key; others get code 0
    // In and out: raised to the range step of every channel of the span. [channels.size()]
    float* channel_scale_max = nullptr;
};

// label_encode(in, span):       ranges and codes of a whole span.
// label_encode_row(in, slot_in_span, span): codes of one slot inside the ranges the span has;
//     false when a channel lies outside them: nothing is written, encode the whole span.
// label_encode_open(in, slot_in_span, open): centred f16 channels of one slot of the open span.
// Keys must be finite (append says whether they are).

// A query prepared for the labels of its KV head. All buffers are owned here and reused.
struct LabelQuery {
    std::vector<float> q;  // [channels.size()] query channels x scale x log2(e)
    // [label_parameter_count()] q / step / the op's factor, in the order of the ops' bytes. The
    // integer weight of a channel in a span is round(weight x channel scale).
    std::vector<float> weight;
    // Score per unit of the dot product: of channels with 2 or 4 bits, of channels with 8.
    float step[2] = {0, 0};
};

struct LabelQueryInput {
    const LabelFormat* format = nullptr;
    const float* q = nullptr;            // [k_head_dim]
    float scale = 0.0F;                  // factor on q.k
    const float* channel_scale_max = nullptr;  // [channels.size()] largest range step in the store
};

// How the heads' scores become one score per slot.
//   sum: sum over heads of 2^(s_h - lse_h)      max: max over heads of (s_h - lse_h)
// with s in log2 units and the exponent of 2 limited to kLabelExponentMax.
enum class Combine : uint8_t { sum, max };

inline constexpr float kLabelExponentMax = 100.0F;
// Query heads of one group that a scan takes at most.
inline constexpr uint32_t kLabelQueryHeadsMax = 256;

// Scores of the spans [span_begin, span_end) of one group for one query: every KV head of the
// group, every query head of each, combined.
struct LabelScanInput {
    const LabelFormat* formats = nullptr;      // [kv_head_count]
    const std::byte* spans = nullptr;          // [span_count][kv_head_count] spans; offsets:
    size_t span_stride_bytes = 0;
    const size_t* head_offset_bytes = nullptr; // [kv_head_count] inside a span's stride
    const std::byte* open = nullptr;           // open spans of the group in the f16 layout, or null
    const size_t* open_head_offset_bytes = nullptr;  // [kv_head_count]
    uint32_t open_span = UINT32_MAX;           // which span is open (scored from `open`)
    uint32_t kv_head_count = 0;
    uint32_t q_per_kv = 1;
    const LabelQuery* queries = nullptr;       // [kv_head_count * q_per_kv]
    const float* lse_guess = nullptr;          // [kv_head_count * q_per_kv] log2 domain
    const SpanMask* masks = nullptr;           // [span_count]
    uint32_t span_begin = 0;
    uint32_t span_end = 0;
    Combine combine = Combine::sum;
    float candidate_threshold = 0.0F;          // slots with score >= this are candidates
};

struct LabelScanOutput {
    float* scores = nullptr;         // [span_count * 128]: -inf where not selectable
    // [q_head_count] sum over the visible slots of these spans of 2^(s - lse_guess); or null.
    // Adding up parts depends on where they were cut: cut by index, not by thread count.
    double* head_sums = nullptr;
    // [(span_end - span_begin) * 128 + 64] ascending slots; or null.
    uint32_t* candidates = nullptr;
    uint32_t candidate_count = 0;
};

}  // namespace shoal::kernels
