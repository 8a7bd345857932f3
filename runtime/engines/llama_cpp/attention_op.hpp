// Reads a FLASH_ATTN_EXT node over a KV cache.
#pragma once

#include <cstring>

#include "ggml.h"
#include "kv_tensor.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

struct AttentionOp {
    explicit AttentionOp(const ggml_tensor& op)
        : node(&op), q(op.src[0]), k(before_cast(op.src[1])), v(before_cast(op.src[2])),
          mask(op.src[3]), sinks(op.src[4]) {}

    float scale() const { return parameter(0); }
    float max_bias() const { return parameter(1); }
    float logit_softcap() const { return parameter(2); }
    // K's tensor; only for ops whose keys are held here.
    const KvTensor& tensor() const { return *static_cast<const KvTensor*>(root_of(k)->extra); }

    // Streams that the op goes over: consecutive ones, with as many queries each.
    uint32_t stream_first() const {
        return static_cast<uint32_t>(k->view_offs / tensor().stream_bytes());
    }
    uint32_t stream_count() const { return static_cast<uint32_t>(q->ne[3]); }
    uint32_t queries_per_stream() const { return static_cast<uint32_t>(q->ne[1]); }
    uint32_t query_count() const { return stream_count() * queries_per_stream(); }

    const ggml_tensor* node;   // f32 [v_head_dim, q_heads, queries, streams]
    const ggml_tensor* q;      // f32 [k_head_dim, queries, q_heads, streams], strided
    const ggml_tensor* k;      // view of the cache: [k_head_dim, slots, kv_heads, streams]
    const ggml_tensor* v;      // the same for V
    const ggml_tensor* mask;   // f16 [slots, queries, 1, streams]
    const ggml_tensor* sinks;

private:
    float parameter(size_t index) const {
        float value = 0.0F;
        std::memcpy(&value, reinterpret_cast<const char*>(node->op_params) + index * sizeof(value),
                    sizeof(value));
        return value;
    }
};

// Ok when Shoal computes exactly what this node asks for; else says which part it does not.
Status check_attention(const ggml_tensor& op);

}  // namespace shoal::llama_cpp
