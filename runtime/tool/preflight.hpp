// The checks of runtime/engines/llama_cpp/host, which programs that embed llama.cpp make too, as
// the tool makes them: for one sequence, with what is wrong named by flags.
#pragma once

#include <cstdint>
#include <string>

#include <llama.h>

#include "runtime/engines/llama_cpp/host/memory.hpp"
#include "runtime/engines/llama_cpp/host/model_file.hpp"
#include "runtime/engines/llama_cpp/host/parameters.hpp"

namespace shoal::tool {

using llama_host::ModelFile;
using llama_host::padded_context;

// llama_host::read_model_file; of a damaged file the error carries llama.cpp's own line.
Result<ModelFile> read_model_file(const std::string& path);

// A cache type by llama.cpp's name for it; the error names the flag.
Result<ggml_type> parse_cache_type(const std::string& flag, const std::string& value);
ggml_type to_ggml(DType dtype);

Status check_parameters(const llama_context_params& context, const ModelFile& model);
// Session::plan of one sequence of `tokens`, padded, the sliding layers' session included.
Result<MemoryPlan> plan_memory(const Config& config, const ModelFile& model, uint32_t tokens,
                               uint32_t queries_max);
// Refuses what does not fit beside the weights, saying how much would.
Status check_memory(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens);
// Tokens of the largest context that fits beside the weights.
uint64_t context_that_fits(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens);

}  // namespace shoal::tool
