#include "bench/gpu/reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "bench/gpu/report.hpp"
#include "kernels/ref/ref.hpp"
#include "shoal/status.hpp"

namespace shoal::gpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

kernels::LabelFormat make_format(uint32_t seed) {
    std::vector<uint16_t> order(kHeadDim);
    std::iota(order.begin(), order.end(), uint16_t{0});
    std::shuffle(order.begin(), order.end(), std::minstd_rand(seed + 1));
    std::vector<kernels::LabelChannel> channels;
    for (uint32_t i = 0; i < 52; ++i) {
        channels.push_back({order[i], static_cast<uint8_t>(i < 12 ? 4 : 2)});
    }
    return kernels::make_label_format(channels, std::vector<float>(channels.size(), 0.0F),
                                      kHeadDim);
}

}  // namespace

LabelModel make_label_model(uint32_t batch, float scale_max, uint32_t seed) {
    LabelModel model;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (uint32_t h = 0; h < kKvHeads; ++h) {
        model.formats.push_back(make_format(seed * kKvHeads + h));
        model.scan_heads.push_back(make_scan_head(model.formats[h]));
        SHOAL_ASSERT(model.formats[h].span_bytes == model.formats[0].span_bytes);
    }
    model.span_bytes = static_cast<uint32_t>(model.formats[0].span_bytes);
    model.parameter_count = static_cast<uint32_t>(label_parameter_count(model.formats[0]));
    const std::vector<float> scales(model.formats[0].channels.size(), scale_max);
    const float scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
    for (uint32_t request = 0; request < batch; ++request) {
        for (uint32_t head = 0; head < kQueryHeads; ++head) {
            std::vector<float> q(kHeadDim);
            for (float& value : q) value = 12.0F * normal(random);
            kernels::LabelQuery query;
            kernels::ref::label_query(
                {&model.formats[head / kQueryPerKv], q.data(), scale, scales.data()}, query);
            model.queries.push_back(std::move(query));
            model.lse.push_back(14.0F + normal(random));
        }
        for (uint32_t h = 0; h < kKvHeads; ++h) {
            const size_t first = size_t{request} * kQueryHeads + h * kQueryPerKv;
            model.scan_queries.push_back(make_scan_query(model.formats[h], model.scan_heads[h],
                                                         &model.queries[first],
                                                         &model.lse[first]));
        }
    }
    return model;
}

std::vector<ScanMask> make_scan_masks(uint32_t span_count) {
    std::vector<ScanMask> masks(span_count, {{~0ULL, ~0ULL}, {~0ULL, ~0ULL}});
    const uint32_t slot_count = span_count * kernels::kSpanSlots;
    for (uint32_t slot = 0; slot < slot_count; ++slot) {
        if (slot == 4) slot = std::max(slot, slot_count - std::min(slot_count, 65U));
        if (slot >= slot_count) break;
        const uint32_t t = slot % kernels::kSpanSlots;
        masks[slot / kernels::kSpanSlots].selectable[t / 64] &= ~(uint64_t{1} << (t % 64));
    }
    return masks;
}

void scan_reference(const LabelModel& model, uint32_t request, const std::byte* span,
                    const ScanMask& mask, kernels::Combine combine, float* scores,
                    double* head_sums) {
    std::vector<size_t> offsets(kKvHeads);
    for (uint32_t h = 0; h < kKvHeads; ++h) offsets[h] = size_t{h} * model.span_bytes;
    kernels::SpanMask span_mask;
    std::copy(mask.visible, mask.visible + 2, span_mask.visible);
    std::copy(mask.selectable, mask.selectable + 2, span_mask.selectable);
    kernels::LabelScanInput in;
    in.formats = model.formats.data();
    in.spans = span;
    in.span_stride_bytes = offsets.back() + model.span_bytes;
    in.head_offset_bytes = offsets.data();
    in.kv_head_count = kKvHeads;
    in.q_per_kv = kQueryPerKv;
    in.queries = &model.queries[size_t{request} * kQueryHeads];
    in.lse_guess = &model.lse[size_t{request} * kQueryHeads];
    in.masks = &span_mask;
    in.span_end = 1;
    in.combine = combine;
    double sums[kQueryHeads];
    kernels::LabelScanOutput out;
    out.scores = scores;
    out.head_sums = sums;
    kernels::ref::label_scan(in, out);
    for (uint32_t head = 0; head < kQueryHeads; ++head) head_sums[head] += sums[head];
}

std::string ScanError::text() const {
    return "rms " + number_text(100 * rms_share) + " %, largest " + number_text(100 * max_share) +
           " % of the scores' deviation, " + std::to_string(misplaced) + " misplaced";
}

ScanError compare_scores(const float* scores, const float* expected, size_t count,
                         kernels::Combine combine) {
    const auto logarithm = [&](float score) {
        return combine == kernels::Combine::max ? double{score} : std::log2(double{score});
    };
    ScanError error;
    double sum = 0, squares = 0, errors = 0, largest = 0;
    size_t compared = 0;
    for (size_t i = 0; i < count; ++i) {
        const bool hidden = expected[i] == -kInfinity;
        if (hidden && scores[i] == -kInfinity) continue;
        if (hidden || !std::isfinite(logarithm(scores[i]))) {
            ++error.misplaced;
            continue;
        }
        const double wanted = logarithm(expected[i]);
        const double difference = std::abs(logarithm(scores[i]) - wanted);
        sum += wanted;
        squares += wanted * wanted;
        errors += difference * difference;
        largest = std::max(largest, difference);
        ++compared;
    }
    if (compared == 0) return error;
    const double n = static_cast<double>(compared);
    const double deviation = std::sqrt(std::max(squares / n - sum / n * (sum / n), 1e-12));
    error.rms_share = std::sqrt(errors / n) / deviation;
    error.max_share = largest / deviation;
    return error;
}

