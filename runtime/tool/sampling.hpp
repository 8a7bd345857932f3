// Sampling flags as llama.cpp's users know them, on llama.cpp's own samplers.
#pragma once

#include <cstdint>

#include <CLI/App.hpp>

#include "runtime/tool/engine.hpp"

namespace shoal::tool {

struct SamplingFlags {
    float temperature = 0.8F;  // 0: greedy
    int32_t top_k = 40;        // 0: off
    float top_p = 0.95F;       // 1: off
    float min_p = 0.05F;       // 0: off
    int64_t seed = -1;         // -1: another every time
};

void add_sampling_flags(CLI::App& command, SamplingFlags& flags);
Status check_sampling(const SamplingFlags& flags);
SamplerPtr make_sampler(const SamplingFlags& flags);

// As llama_sampler_sample, from these logits. [tokens of the vocabulary]
llama_token sample_from(llama_sampler* sampler, std::span<const float> logits);

}  // namespace shoal::tool
