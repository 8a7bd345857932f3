// Shapes, keys and queries made by hand for the tests of calib/.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "calib/channel_statistics.hpp"
#include "kernels/q8.hpp"

namespace shoal::calib::test {

inline ModelShape small_shape(uint32_t layers = 2, uint32_t q_heads = 4, uint32_t kv_heads = 2,
                              uint32_t head_dim = 32) {
    ModelShape shape;
    shape.q_head_count = q_heads;
    for (uint32_t l = 0; l < layers; ++l) {
        shape.layers.push_back({.kind = LayerKind::full,
                                .kv_head_count = kv_heads,
                                .k_head_dim = head_dim,
                                .v_head_dim = head_dim});
    }
    return shape;
}

// A tensor that owns its bytes; rows may lie apart.
struct OwnedTensor {
    std::vector<std::byte> bytes;
    ConstTensor view;
};

inline OwnedTensor make_tensor(const std::vector<float>& values, uint32_t n, uint32_t heads,
                               uint32_t head_dim, DType dtype = DType::f32, size_t gap_bytes = 0) {
    OwnedTensor tensor;
    const size_t head_stride = row_bytes(dtype, head_dim) + gap_bytes;
    tensor.bytes.assign(size_t{n} * heads * head_stride, std::byte{0xff});  // gaps are NaN
    for (size_t row = 0; row < size_t{n} * heads; ++row) {
        std::byte* to = tensor.bytes.data() + row * head_stride;
        if (dtype == DType::q8) {
            const uint16_t scale =
                kernels::q8_store_row(values.data() + row * head_dim, head_dim, to);
            std::memcpy(to + head_dim, &scale, sizeof(scale));
            continue;
        }
        for (uint32_t c = 0; c < head_dim; ++c) {
            kernels::store_element(to, dtype, c, values[row * head_dim + c]);
        }
    }
    tensor.view = {.data = tensor.bytes.data(),
                   .dtype = dtype,
                   .n = n,
                   .heads = heads,
                   .head_dim = head_dim,
                   .n_stride_bytes = heads * head_stride,
                   .head_stride_bytes = head_stride};
    return tensor;
}

inline std::vector<float> random_values(size_t count, uint32_t seed, float mean = 0.0F,
                                        float deviation = 1.0F) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

// Moments whose weights are `weights`: query moment 1, key variance weight^2, mean = channel.
inline ChannelMoments moments_of_weights(const std::vector<double>& weights) {
    ChannelMoments moments;
    for (size_t c = 0; c < weights.size(); ++c) {
        moments.key_mean.push_back(static_cast<float>(c));
        moments.key_variance.push_back(static_cast<float>(weights[c] * weights[c]));
        moments.query_square.push_back(1.0F);
    }
    return moments;
}

// exp(deviation * normal). Heads of SmolLM2-135M have deviations of .4 to 1.8, mean .8.
inline std::vector<double> heavy_tailed_weights(uint32_t head_dim, uint32_t seed,
                                                double deviation) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.0, deviation);
    std::vector<double> weights(head_dim);
    for (double& weight : weights) weight = std::exp(normal(random));
    return weights;
}

}  // namespace shoal::calib::test
