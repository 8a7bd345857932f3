// What a model file needs, read from its header before anything is loaded or allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <ggml.h>

#include "shoal/session.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::llama_host {

struct ModelFile {
    std::string path;
    std::string architecture;  // "llama"
    std::string name;          // "SmolLM2 135M", or the file's name
    std::string fingerprint;   // what profiles of this model carry
    uint32_t context_trained = 0;
    uint32_t layer_count = 0;
    uint64_t file_bytes = 0;
    ModelShape shape;          // rows: set by the caller

    // Bytes of K and V of one token, all layers but sliding ones; of `rows` where they are stored
    // otherwise than the engine asks.
    uint64_t kv_bytes_per_token() const { return kv_bytes_per_token(shape.rows); }
    uint64_t kv_bytes_per_token(const RowFormat& rows) const;
    // KV heads of all layers but sliding ones.
    uint64_t lanes() const;
};

// Refuses a file that is missing, cut or no GGUF, and a model that Shoal does not serve, each with
// the reason. Loads no tensor.
Result<ModelFile> read_model_file(const std::string& path);

// The row dtype of a cache type, if Shoal has one.
std::optional<DType> row_dtype(ggml_type type);

}  // namespace shoal::llama_host
