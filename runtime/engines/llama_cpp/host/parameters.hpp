// What a program is about to ask llama.cpp for, checked for what would keep the KV cache out of
// Shoal, or bring it in a form that Shoal does not hold. llama.cpp's own view of its parameters is
// followed where it changes them: defaults, padding, streams.
#pragma once

#include <cstdint>

#include <llama.h>

#include "runtime/engines/llama_cpp/host/model_file.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_host {

// How messages name what they refuse: as llama.cpp's fields, or as the flags of its programs.
enum class Names : uint8_t { fields, flags };

// Every parameter but the devices.
Status check_parameters(const llama_model_params& model, const llama_context_params& context,
                        const ModelFile& file, Names names);
// Whether the model's layers go to Shoal's device and no other.
Status check_devices(const llama_model_params& model, ggml_backend_dev_t shoal);

// The KV caches that llama.cpp makes.
struct ContextShape {
    uint32_t tokens = 0;   // as asked for
    uint32_t streams = 1;  // one per sequence, or one for all (kv_unified)
    uint32_t slots = 0;    // of a stream
    uint32_t queries = 1;  // most of one forward pass
    uint32_t sequences_per_stream = 1;
    bool swa_full = false;

    // Slots of a stream of the cache that layers with a sliding window have.
    uint32_t slots_of_window(uint32_t window) const;
};
ContextShape context_shape(const llama_context_params& context, uint32_t context_trained);
// One sequence, as the tool asks for it.
ContextShape context_of_one(uint32_t tokens, uint32_t queries);
// Tokens as llama.cpp rounds them up.
uint32_t padded_context(uint64_t tokens);

}  // namespace shoal::llama_host
