// Packing of label channels into planes of dwords, and everything about a span's bytes that
// encode, score and decode must agree on.
//
// A plane gives a token 4 bytes. 8-bit channels take bytes; 4-bit channels take the same nibble of
// four bytes, so that one shift and one mask bring four codes into four bytes; 2-bit channels
// take what is left, whole nibble rows first. 64 bits are 2 planes whatever the mixture.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/convert.hpp"
#include "kernels/label.hpp"
#include "shoal/status.hpp"

namespace shoal::kernels {
namespace {

// One nibble of each byte of a plane: four 4-bit codes, or eight 2-bit codes.
struct NibbleRow {
    uint32_t plane = 0;
    uint32_t shift = 0;
    uint32_t lane_first = 0;  // lanes below are taken
};

uint32_t code_max(uint32_t bits) { return (1U << bits) - 1U; }

// How the codes of an op get from their place in the dword to the low bits of their bytes.
void set_scoring(LabelOp& op) {
    const uint32_t up = op.bits == 2 ? 2 : 0;
    op.factor = 1U << up;
    op.left = op.shift < up ? up : 0;
    op.right = op.shift < up ? 0 : op.shift - up;
    for (uint32_t lane = 0; lane < 4; ++lane) {
        if (op.code_index[lane] == LabelOp::kNoChannel) continue;
        op.mask |= (code_max(op.bits) << up) << (8 * lane);
    }
    // Output bit i of a byte is row 7 - i of the matrix.
    for (uint32_t i = 0; i < op.bits; ++i) {
        op.extract |= uint64_t{1} << (8 * (7 - (i + up)) + op.shift + i);
    }
}

class Packer {
public:
    explicit Packer(const std::vector<LabelChannel>& channels) : channels_(channels) {
        uint32_t bits = 0;
        for (const LabelChannel& channel : channels) bits += channel.bits;
        plane_count_ = (bits + 31) / 32;
        for (uint32_t plane = 0; plane < plane_count_; ++plane) {
            for (const uint32_t shift : {0U, 4U}) rows_.push_back({plane, shift, 0});
        }
    }
    uint32_t plane_count() const { return plane_count_; }

    std::vector<LabelOp> pack() {
        std::vector<LabelOp> bytes = pack_bytes(with_bits(8));
        std::vector<LabelOp> nibbles = pack_nibbles(with_bits(4));
        std::vector<LabelOp> ops = pack_pairs(with_bits(2));
        ops.insert(ops.end(), nibbles.begin(), nibbles.end());
        ops.insert(ops.end(), bytes.begin(), bytes.end());
        return ops;
    }

private:
    std::vector<uint16_t> with_bits(uint32_t bits) const {
        std::vector<uint16_t> found;
        for (size_t i = 0; i < channels_.size(); ++i) {
            if (channels_[i].bits == bits) found.push_back(static_cast<uint16_t>(i));
        }
        return found;
    }
    // Takes up to `lane_count` channels from `queue` (from `next` on) into one op.
    static LabelOp make_op(const NibbleRow& row, uint32_t shift, uint32_t bits,
                           const std::vector<uint16_t>& queue, size_t& next) {
        LabelOp op;
        op.plane = row.plane;
        op.dword = row.plane * kLabelBlockSlots;
        op.shift = shift;
        op.bits = bits;
        for (uint32_t lane = row.lane_first; lane < 4 && next < queue.size(); ++lane) {
            op.code_index[lane] = queue[next++];
        }
        set_scoring(op);
        return op;
    }
    std::vector<LabelOp> pack_bytes(const std::vector<uint16_t>& queue) {
        std::vector<LabelOp> ops;
        for (size_t next = 0; next < queue.size();) {
            const size_t row = 2 * (next / 4);
            const size_t first = next;
            ops.push_back(make_op(rows_[row], 0, 8, queue, next));
            rows_[row].lane_first = rows_[row + 1].lane_first = static_cast<uint32_t>(next - first);
        }
        return ops;
    }
    std::vector<LabelOp> pack_nibbles(const std::vector<uint16_t>& queue) {
        std::vector<LabelOp> ops;
        size_t next = 0;
        for (NibbleRow& row : rows_) {
            if (next == queue.size()) break;
            if (row.lane_first == 4) continue;
            const size_t first = next;
            ops.push_back(make_op(row, row.shift, 4, queue, next));
            row.lane_first += static_cast<uint32_t>(next - first);
        }
        return ops;
    }
    std::vector<LabelOp> pack_pairs(const std::vector<uint16_t>& queue) {
        std::vector<LabelOp> ops;
        size_t next = 0;
        // Whole rows first: four codes an op. The total fits: plane_count_ counts the bits.
        for (uint32_t lane_first = 0; lane_first < 4; ++lane_first) {
            for (const NibbleRow& row : rows_) {
                if (row.lane_first != lane_first) continue;
                for (const uint32_t half : {0U, 2U}) {
                    if (next < queue.size()) {
                        ops.push_back(make_op(row, row.shift + half, 2, queue, next));
                    }
                }
            }
        }
        SHOAL_ASSERT(next == queue.size());
        return ops;
    }

