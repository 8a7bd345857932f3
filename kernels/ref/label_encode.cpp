// label_encode: range and code every channel of a span, slot by slot.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/convert.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

bool is_written(const LabelEncodeInput& in, uint32_t slot_in_span) {
    return ((in.written[slot_in_span / 64] >> (slot_in_span % 64)) & 1U) != 0;
}

// The centred key of channel `c`: rounded to f32, so that every backend ranges the same values.
float centred(const LabelEncodeInput& in, uint32_t slot_in_span, size_t c) {
    const std::byte* row = in.kv.k_row(in.span * kSpanSlots + slot_in_span, in.kv_head);
    const uint16_t channel = in.format->channels[c].channel;
    return load_element(row, in.kv.format.k_dtype, channel) - in.format->mean[c];
}

struct Parameters {
    std::byte* scales = nullptr;
    std::byte* minima = nullptr;
};

Parameters parameters(const LabelFormat& format, std::byte* span) {
    std::byte* scales = span + format.plane_count * size_t{kSpanSlots} * 4;
    return {scales, scales + label_parameter_count(format) * sizeof(uint16_t)};
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

uint32_t code_of(float value, float minimum, float scale, uint32_t bits) {
    const double levels = (1U << bits) - 1U;
    if (!(scale > 0.0F)) return 0;
    const double code = std::nearbyint((double{value} - double{minimum}) / double{scale});
    return static_cast<uint32_t>(std::clamp(code, 0.0, levels));
}

void put_code(std::byte* span, const LabelOp& op, uint32_t lane, uint32_t bits,
              uint32_t slot_in_span, uint32_t code) {
    std::byte* at = span + (size_t{op.plane} * kSpanSlots + slot_in_span) * 4;
    const uint32_t shift = 8 * lane + op.shift;
    const uint32_t field = ((1U << bits) - 1U) << shift;
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
    const Parameters at = parameters(*in.format, span);
    for_each_code(*in.format, [&](const LabelOp& op, uint32_t lane, size_t c, size_t p) {
        const uint32_t bits = in.format->channels[c].bits;
        const uint32_t code =
            code_of(centred(in, slot_in_span, c), load_element(at.minima, DType::f16, p),
                    load_element(at.scales, DType::f16, p), bits);
        put_code(span, op, lane, bits, slot_in_span, code);
    });
}

}  // namespace

void label_encode(const LabelEncodeInput& in, std::byte* span) {
    const LabelFormat& format = *in.format;
    std::memset(span, 0, format.span_bytes);
    if (!format.is_f16()) {
        const Parameters at = parameters(format, span);
        for_each_code(format, [&](const LabelOp&, uint32_t, size_t c, size_t p) {
            const LabelRange range = range_of(in, c);
            std::memcpy(at.scales + p * 2, &range.scale, 2);
            std::memcpy(at.minima + p * 2, &range.minimum, 2);
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
    const Parameters at = parameters(format, span);
    bool fits = true;
    for_each_code(format, [&](const LabelOp&, uint32_t, size_t c, size_t p) {
        const float levels = static_cast<float>((1U << format.channels[c].bits) - 1U);
        const float minimum = load_element(at.minima, DType::f16, p);
        const float maximum = minimum + load_element(at.scales, DType::f16, p) * levels;
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
