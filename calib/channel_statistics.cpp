#include "calib/channel_statistics.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/convert.hpp"
#include "shoal/status.hpp"

namespace shoal::calib {
namespace {

constexpr uint32_t kHeadDimMax = 256;
// Rows added up before the sums are touched: the loads and stores of the sums cost as much as
// the arithmetic of two rows.
constexpr uint32_t kTileRows = 4;

struct Tile {
    float rows[kTileRows][kHeadDimMax];
};

void load_row(const std::byte* row, DType dtype, uint32_t head_dim, float* out) {
    if (dtype == DType::f32) {
        std::memcpy(out, row, head_dim * sizeof(float));
        return;
    }
    uint16_t bits[kHeadDimMax];
    std::memcpy(bits, row, head_dim * sizeof(uint16_t));
    if (dtype == DType::f16) {
        for (uint32_t c = 0; c < head_dim; ++c) out[c] = kernels::f16_to_f32(bits[c]);
    } else {
        for (uint32_t c = 0; c < head_dim; ++c) out[c] = kernels::bf16_to_f32(bits[c]);
    }
}

const std::byte* row_of(const ConstTensor& tensor, uint32_t token, uint32_t head) {
    return tensor.data + token * tensor.n_stride_bytes + head * tensor.head_stride_bytes;
}

// Tokens [token, token + kTileRows) of one head; rows past the end are `filler` (null: zeros).
void load_tile(const ConstTensor& tensor, uint32_t token, uint32_t head, const float* filler,
               Tile& tile) {
    for (uint32_t r = 0; r < kTileRows; ++r) {
        float* row = tile.rows[r];
        if (token + r < tensor.n) {
            load_row(row_of(tensor, token + r, head), tensor.dtype, tensor.head_dim, row);
        } else if (filler != nullptr) {
            std::copy_n(filler, tensor.head_dim, row);
        } else {
            std::fill_n(row, tensor.head_dim, 0.0F);
        }
    }
}

void add_deviations(const Tile& tile, uint32_t head_dim, const float* __restrict shift,
                    double* __restrict sum, double* __restrict square) {
    for (uint32_t c = 0; c < head_dim; ++c) {
        const double center = shift[c];
        const double d0 = tile.rows[0][c] - center;
        const double d1 = tile.rows[1][c] - center;
        const double d2 = tile.rows[2][c] - center;
        const double d3 = tile.rows[3][c] - center;
        sum[c] += (d0 + d1) + (d2 + d3);
        square[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
}

void add_squares(const Tile& tile, uint32_t head_dim, double* __restrict square) {
    for (uint32_t c = 0; c < head_dim; ++c) {
        const double x0 = tile.rows[0][c];
        const double x1 = tile.rows[1][c];
        const double x2 = tile.rows[2][c];
        const double x3 = tile.rows[3][c];
        square[c] += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3);
    }
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
    Tile tile;
    for (uint32_t h = 0; h < k.heads; ++h) {
        const size_t base = size_t{h} * k.head_dim;
        float* shift = layer.shift.data() + base;
        if (layer.key_tokens == 0) load_row(row_of(k, 0, h), k.dtype, k.head_dim, shift);
        for (uint32_t t = 0; t < k.n; t += kTileRows) {
            load_tile(k, t, h, shift, tile);
            add_deviations(tile, k.head_dim, shift, layer.key_sum.data() + base,
                           layer.key_square.data() + base);
        }
    }
    layer.key_tokens += k.n;
}

void ChannelStatistics::observe_queries(LayerId layer_id, const ConstTensor& q) {
    Layer& layer = layers_[layer_id.index];
    if (layer.kv_head_count == 0 || q.n == 0) return;
    SHOAL_ASSERT(q.heads == q_head_count_ && q.head_dim == layer.k_head_dim);
    const uint32_t q_per_kv = q_head_count_ / layer.kv_head_count;
    Tile tile;
    for (uint32_t h = 0; h < q.heads; ++h) {
        double* square = layer.query_square.data() + size_t{h / q_per_kv} * q.head_dim;
        for (uint32_t t = 0; t < q.n; t += kTileRows) {
            load_tile(q, t, h, nullptr, tile);
            add_squares(tile, q.head_dim, square);
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
