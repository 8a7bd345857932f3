// Whether a context fits into memory: what the plugin's sessions will take, beside the weights.
#pragma once

#include <cstdint>

#include "runtime/engines/llama_cpp/host/model_file.hpp"
#include "runtime/engines/llama_cpp/host/parameters.hpp"
#include "shoal/config.hpp"
#include "shoal/session.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_host {

// Session::plan of the plugin's sessions, that of the sliding layers included. Refuses a
// configuration that does not fit the model.
Result<MemoryPlan> plan_memory(const Config& config, const ModelFile& model,
                               const ContextShape& shape);
// Refuses what does not fit beside the weights, saying how much would.
Status check_memory(const MemoryPlan& plan, const ModelFile& model, const ContextShape& shape,
                    Names names);
// Tokens of the largest context, all streams together, that fits beside the weights.
uint64_t context_that_fits(const MemoryPlan& plan, const ModelFile& model,
                           const ContextShape& shape);

}  // namespace shoal::llama_host
