// Which tensors are pieces of a KV cache, and how to get from any node of a graph to them.
#pragma once

#include <cstdint>
#include <optional>

#include "ggml.h"
#include "shoal/session.hpp"

namespace shoal::llama_cpp {

class KvCache;

// One tensor of a llama.cpp KV cache that Shoal holds. Lives in ggml_tensor::extra of the root.
struct KvTensor {
    KvCache* cache = nullptr;
    uint32_t layer = 0;
    Session::Part part = Session::Part::k;
    const ggml_tensor* root = nullptr;  // [row elements, slots, streams]

    size_t row_bytes() const { return root->nb[1]; }
    uint32_t slot_count() const { return static_cast<uint32_t>(root->ne[1]); }  // of a stream
    uint32_t stream_count() const { return static_cast<uint32_t>(root->ne[2]); }
    size_t stream_bytes() const { return root->nb[2]; }
};

struct KvTensorName {
    uint32_t layer;
    Session::Part part;
};

// Reads "cache_k_l%d" or "cache_v_l%d", exactly. Other caches of llama.cpp (recurrent state,
// indexers, draft heads) have other names and are not rows of tokens.
std::optional<KvTensorName> parse_kv_name(const char* name);

// The tensor whose memory `tensor` lies in.
inline const ggml_tensor* root_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

// The tensor that `tensor` was cast from, else `tensor`: llama.cpp casts an f32 cache to f16 in
// front of every attention. Shoal attends the rows as they are stored and never makes the cast.
inline const ggml_tensor* before_cast(const ggml_tensor* tensor) {
    return tensor->op == GGML_OP_CPY && tensor->src[0] != nullptr ? tensor->src[0] : tensor;
}

}  // namespace shoal::llama_cpp
