// What is learnt from keys and queries in order to choose label channels.
//
// Per layer and KV head: mean and variance of every key channel over the tokens seen, and the
// mean square of every query channel, added up over the query heads that share the KV head.
// Keys and queries come from different tokens in attention, so their moments are kept apart.
#pragma once

#include <vector>

#include "shoal/types.hpp"

namespace shoal::calib {

// The moments of one KV head. All of length k_head_dim.
struct ChannelMoments {
    std::vector<float> key_mean;
    std::vector<float> key_variance;  // of the tokens seen (divided by their count), >= 0
    std::vector<float> query_square;  // sum over the KV head's query heads of E[q_c^2], >= 0
    bool operator==(const ChannelMoments&) const = default;
};

// Accumulators of a whole model: full layers only, other layers are ignored. Sums are kept in
// double around the first key seen, so that a large mean does not eat a small variance. How
// tokens are grouped into calls changes a moment by 1e-6 of itself at most.
//
// Memory: 28 B per key channel of the model, all of it taken by the constructor.
// Thread safety: none; different layers may be observed by different threads at the same time.
class ChannelStatistics {
public:
    explicit ChannelStatistics(const ModelShape& shape);

    // What the constructor allocates for the sums.
    static size_t bytes(const ModelShape& shape);

    // k: [n, kv_head_count, k_head_dim], post-RoPE, any dtype and strides. Finite.
    void observe_keys(LayerId layer, const ConstTensor& k);
    // q: [n, q_head_count, k_head_dim], as k.
    void observe_queries(LayerId layer, const ConstTensor& q);

    // Adds what `other`, made for the same shape, has seen.
    void merge(const ChannelStatistics& other);
    // As just constructed.
    void reset();

    uint64_t key_token_count(LayerId layer) const;
    uint64_t query_token_count(LayerId layer) const;
    // Tokens that every full layer has seen, both as keys and as queries.
    uint64_t token_count() const;

    // Zeros where nothing was seen.
    ChannelMoments moments(LayerId layer, uint32_t kv_head) const;

    uint32_t q_head_count() const { return q_head_count_; }
    uint32_t layer_count() const { return static_cast<uint32_t>(layers_.size()); }
    // 0 for layers that are not full.
    uint32_t kv_head_count(LayerId layer) const { return layers_[layer.index].kv_head_count; }
    uint32_t k_head_dim(LayerId layer) const { return layers_[layer.index].k_head_dim; }

private:
    struct Layer {
        uint32_t kv_head_count = 0;
        uint32_t k_head_dim = 0;
        uint64_t key_tokens = 0;
        uint64_t query_tokens = 0;
        // [kv_head_count, k_head_dim]
        std::vector<float> shift;         // the first key seen
        std::vector<double> key_sum;      // of k - shift
        std::vector<double> key_square;   // of (k - shift)^2
        std::vector<double> query_square;
    };
    uint32_t q_head_count_ = 0;
    std::vector<Layer> layers_;
};

}  // namespace shoal::calib
