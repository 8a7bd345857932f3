// The engine's own ops between a layer's input and its queries: kept from one graph, run again on
// another input. On the input of layer l - 1 they give nearly the queries of layer l, a layer early
// (InfiniGen, arXiv 2406.19707, section 4.2: inputs of neighbouring layers are alike).
#pragma once

#include <cstddef>
#include <vector>

#include "cpu_backend.hpp"
#include "ggml.h"

namespace shoal::llama_cpp {

// What a chain reads besides weights.
struct ChainInputs {
    const ggml_tensor* x = nullptr;          // input of the layer, before its norm
    const ggml_tensor* positions = nullptr;  // of RoPE; null without it
};

class QueryChain {
public:
    // Walks back from `q`, the queries of an attention op in the graph that runs, to the norm of
    // the layer's input. False when it meets anything else than a transformer layer has there.
    static bool find_inputs(const ggml_tensor& q, ChainInputs& inputs);
    // Keeps the ops that lead to `q`: weights by address, sizes as they are. False as above.
    bool record(const ggml_tensor& q);
    // Whether what is kept gives a tensor of the sizes of `q`.
    bool fits(const ggml_tensor& q) const;
    // Runs the ops on `inputs`, of sizes as recorded. The result, laid out as the recorded q was,
    // lives until the next run.
    Status run(const ChainInputs& inputs, CpuBackend& cpu, uint32_t thread_count,
               const ggml_tensor*& q);

private:
    struct Link {
        size_t node;        // in nodes_
        size_t source;      // of it
    };

    void place_results();

    std::vector<ggml_tensor> nodes_;      // copies, sources first
    std::vector<ggml_tensor*> to_run_;
    std::vector<Link> reads_x_;
    std::vector<Link> reads_positions_;
    std::vector<std::byte> results_;
    ggml_tensor x_ = {};                  // as recorded
};

}  // namespace shoal::llama_cpp
