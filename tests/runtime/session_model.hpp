// What a session must remember and compute in the plainest form: rows in maps, attention in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/q8.hpp"
#include "shoal/config.hpp"
#include "shoal/types.hpp"

namespace shoal::testing {

// `value` as a row of this dtype keeps it.
inline float stored(float value, DType dtype) {
    std::byte bytes[4];
    kernels::store_element(bytes, dtype, 0, value);
    return kernels::load_element(bytes, dtype, 0);
}

// A row as it is kept in this dtype.
inline void keep_row(float* row, uint32_t head_dim, DType dtype) {
    std::vector<std::byte> codes(head_dim);
    const float scale = dtype == DType::q8 ? kernels::bf16_to_f32(kernels::q8_store_row(
                                                 row, head_dim, codes.data()))
                                           : 1.0F;
    for (uint32_t c = 0; c < head_dim; ++c) {
        row[c] = dtype == DType::q8 ? kernels::load_element(codes.data(), dtype, c, scale)
                                    : stored(row[c], dtype);
    }
}

class StoreModel {
public:
    // `kept`: how rows are stored.
    StoreModel(const ModelShape& shape, const RowFormat& kept)
        : shape_(&shape), kept_(kept), k_(shape.layers.size()), v_(shape.layers.size()) {}

    void stamp(uint32_t slot) { stamps_[slot] = next_stamp_++; }
    // `row`: [kv_head_count, head_dim] as given to the session.
    void write_k(uint32_t layer, uint32_t slot, const float* row) {
        k_[layer][slot] = keep(row, layer, shape_->layers[layer].k_head_dim, kept_.k);
    }
    void write_v(uint32_t layer, uint32_t slot, const float* row) {
        v_[layer][slot] = keep(row, layer, shape_->layers[layer].v_head_dim, kept_.v);
    }
    void truncate(uint32_t slot_count) {
        stamps_.erase(stamps_.lower_bound(slot_count), stamps_.end());
        for (auto& rows : k_) rows.erase(rows.lower_bound(slot_count), rows.end());
        for (auto& rows : v_) rows.erase(rows.lower_bound(slot_count), rows.end());
    }

    uint32_t slot_end() const { return stamps_.empty() ? 0 : stamps_.rbegin()->first + 1; }
    // K and V in every layer that keeps any.
    bool is_whole(uint32_t slot) const {
        if (!stamps_.contains(slot)) return false;
        for (uint32_t l = 0; l < shape_->layers.size(); ++l) {
            if (shape_->layers[l].kind == LayerKind::none) continue;
            if (!k_[l].contains(slot) || !v_[l].contains(slot)) return false;
        }
        return true;
    }

    // First and last written of the visible slots, ascending.
    std::vector<uint32_t> safety(const std::vector<uint32_t>& visible,
                                 const Config::Safety& safety) const {
        std::vector<uint32_t> order = visible;
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
            return stamps_.at(a) < stamps_.at(b);
        });
        std::vector<uint32_t> slots;
        for (size_t i = 0; i < order.size(); ++i) {
            if (i < safety.sinks || order.size() - i <= safety.window) slots.push_back(order[i]);
        }
        std::sort(slots.begin(), slots.end());
        return slots;
    }

    // Row bytes in the engine's dtype, zeros when never written: what Session::read() gives.
    std::vector<std::byte> bytes(uint32_t layer, bool k, uint32_t slot) const {
        const LayerShape& s = shape_->layers[layer];
        const DType dtype = k ? shape_->rows.k : shape_->rows.v;
        const uint32_t count = s.kv_head_count * (k ? s.k_head_dim : s.v_head_dim);
        std::vector<std::byte> out(count * dtype_bytes(dtype));
        const auto& rows = k ? k_[layer] : v_[layer];
        const auto row = rows.find(slot);
        if (row == rows.end()) return out;
        for (uint32_t i = 0; i < count; ++i) {
            kernels::store_element(out.data(), dtype, i, row->second[i]);
        }
        return out;
    }

    struct Attended {
        std::vector<double> out;        // [v_head_dim]
        std::vector<double> magnitude;  // the same of |v|: rounding is relative to what is added
        double lse = 0;
    };
    // q: [k_head_dim] of one query head.
    Attended attend(uint32_t layer, uint32_t head, const float* q,
                    const std::vector<uint32_t>& slots) const {
        const LayerShape& s = shape_->layers[layer];
        const uint32_t kv_head = head / (shape_->q_head_count / s.kv_head_count);
        const double scale = shape_->attention_scale != 0.0F ? double{shape_->attention_scale}
                                                             : 1.0 / std::sqrt(s.k_head_dim);
        std::vector<double> scores;
        double best = -1e300;
        for (const uint32_t slot : slots) {
            const float* k = k_[layer].at(slot).data() + size_t{kv_head} * s.k_head_dim;
            double dot = 0;
            for (uint32_t c = 0; c < s.k_head_dim; ++c) dot += double{q[c]} * k[c];
            scores.push_back(dot * scale);
            best = std::max(best, scores.back());
        }
        double sum = 0;
        Attended result;
        result.out.resize(s.v_head_dim);
        result.magnitude.resize(s.v_head_dim);
        for (size_t i = 0; i < slots.size(); ++i) {
            const double weight = std::exp(scores[i] - best);
            const float* v = v_[layer].at(slots[i]).data() + size_t{kv_head} * s.v_head_dim;
            sum += weight;
            for (uint32_t c = 0; c < s.v_head_dim; ++c) {
                result.out[c] += weight * v[c];
                result.magnitude[c] += weight * std::abs(double{v[c]});
            }
        }
        for (double& x : result.out) x /= sum;
        for (double& x : result.magnitude) x /= sum;
        result.lse = best + std::log(sum);
        return result;
    }

private:
    using Rows = std::map<uint32_t, std::vector<float>>;
    std::vector<float> keep(const float* row, uint32_t layer, uint32_t dim, DType dtype) const {
        const uint32_t heads = shape_->layers[layer].kv_head_count;
        std::vector<float> kept(row, row + heads * dim);
        for (uint32_t h = 0; h < heads; ++h) keep_row(kept.data() + h * dim, dim, dtype);
        return kept;
    }

    const ModelShape* shape_;
    RowFormat kept_;
    std::vector<Rows> k_;  // [layer], as stored
    std::vector<Rows> v_;
    std::map<uint32_t, uint64_t> stamps_;
    uint64_t next_stamp_ = 1;
};

}  // namespace shoal::testing
