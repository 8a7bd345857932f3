// Small models with random weights, written as GGUF files: architectures and shapes of which there
// is no small real model.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "llama_support.hpp"

namespace shoal::testing {

struct TinyShape {
    // llama, qwen2 (biases of q, k and v), qwen3 (norms of q and k), gemma3 (those, norms behind
    // attention and FFN, and sliding windows in all but every sixth layer)
    const char* architecture;
    uint32_t q_heads = 8;
    uint32_t kv_heads = 2;
    uint32_t head_dim = 32;
    uint32_t layers = 3;
    uint32_t ff = 96;
    uint32_t vocabulary = 512;   // token ids without text
    uint32_t window = 0;         // of gemma3's sliding layers
};
void PrintTo(const TinyShape& shape, std::ostream* out);

// A file of f32 weights that follow from the seed; keys and queries are loud, so that attention is
// not flat. The caller removes it.
std::string write_tiny_model(const TinyShape& shape, uint64_t seed);

// Of the stock engine, or with its KV cache on the device. Null if llama.cpp refuses it.
using Model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
Model load_model(Engine engine, const std::string& path);

}  // namespace shoal::testing