    const std::vector<LabelChannel>& channels_;
    uint32_t plane_count_ = 0;
    std::vector<NibbleRow> rows_;
};

// A 16-bit sum takes two products of a weight (up to 127) and a code an op: codes up to 128 in
// all. 8-bit channels have smaller weights, and a sum of their own each.
void set_sum_ends(std::vector<LabelOp>& ops) {
    const auto largest = [&](size_t i) { return code_max(ops[i].bits) * ops[i].factor; };
    for (size_t begin = 0; begin < ops.size(); ++begin) {
        uint32_t room = 128;
        size_t end = begin;
        for (; end < ops.size() && largest(end) <= room; ++end) room -= largest(end);
        ops[begin].sum_end = static_cast<uint32_t>(std::max(end, begin + 1));
    }
}

void set_tables(LabelFormat& format) {
    for (const size_t kind : {0U, 1U}) {
        const size_t begin = kind == 0 ? 0 : format.narrow_op_count;
        const size_t end = kind == 0 ? format.narrow_op_count : format.ops.size();
        if (begin == end) continue;
        LabelCodeTable& table = format.tables[kind];
        table.factor.resize(label_parameter_count(format));
        table.half.resize(label_parameter_count(format));
        for (size_t i = begin; i < end; ++i) {
            const LabelOp& op = format.ops[i];
            for (size_t lane = 0; lane < 4; ++lane) {
                if (op.code_index[lane] == LabelOp::kNoChannel) continue;
                const auto factor = static_cast<float>(op.factor);
                table.factor[4 * i + lane] = factor;
                table.half[4 * i + lane] = 0.5F * factor * static_cast<float>(code_max(op.bits));
            }
        }
    }
}

size_t round_up_64(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t span_bytes_of(uint32_t plane_count, size_t op_count) {
    const size_t parameter_count = 2 * ((op_count + 3) / 4 * 16);
    return round_up_64(plane_count * size_t{kSpanSlots} * 4 + parameter_count * sizeof(uint16_t));
}

float load_f16(const std::byte* base, size_t index) {
    return load_element(base, DType::f16, index);
}

// The next larger f16 of a number that is not negative; the largest stays.
uint16_t f16_above(uint16_t half) { return half < 0x7bff ? static_cast<uint16_t>(half + 1) : half; }

constexpr float kF16Max = 65504.0F;

}  // namespace

LabelFormat make_label_format(std::vector<LabelChannel> channels, std::vector<float> mean,
                              uint32_t k_head_dim) {
    SHOAL_ASSERT(!channels.empty() && channels.size() <= k_head_dim);
    SHOAL_ASSERT(mean.size() == channels.size());
    const bool is_f16 = channels.front().bits == 16;
    for (const LabelChannel& channel : channels) {
        const uint32_t bits = channel.bits;
        SHOAL_ASSERT(is_f16 ? bits == 16 : bits == 2 || bits == 4 || bits == 8);
        SHOAL_ASSERT(channel.channel < k_head_dim);
    }
    LabelFormat format;
    format.channels = std::move(channels);
    format.mean = std::move(mean);
    format.k_head_dim = k_head_dim;
    if (is_f16) {
        format.span_bytes = open_span_bytes(format);
        return format;
    }
    Packer packer(format.channels);
    format.plane_count = packer.plane_count();
    format.ops = packer.pack();
    set_sum_ends(format.ops);
    format.narrow_op_count = static_cast<uint32_t>(std::count_if(
        format.ops.begin(), format.ops.end(), [](const LabelOp& op) { return op.bits != 8; }));
    set_tables(format);
    format.span_bytes = span_bytes_of(format.plane_count, format.ops.size());
    return format;
}

size_t label_span_bytes_max(uint32_t row_bits, uint32_t channel_bits) {
    const uint32_t smallest = channel_bits == 0 ? 2 : channel_bits;
    if (smallest == 16) return round_up_64(row_bits / 16 * kSpanSlots * sizeof(uint16_t));
    size_t bytes_max = 0;
    const uint32_t wide_max = channel_bits == 0 ? row_bits / 4 : 0;
    for (uint32_t wide = 0; wide <= wide_max; ++wide) {
        std::vector<LabelChannel> channels(wide, {.channel = 0, .bits = 4});
        channels.resize(wide + (row_bits - 4 * wide) / smallest,
                        {.channel = 0, .bits = static_cast<uint8_t>(smallest)});
        Packer packer(channels);
        bytes_max = std::max(bytes_max, span_bytes_of(packer.plane_count(), packer.pack().size()));
    }
    return bytes_max;
}

size_t open_span_bytes(const LabelFormat& format) {
    return round_up_64(format.channels.size() * kSpanSlots * sizeof(uint16_t));
}

LabelRange label_range(float low, float high, uint32_t bits) {
    const float levels = static_cast<float>(code_max(bits));
    low = std::clamp(low, -kF16Max, kF16Max);
    high = std::clamp(high, -kF16Max, kF16Max);
    LabelRange range;
    range.center = f32_to_f16(0.5F * low + 0.5F * high);
    const float center = f16_to_f32(range.center);
    const float half = std::max(high - center, center - low);
    range.scale = f32_to_f16(std::min(2.0F * half / levels, kF16Max));
    // Levels times an f16 is exact in f32.
    if (f16_to_f32(range.scale) * levels < 2.0F * half) range.scale = f16_above(range.scale);
    return range;
}

float label_minimum(const LabelRange& range, uint32_t bits) {
    const float half = 0.5F * static_cast<float>(code_max(bits)) * f16_to_f32(range.scale);
    return f16_to_f32(range.center) - half;
}

void label_decode(const LabelFormat& format, const std::byte* span, uint32_t slot_in_span,
                  float* values) {
    if (format.is_f16()) return label_decode_open(format, span, slot_in_span, values);
    const std::byte* centers = span + label_parameter_count(format) * sizeof(uint16_t);
    const std::byte* codes = span + label_code_offset(format);
    for (size_t i = 0; i < format.ops.size(); ++i) {
        const LabelOp& op = format.ops[i];
        uint32_t dword = 0;
        std::memcpy(&dword, codes + label_dword_index(format, op.plane, slot_in_span) * 4, 4);
        for (size_t lane = 0; lane < 4; ++lane) {
            if (op.code_index[lane] == LabelOp::kNoChannel) continue;
            const uint32_t code = (dword >> (8 * lane + op.shift)) & code_max(op.bits);
            const float from_center =
                static_cast<float>(code) - 0.5F * static_cast<float>(code_max(op.bits));
            const size_t at = 4 * i + lane;
            values[op.code_index[lane]] =
                load_f16(centers, at) + load_f16(span, at) * from_center;
        }
    }
}

void label_decode_open(const LabelFormat& format, const std::byte* open, uint32_t slot_in_span,
                       float* values) {
    for (size_t c = 0; c < format.channels.size(); ++c) {
        values[c] = load_f16(open, c * kSpanSlots + slot_in_span);
    }
}

}  // namespace shoal::kernels
