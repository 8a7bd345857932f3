// A made-up attention stack on ggml's scheduler, as llama.cpp builds it: what no small model shows
// (other masks, head sizes, op parameters) and what must be timed alone.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "llama_support.hpp"
#include "shoal/types.hpp"

namespace shoal::testing {

struct GraphShape {
    uint32_t layers = 2;
    uint32_t kv_heads = 2;
    uint32_t q_heads = 6;
    uint32_t head_dim = 64;
    uint32_t slots = 512;
    uint32_t queries_max = 8;
    ggml_type type = GGML_TYPE_F16;
    int threads = 1;
    // Oddities.
    float max_bias = 0.0F;
    float logit_softcap = 0.0F;
    bool sinks = false;
    bool matmul_instead = false;  // attention by matrix products, as with flash attention off
    bool has_mask = true;
    uint32_t heads_seen = 0;      // KV heads of the views that are attended; 0: all
    uint32_t first_row_seen = 0;  // where they begin
    bool scales_differ = false;   // between the first layer and the others
    bool slots_differ = false;    // each layer writes one slot further than the one before
    bool attends_again = false;   // a layer more that has no cache but the first layer's
    uint32_t streams = 1;
    uint32_t first_layer = 0;
    const char* k_name = "cache_k_l%d";
    const char* v_name = "cache_v_l%d";
};

// One forward pass: row i of k, v and q goes to slots[i] and sees visible[i].
struct GraphInput {
    std::vector<int64_t> slots;
    std::vector<std::vector<SlotRange>> visible;
    uint32_t slots_seen = 0;      // width of the mask
    std::vector<float> k;         // [queries, kv_heads, head_dim]
    std::vector<float> v;
    std::vector<float> q;         // [queries, q_heads, head_dim]
    float mask_hidden = -INFINITY;
};

class DeviceGraph {
public:
    DeviceGraph(Engine engine, const GraphShape& shape);

    // Memory of the cache, and of a graph of queries_max queries. Either is where a device
    // refuses.
    bool allocate_cache();
    bool reserve();
    // Both, or a failed test.
    void make();

    ggml_status compute(const GraphInput& input);
    // Output of the last layer of the last compute: [queries, q_heads, head_dim].
    const std::vector<float>& output() const { return output_; }
    // Time that its ops took.
    double compute_ms() const { return compute_ms_; }

    void set_threads(int threads);
    ggml_tensor* k(uint32_t layer) const { return k_[layer]; }
    ggml_tensor* v(uint32_t layer) const { return v_[layer]; }

private:
    struct Graph {
        ggml_context_ptr context;
        ggml_cgraph* graph = nullptr;
        std::vector<ggml_tensor*> slots;  // [layer]
        ggml_tensor* mask = nullptr;
        ggml_tensor* k = nullptr;
        ggml_tensor* v = nullptr;
        ggml_tensor* q = nullptr;
        ggml_tensor* out = nullptr;
    };

    Graph build(uint32_t queries, uint32_t slots_seen) const;
    ggml_tensor* attend(ggml_context* context, const Graph& graph, uint32_t layer,
                        uint32_t slots_seen) const;

    Engine engine_;
    GraphShape shape_;
    ggml_context_ptr cache_context_;
    ggml_backend_buffer_ptr cache_buffer_;
    std::vector<ggml_tensor*> k_;
    std::vector<ggml_tensor*> v_;
    std::vector<ggml_backend_ptr> backends_;
    ggml_backend_sched_ptr scheduler_;
    std::vector<float> output_;
    double compute_ms_ = 0;
};

// Random rows for `slots`, each query seeing every slot up to its own.
GraphInput causal_input(const GraphShape& shape, uint32_t first_slot, uint32_t queries,
                        uint64_t seed);

}  // namespace shoal::testing
