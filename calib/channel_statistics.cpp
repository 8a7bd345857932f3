#include "calib/channel_statistics.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/q8.hpp"
#include "shoal/status.hpp"

namespace shoal::calib {
namespace {

constexpr uint32_t kHeadDimMax = 256;
// Rows that are added up in f32 before they go to the sums in double. Twice as many lanes as
// double throughout; the rounding of so few additions is 1e-6 of a sum at most.
constexpr uint32_t kTileRows = 16;

struct Tile {
    float sum[kHeadDimMax];
    float square[kHeadDimMax];
};

// One row as f32: in place, or converted into `buffer`.
const float* load_row(const ConstTensor& tensor, uint32_t token, uint32_t head, float* buffer) {
    const std::byte* row =
        tensor.data + token * tensor.n_stride_bytes + head * tensor.head_stride_bytes;
    if (tensor.dtype == DType::f32) {
        if (reinterpret_cast<uintptr_t>(row) % alignof(float) == 0) {
            return reinterpret_cast<const float*>(row);
        }
        std::memcpy(buffer, row, tensor.head_dim * sizeof(float));
        return buffer;
    }
    if (tensor.dtype == DType::q8) {
        const float scale =
            kernels::bf16_to_f32(kernels::tensor_scale(row, tensor.dtype, tensor.head_dim));
        for (uint32_t c = 0; c < tensor.head_dim; ++c) {
            buffer[c] = kernels::load_element(row, tensor.dtype, c, scale);
        }
        return buffer;
    }
    uint16_t bits[kHeadDimMax];
    std::memcpy(bits, row, tensor.head_dim * sizeof(uint16_t));
    if (tensor.dtype == DType::f16) {
        for (uint32_t c = 0; c < tensor.head_dim; ++c) buffer[c] = kernels::f16_to_f32(bits[c]);
    } else {
        for (uint32_t c = 0; c < tensor.head_dim; ++c) buffer[c] = kernels::bf16_to_f32(bits[c]);
    }
    return buffer;
}

// Exact where it matters: a key close to the shift loses nothing in the subtraction.
void add_key(const float* __restrict row, const float* __restrict shift, uint32_t head_dim,
             Tile& tile) {
    for (uint32_t c = 0; c < head_dim; ++c) {
        const float d = row[c] - shift[c];
        tile.sum[c] += d;
        tile.square[c] += d * d;
    }
}

void add_query(const float* __restrict row, uint32_t head_dim, Tile& tile) {
    for (uint32_t c = 0; c < head_dim; ++c) tile.square[c] += row[c] * row[c];
}

void flush(float* __restrict from, uint32_t head_dim, double* __restrict to) {
    for (uint32_t c = 0; c < head_dim; ++c) to[c] += from[c];
    std::fill_n(from, head_dim, 0.0F);
}

size_t channel_count(const LayerShape& layer) {
    return layer.kind == LayerKind::full ? size_t{layer.kv_head_count} * layer.k_head_dim : 0;
}

}  // namespace

ChannelStatistics::ChannelStatistics(const ModelShape& shape)
    : q_head_count_(shape.q_head_count), layers_(shape.layers.size()) {
    for (size_t l = 0; l < layers_.size(); ++l) {
        const size_t channels = channel_count(shape.layers[l]);
        if (channels == 0) continue;
        Layer& layer = layers_[l];
        layer.kv_head_count = shape.layers[l].kv_head_count;
        layer.k_head_dim = shape.layers[l].k_head_dim;
        SHOAL_ASSERT(layer.k_head_dim <= kHeadDimMax);
        SHOAL_ASSERT(q_head_count_ != 0 && q_head_count_ % layer.kv_head_count == 0);
        layer.shift.resize(channels);
        layer.key_sum.resize(channels);
        layer.key_square.resize(channels);
        layer.query_square.resize(channels);
    }
}

size_t ChannelStatistics::bytes(const ModelShape& shape) {
    size_t channels = 0;
    for (const LayerShape& layer : shape.layers) channels += channel_count(layer);
    return channels * (sizeof(float) + 3 * sizeof(double)) + shape.layers.size() * sizeof(Layer);
}

void ChannelStatistics::observe_keys(LayerId layer_id, const ConstTensor& k) {
    Layer& layer = layers_[layer_id.index];
    if (layer.kv_head_count == 0 || k.n == 0) return;
    SHOAL_ASSERT(k.heads == layer.kv_head_count && k.head_dim == layer.k_head_dim);
    float buffer[kHeadDimMax];
    if (layer.key_tokens == 0) {
        for (uint32_t h = 0; h < k.heads; ++h) {
            std::copy_n(load_row(k, 0, h, buffer), k.head_dim,
                        layer.shift.data() + size_t{h} * k.head_dim);
        }
    }
    Tile tile = {};
    for (uint32_t begin = 0; begin < k.n; begin += kTileRows) {
        const uint32_t end = std::min(begin + kTileRows, k.n);
        for (uint32_t h = 0; h < k.heads; ++h) {
            const size_t base = size_t{h} * k.head_dim;
            const float* shift = layer.shift.data() + base;
            for (uint32_t t = begin; t < end; ++t) {
                add_key(load_row(k, t, h, buffer), shift, k.head_dim, tile);
            }
            flush(tile.sum, k.head_dim, layer.key_sum.data() + base);
            flush(tile.square, k.head_dim, layer.key_square.data() + base);
        }
    }
    layer.key_tokens += k.n;
}

void ChannelStatistics::observe_queries(LayerId layer_id, const ConstTensor& q) {
    Layer& layer = layers_[layer_id.index];
    if (layer.kv_head_count == 0 || q.n == 0) return;
    SHOAL_ASSERT(q.heads == q_head_count_ && q.head_dim == layer.k_head_dim);
    const uint32_t q_per_kv = q_head_count_ / layer.kv_head_count;
    float buffer[kHeadDimMax];
    Tile tile = {};
    for (uint32_t begin = 0; begin < q.n; begin += kTileRows) {
        const uint32_t end = std::min(begin + kTileRows, q.n);
        for (uint32_t h = 0; h < q.heads; ++h) {
            for (uint32_t t = begin; t < end; ++t) {
                add_query(load_row(q, t, h, buffer), q.head_dim, tile);
            }
            flush(tile.square, q.head_dim,
                  layer.query_square.data() + size_t{h / q_per_kv} * q.head_dim);
        }
    }
    layer.query_tokens += q.n;
}

void ChannelStatistics::merge(const ChannelStatistics& other) {
    SHOAL_ASSERT(other.q_head_count_ == q_head_count_ && other.layers_.size() == layers_.size());
    for (size_t l = 0; l < layers_.size(); ++l) {
        Layer& to = layers_[l];
        const Layer& from = other.layers_[l];
        SHOAL_ASSERT(to.kv_head_count == from.kv_head_count && to.k_head_dim == from.k_head_dim);
        if (to.key_tokens == 0) to.shift = from.shift;
        const double count = static_cast<double>(from.key_tokens);
        for (size_t c = 0; c < to.key_sum.size(); ++c) {
            const double moved = double{from.shift[c]} - double{to.shift[c]};
            if (from.key_tokens != 0) {
                to.key_sum[c] += from.key_sum[c] + count * moved;
                to.key_square[c] +=
                    from.key_square[c] + 2 * moved * from.key_sum[c] + count * moved * moved;
            }
            to.query_square[c] += from.query_square[c];
        }
        to.key_tokens += from.key_tokens;
        to.query_tokens += from.query_tokens;
    }
}

void ChannelStatistics::reset() {
    for (Layer& layer : layers_) {
        layer.key_tokens = 0;
        layer.query_tokens = 0;
        std::ranges::fill(layer.key_sum, 0.0);
        std::ranges::fill(layer.key_square, 0.0);
        std::ranges::fill(layer.query_square, 0.0);
    }
}

uint64_t ChannelStatistics::key_token_count(LayerId layer) const {
    return layers_[layer.index].key_tokens;
}

uint64_t ChannelStatistics::query_token_count(LayerId layer) const {
    return layers_[layer.index].query_tokens;
}

uint64_t ChannelStatistics::token_count() const {
    uint64_t least = UINT64_MAX;
    for (const Layer& layer : layers_) {
        if (layer.kv_head_count == 0) continue;
        least = std::min({least, layer.key_tokens, layer.query_tokens});
    }
    return least == UINT64_MAX ? 0 : least;
}

ChannelMoments ChannelStatistics::moments(LayerId layer_id, uint32_t kv_head) const {
    const Layer& layer = layers_[layer_id.index];
    SHOAL_ASSERT(kv_head < layer.kv_head_count);
    ChannelMoments moments;
    moments.key_mean.resize(layer.k_head_dim);
    moments.key_variance.resize(layer.k_head_dim);
    moments.query_square.resize(layer.k_head_dim);
    const double keys = static_cast<double>(layer.key_tokens);
    const double queries = static_cast<double>(layer.query_tokens);
    for (uint32_t c = 0; c < layer.k_head_dim; ++c) {
        const size_t i = size_t{kv_head} * layer.k_head_dim + c;
        if (layer.key_tokens != 0) {
            const double mean = layer.key_sum[i] / keys;
            const double variance = layer.key_square[i] / keys - mean * mean;
            moments.key_mean[c] = static_cast<float>(layer.shift[i] + mean);
            moments.key_variance[c] = static_cast<float>(std::max(0.0, variance));
        }
        if (layer.query_tokens != 0) {
            moments.query_square[c] = static_cast<float>(layer.query_square[i] / queries);
        }
    }
    return moments;
}

}  // namespace shoal::calib
