// What a store must remember and compute, in the plainest form that is fast enough for millions of
// operations: arrays by slot, attention in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/runtime/session_model.hpp"

namespace shoal::testing {

class PlainStore {
public:
    // `kept`: how rows are stored.
    PlainStore(const ModelShape& shape, uint32_t slots, DType kept)
        : shape_(&shape),
          kept_(kept),
          slots_(slots),
          stamps_(slots),
          rows_(2 * shape.layers.size(),
                std::vector<float>(size_t{slots} * shape.layers[0].kv_head_count *
                                   shape.layers[0].k_head_dim)) {}

    void stamp(uint32_t slot) { stamps_[slot] = next_stamp_++; }
    bool is_written(uint32_t slot) const { return stamps_[slot] != 0; }
    uint32_t slot_end() const {
        uint32_t end = slots_;
        while (end > 0 && stamps_[end - 1] == 0) --end;
        return end;
    }
    // As the session keeps it.
    void write(uint32_t layer, bool k, uint32_t slot, const float* row) {
        float* to = at(layer, k, slot);
        const uint32_t dim = shape_->layers[0].k_head_dim;
        std::copy_n(row, row_floats(), to);
        for (uint32_t c = 0; c < row_floats(); c += dim) keep_row(to + c, dim, kept_);
    }
    void truncate(uint32_t slot_count) {
        std::fill(stamps_.begin() + std::min(slot_count, slots_), stamps_.end(), 0);
    }
    void copy_part(uint32_t layer, bool k, const PlainStore& from) {
        rows_[2 * layer + (k ? 0 : 1)] = from.rows_[2 * layer + (k ? 0 : 1)];
    }
    void copy_order(const PlainStore& from) {
        stamps_ = from.stamps_;
        next_stamp_ = from.next_stamp_;
    }

    uint32_t row_floats() const {
        return shape_->layers[0].kv_head_count * shape_->layers[0].k_head_dim;
    }
    const float* row(uint32_t layer, bool k, uint32_t slot) const {
        return rows_[2 * layer + (k ? 0 : 1)].data() + size_t{slot} * row_floats();
    }
    // Row bytes in f16: what Session::read() gives.
    void append_bytes(uint32_t layer, bool k, uint32_t slot, std::vector<std::byte>& out) const {
        const float* from = row(layer, k, slot);
        for (uint32_t c = 0; c < row_floats(); ++c) {
            const uint16_t bits = kernels::f32_to_f16(from[c]);
            const auto* bytes = reinterpret_cast<const std::byte*>(&bits);
            out.insert(out.end(), bytes, bytes + sizeof(bits));
        }
    }

    // First and last written of the visible slots, ascending.
    std::vector<uint32_t> safety(const std::vector<uint32_t>& visible,
                                 const Config::Safety& safety) const {
        std::vector<uint32_t> order = visible;
        std::sort(order.begin(), order.end(),
                  [&](uint32_t a, uint32_t b) { return stamps_[a] < stamps_[b]; });
        std::vector<uint32_t> slots;
        for (size_t i = 0; i < order.size(); ++i) {
            if (i < safety.sinks || order.size() - i <= safety.window) slots.push_back(order[i]);
        }
        std::sort(slots.begin(), slots.end());
        return slots;
    }

    // Attention of one query head over `slots`: [v_head_dim].
    void attend(uint32_t layer, uint32_t head, const float* q, const std::vector<uint32_t>& slots,
                std::vector<double>& out) const {
        const LayerShape& s = shape_->layers[layer];
        const uint32_t dim = s.k_head_dim;
        const uint32_t offset = head / (shape_->q_head_count / s.kv_head_count) * dim;
        std::vector<double> scores;
        for (const uint32_t slot : slots) {
            const float* k = row(layer, true, slot) + offset;
            double dot = 0;
            for (uint32_t c = 0; c < dim; ++c) dot += double{q[c]} * k[c];
            scores.push_back(dot / std::sqrt(double{1} * dim));
        }
        const double best = *std::max_element(scores.begin(), scores.end());
        out.assign(dim, 0.0);
        double sum = 0;
        for (size_t i = 0; i < slots.size(); ++i) {
            const double weight = std::exp(scores[i] - best);
            const float* v = row(layer, false, slots[i]) + offset;
            sum += weight;
            for (uint32_t c = 0; c < dim; ++c) out[c] += weight * v[c];
        }
        for (double& x : out) x /= sum;
    }

private:
    float* at(uint32_t layer, bool k, uint32_t slot) {
        return rows_[2 * layer + (k ? 0 : 1)].data() + size_t{slot} * row_floats();
    }

    const ModelShape* shape_;
    DType kept_;
    uint32_t slots_;
    std::vector<uint64_t> stamps_;  // 0: never written
    std::vector<std::vector<float>> rows_;  // [2 x layer + part][slot, kv_head, head_dim]
    uint64_t next_stamp_ = 1;
};

}  // namespace shoal::testing
