// What a model file needs, read from its header before anything is loaded or allocated.
#pragma once

#include <cstdint>
#include <string>

#include <ggml.h>

#include "shoal/config.hpp"
#include "shoal/session.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::tool {

struct ModelFile {
    std::string path;
    std::string architecture;  // "llama"
    std::string name;          // "SmolLM2 135M", or the file's name
    std::string fingerprint;   // what profiles of this model carry
    uint32_t context_trained = 0;
    uint32_t layer_count = 0;
    uint64_t file_bytes = 0;
    ModelShape shape;          // rows: set by the caller

    // Bytes of K and V of one token, all layers but sliding ones.
    uint64_t kv_bytes_per_token() const;
    // KV heads of all layers but sliding ones.
    uint64_t lanes() const;
};

// Refuses a file that is missing, cut or no GGUF, and a model that Shoal does not serve, each with
// the reason. Loads no tensor.
Result<ModelFile> read_model_file(const std::string& path);

// "f16", "bf16" or "f32" as the row dtype; the error names the flag.
Result<DType> parse_cache_type(const std::string& flag, const std::string& value);
ggml_type to_ggml(DType dtype);

// Tokens of a context as llama.cpp allocates them.
uint32_t padded_context(uint64_t tokens);

// Session::plan of one sequence of `tokens`, padded, the sliding layers' session included.
Result<MemoryPlan> plan_memory(const Config& config, const ModelFile& model, uint32_t tokens,
                               uint32_t queries_max);
// Refuses what does not fit beside the weights, saying how much would.
Status check_memory(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens);
// Tokens of the largest context that fits beside the weights.
uint64_t context_that_fits(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens);

}  // namespace shoal::tool
