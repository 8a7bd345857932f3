// label_encode: range and code every channel of a span, slot by slot.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/q8.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

bool is_written(const LabelEncodeInput& in, uint32_t slot_in_span) {
    return ((in.written[slot_in_span / 64] >> (slot_in_span % 64)) & 1U) != 0;
}

// The centred key of channel `c`: rounded to f32, so that every backend ranges the same values.
float centred(const LabelEncodeInput& in, uint32_t slot_in_span, size_t c) {
    const uint32_t slot = in.span * kSpanSlots + slot_in_span;
    const std::byte* row = in.kv.k_row(slot, in.kv_head);
    const uint16_t channel = in.format->channels[c].channel;
    const float scale = k_scale(in.kv, slot, in.kv_head);
    return load_element(row, in.kv.format.k_dtype, channel, scale) - in.format->mean[c];
}

std::byte* centers_of(const LabelFormat& format, std::byte* span) {
    return span + label_parameter_count(format) * sizeof(uint16_t);
}

void put_range(const LabelFormat& format, std::byte* span, size_t p, const LabelRange& range) {
    std::memcpy(span + p * 2, &range.scale, 2);
    std::memcpy(centers_of(format, span) + p * 2, &range.center, 2);
}

LabelRange range_at(const LabelFormat& format, std::byte* span, size_t p) {
    LabelRange range;
    std::memcpy(&range.scale, span + p * 2, 2);
    std::memcpy(&range.center, centers_of(format, span) + p * 2, 2);
    return range;
}

LabelRange range_of(const LabelEncodeInput& in, size_t c) {
    float low = std::numeric_limits<float>::infinity();
    float high = -low;
    for (uint32_t t = 0; t < kSpanSlots; ++t) {
        if (!is_written(in, t)) continue;
        low = std::min(low, centred(in, t, c));
        high = std::max(high, centred(in, t, c));
    }
    if (low > high) return {};
    return label_range(low, high, in.format->channels[c].bits);
}

uint32_t code_of(float value, const LabelRange& range, uint32_t bits) {
    const double levels = (1U << bits) - 1U;
    const double scale = f16_to_f32(range.scale);
    if (!(scale > 0.0)) return 0;
    const double code =
        std::nearbyint((double{value} - double{label_minimum(range, bits)}) / scale);
    return static_cast<uint32_t>(std::clamp(code, 0.0, levels));
}

void put_code(const LabelFormat& format, std::byte* span, const LabelOp& op, uint32_t lane,
              uint32_t slot_in_span, uint32_t code) {
    std::byte* at = span + label_code_offset(format) +
                    label_dword_index(format, op.plane, slot_in_span) * 4;
    const uint32_t shift = 8 * lane + op.shift;
    const uint32_t field = ((1U << op.bits) - 1U) << shift;
    uint32_t dword = 0;
    std::memcpy(&dword, at, sizeof(dword));
    dword = (dword & ~field) | (code << shift);
    std::memcpy(at, &dword, sizeof(dword));
}

// Calls visit(op, lane, channel index, parameter index) for every channel.
template <typename Visit>
void for_each_code(const LabelFormat& format, Visit visit) {
    for (size_t i = 0; i < format.ops.size(); ++i) {
        for (uint32_t lane = 0; lane < 4; ++lane) {
            const uint16_t c = format.ops[i].code_index[lane];
            if (c != LabelOp::kNoChannel) visit(format.ops[i], lane, c, 4 * i + lane);
        }
    }
}

void put_f16(std::byte* base, size_t index, float value) {
    store_element(base, DType::f16, index, std::clamp(value, -65504.0F, 65504.0F));
}

void put_row(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* span) {
    const LabelFormat& format = *in.format;
    for_each_code(format, [&](const LabelOp& op, uint32_t lane, size_t c, size_t p) {
        const LabelRange range = range_at(format, span, p);
        const uint32_t code = code_of(centred(in, slot_in_span, c), range, op.bits);
        put_code(format, span, op, lane, slot_in_span, code);
    });
}

}  // namespace

void label_encode(const LabelEncodeInput& in, std::byte* span) {
    const LabelFormat& format = *in.format;
    std::memset(span, 0, format.span_bytes);
    if (!format.is_f16()) {
        for_each_code(format, [&](const LabelOp&, uint32_t, size_t c, size_t p) {
            const LabelRange range = range_of(in, c);
            put_range(format, span, p, range);
            float& scale_max = in.channel_scale_max[c];
            scale_max = std::max(scale_max, f16_to_f32(range.scale));
        });
    }
    for (uint32_t t = 0; t < kSpanSlots; ++t) {
        if (!is_written(in, t)) continue;
        if (format.is_f16()) {
            label_encode_open(in, t, span);
        } else {
            put_row(in, t, span);
        }
    }
}

bool label_encode_row(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* span) {
    const LabelFormat& format = *in.format;
    if (format.is_f16()) {
        label_encode_open(in, slot_in_span, span);
        return true;
    }
    bool fits = true;
    for_each_code(format, [&](const LabelOp& op, uint32_t, size_t c, size_t p) {
        const LabelRange range = range_at(format, span, p);
        const float levels = static_cast<float>((1U << op.bits) - 1U);
        const float minimum = label_minimum(range, op.bits);
        const float maximum = minimum + f16_to_f32(range.scale) * levels;
        const float value = centred(in, slot_in_span, c);
        if (value < minimum || value > maximum) fits = false;
    });
    if (fits) put_row(in, slot_in_span, span);
    return fits;
}

void label_encode_open(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* open) {
    for (size_t c = 0; c < in.format->channels.size(); ++c) {
        put_f16(open, c * kSpanSlots + slot_in_span, centred(in, slot_in_span, c));
    }
}

}  // namespace shoal::kernels::ref