Selection select_reference(const float* scores, uint32_t slot_count, uint32_t k) {
    std::vector<uint32_t> slots(k);
    kernels::TopkInput in;
    in.scores = scores;
    in.slot_count = slot_count;
    in.k = k;
    kernels::TopkOutput out;
    out.slots = slots.data();
    kernels::ref::topk(in, out, nullptr);
    Selection selection;
    selection.slots.assign(k, -1);
    std::copy_n(slots.begin(), out.count, selection.slots.begin());
    selection.threshold = out.threshold;
    selection.count = out.count;
    return selection;
}

std::vector<float> make_scores(uint32_t count, uint32_t distinct, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(-12.0F, 3.0F);
    std::vector<float> values(std::max(distinct, 1U));
    for (float& value : values) value = std::exp2(normal(random));
    std::vector<float> scores(count);
    for (uint32_t i = 0; i < count; ++i) {
        scores[i] = distinct == 0 ? std::exp2(normal(random)) : values[random() % distinct];
        if (i < 4 || i + 65 >= count || random() % 64 == 0) scores[i] = -kInfinity;
    }
    return scores;
}

void attend_reference(const std::vector<std::byte*>& pieces, const float* q, float scale,
                      float* out, float* lse) {
    kernels::AttendInput in;
    in.kv.format.k_dtype = in.kv.format.v_dtype = DType::bf16;
    in.kv.format.kv_head_count = kKvHeads;
    in.kv.format.k_head_dim = in.kv.format.v_head_dim = kHeadDim;
    in.kv.format.v_offset_bytes = kRowBytes / 2;
    in.kv.format.row_stride_bytes = kRowBytes;
    in.kv.format.piece_stride_bytes = kPieceBytes;
    in.kv.blocks = pieces.data();
    in.q = q;
    in.q_head_stride = kHeadDim;
    in.q_per_kv = kQueryPerKv;
    in.slots = {nullptr, 0, static_cast<uint32_t>(pieces.size())};
    in.scale = scale;
    const uint32_t parts = pieces.empty() ? 0 : 1;
    std::vector<float> state(kernels::attend_partial_floats(kQueryHeads, kHeadDim));
    if (parts != 0) {
        kernels::ref::attend_part(
            in, 0, in.slots.count,
            kernels::attend_partial_at(state.data(), 0, kQueryHeads, kHeadDim));
    }
    kernels::ref::merge({state.data(), parts, kQueryHeads, kHeadDim}, {out, kHeadDim, lse});
}

std::vector<float> make_queries(uint32_t batch, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> q(size_t{batch} * kQueryHeads * kHeadDim);
    for (float& value : q) value = 2.0F * normal(random);
    return q;
}

ResolveModel::ResolveModel(uint32_t token_count, uint32_t hot_slot_count, uint32_t grace)
    : table_(token_count, -1), owner_(hot_slot_count, -1), stamp_(hot_slot_count, 0),
      grace_(grace) {}

uint32_t ResolveModel::victim() {
    const auto count = static_cast<uint32_t>(owner_.size());
    for (;; ++scanned_) {
        SHOAL_ASSERT(scanned_ < 2 * count);
        const uint32_t slot = (start_ + scanned_) % count;
        const bool first_lap = scanned_ < count;
        const bool idle = stamp_[slot] == 0 || step_ - stamp_[slot] > grace_;
        if (first_lap ? idle : stamp_[slot] != step_) {
            stamp_[slot] = step_;
            hand_ = (slot + 1) % count;
            ++scanned_;
            return slot;
        }
    }
}

ResolveModel::Misses ResolveModel::step(const std::vector<int32_t>& ids,
                                        std::vector<int32_t>& slots) {
    ++step_;
    start_ = hand_;
    scanned_ = 0;
    slots.assign(ids.size(), -1);
    for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] >= 0) slots[i] = table_[ids[i]];
        if (slots[i] >= 0) stamp_[slots[i]] = step_;
    }
    Misses misses;
    for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] < 0 || slots[i] >= 0) continue;
        const uint32_t slot = victim();
        if (owner_[slot] >= 0) table_[owner_[slot]] = -1;
        owner_[slot] = ids[i];
        table_[ids[i]] = slots[i] = static_cast<int32_t>(slot);
        misses.from.push_back(static_cast<uint32_t>(ids[i]));
        misses.to.push_back(slot);
    }
    return misses;
}

double relative_error(const float* values, const float* expected, size_t count) {
    double errors = 0, squares = 0;
    for (size_t i = 0; i < count; ++i) {
        const double difference = double{values[i]} - double{expected[i]};
        errors += difference * difference;
        squares += double{expected[i]} * double{expected[i]};
    }
    if (std::isnan(errors)) return std::numeric_limits<double>::infinity();
    return std::sqrt(errors / std::max(squares, 1e-30));
}

}  // namespace shoal::gpu
