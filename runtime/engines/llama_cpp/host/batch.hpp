// A batch as llama_decode will take it: every token with a position and a sequence.
#pragma once

#include <cstdint>
#include <vector>

#include <llama.h>

#include "shoal/status.hpp"

namespace shoal::llama_host {

struct BatchTokens {
    std::vector<int32_t> tokens;     // -1: an embedding
    std::vector<int32_t> positions;
    std::vector<int32_t> sequences;  // the first of each token
};

// Fills in what llama_decode fills in (positions, sequence 0), and refuses what it would refuse
// without saying more than "-1": ids out of range, positions that do not follow.
Result<BatchTokens> read_batch(llama_context* context, const llama_batch& batch);

}  // namespace shoal::llama_host
