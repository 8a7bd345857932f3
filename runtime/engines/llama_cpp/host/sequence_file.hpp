// A saved sequence and a llama_context: rows are Shoal's, cells and positions are llama.cpp's.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include <llama.h>

#include "shoal/status.hpp"

namespace shoal::llama_host {

// As shoal_llama_save_sequence.
Status save_sequence(llama_context* context, const std::string& path,
                     std::span<const llama_token> tokens, const float* logits);

struct LoadOutput {
    llama_token* tokens = nullptr;  // [capacity]
    size_t capacity = 0;
    size_t* token_count = nullptr;
    float* logits = nullptr;        // [tokens of the vocabulary], or null
};
// As shoal_llama_load_sequence.
Status load_sequence(llama_context* context, const std::string& path, const LoadOutput& out);

}  // namespace shoal::llama_host
