#include "runtime/tool/preflight.hpp"

#include <fmt/format.h>

#include "runtime/tool/engine_log.hpp"
#include "runtime/tool/exit.hpp"

namespace shoal::tool {

using llama_host::context_of_one;
using llama_host::Names;

Result<ModelFile> read_model_file(const std::string& path) {
    if (path.empty()) return input_error("-m: must name a model file (GGUF)");
    EngineLog::instance().clear();
    Result<ModelFile> model = llama_host::read_model_file(path);
    const std::string logged = EngineLog::instance().last_error();
    if (model || logged.empty()) return model;
    return Status::error(model.status().code(),
                         fmt::format("{}: {}", model.status().message(), logged));
}

Result<ggml_type> parse_cache_type(const std::string& flag, const std::string& value) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const char* name = ggml_type_name(type);
        if (name != nullptr && value == name) return type;
    }
    return input_error(fmt::format("{} {}: must be f16, bf16 or f32", flag, value));
}

ggml_type to_ggml(DType dtype) {
    switch (dtype) {
        case DType::f16: return GGML_TYPE_F16;
        case DType::bf16: return GGML_TYPE_BF16;
        case DType::f32: return GGML_TYPE_F32;
        case DType::q8: break;  // no cache type of the engine: host.rows
    }
    return GGML_TYPE_F16;
}

Status check_parameters(const llama_context_params& context, const ModelFile& model) {
    return llama_host::check_parameters(llama_model_default_params(), context, model,
                                        Names::flags);
}

Result<MemoryPlan> plan_memory(const Config& config, const ModelFile& model, uint32_t tokens,
                               uint32_t queries_max) {
    return llama_host::plan_memory(config, model, context_of_one(tokens, queries_max));
}

Status check_memory(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens) {
    return llama_host::check_memory(plan, model, context_of_one(tokens, 1), Names::flags);
}

uint64_t context_that_fits(const MemoryPlan& plan, const ModelFile& model, uint32_t tokens) {
    return llama_host::context_that_fits(plan, model, context_of_one(tokens, 1));
}

}  // namespace shoal::tool
