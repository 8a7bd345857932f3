// The C functions of shoal_llama_host.h.
#include <exception>
#include <string>

#include <fmt/format.h>

#include "runtime/engines/llama_cpp/host/batch.hpp"
#include "runtime/engines/llama_cpp/host/device.hpp"
#include "runtime/engines/llama_cpp/host/memory.hpp"
#include "runtime/engines/llama_cpp/host/model_file.hpp"
#include "runtime/engines/llama_cpp/host/parameters.hpp"
#include "runtime/engines/llama_cpp/host/sequence_file.hpp"
#include "runtime/engines/llama_cpp/shoal_llama_host.h"

namespace shoal::llama_host {
namespace {

Status missing(const char* name) {
    return Status::error(StatusCode::invalid_argument, fmt::format("{}: must not be NULL", name));
}

Status load(const char* path, ggml_backend_dev_t* device) {
    if (device == nullptr) return missing("device");
    *device = nullptr;
    const Result<ggml_backend_reg_t> registry = load_device(path == nullptr ? "" : path);
    if (!registry) return registry.status();
    *device = ggml_backend_reg_dev_get(*registry, 0);
    return Status::ok();
}

Status preflight(const char* path, const llama_model_params* model,
                 const llama_context_params* context) {
    if (path == nullptr) return missing("model_path");
    if (model == nullptr) return missing("model_params");
    if (context == nullptr) return missing("context_params");
    Result<ModelFile> file = read_model_file(path);
    if (!file) return file.status();
    SHOAL_TRY(check_parameters(*model, *context, *file, Names::fields));
    const Result<ggml_backend_reg_t> registry = find_device();
    if (!registry) return registry.status();
    SHOAL_TRY(check_devices(*model, ggml_backend_reg_dev_get(*registry, 0)));
    const Result<Config> config = next_config(*registry);
    if (!config) return config.status();
    file->shape.rows = {.k = *row_dtype(context->type_k), .v = *row_dtype(context->type_v)};
    const ContextShape shape = context_shape(*context, file->context_trained);
    const Result<MemoryPlan> plan = plan_memory(*config, *file, shape);
    if (!plan) return plan.status();
    return check_memory(*plan, *file, shape, Names::fields);
}

Status note(llama_context* context, const llama_batch* batch) {
    if (context == nullptr) return missing("context");
    if (batch == nullptr) return missing("batch");
    const Result<BatchTokens> tokens = read_batch(context, *batch);
    if (!tokens) return tokens.status();
    const Result<ggml_backend_reg_t> registry = find_device();
    if (!registry) return registry.status();
    const auto note_tokens =
        side_call<shoal_llama_note_tokens_t>(*registry, "shoal_llama_note_tokens");
    const char* error = note_tokens(batch->token == nullptr ? nullptr : tokens->tokens.data(),
                                    tokens->positions.data(), tokens->sequences.data(),
                                    tokens->positions.size());
    return error == nullptr ? Status::ok() : Status::error(StatusCode::invalid_argument, error);
}

// No exception crosses the border.
template <typename Function>
const char* answer(Function function) {
    thread_local std::string text;
    try {
        const Status status = function();
        if (status) return nullptr;
        text = status.message();
        return text.c_str();
    } catch (const std::exception& error) {
        try {
            text = error.what();
            return text.c_str();
        } catch (...) {
            return "out of memory";
        }
    }
}

}  // namespace
}  // namespace shoal::llama_host

namespace host = shoal::llama_host;

const char* shoal_llama_load(const char* plugin_path, ggml_backend_dev_t* device) {
    return host::answer([&] { return host::load(plugin_path, device); });
}

const char* shoal_llama_preflight(const char* model_path, const llama_model_params* model_params,
                                  const llama_context_params* context_params) {
    return host::answer([&] { return host::preflight(model_path, model_params, context_params); });
}

const char* shoal_llama_note_batch(llama_context* context, const llama_batch* batch) {
    return host::answer([&] { return host::note(context, batch); });
}

const char* shoal_llama_save_sequence(llama_context* context, const char* path,
                                      const llama_token* tokens, size_t token_count,
                                      const float* logits) {
    return host::answer([&] {
        if (context == nullptr) return host::missing("context");
        if (path == nullptr) return host::missing("path");
        if (tokens == nullptr) return host::missing("tokens");
        return host::save_sequence(context, path, {tokens, token_count}, logits);
    });
}

const char* shoal_llama_load_sequence(llama_context* context, const char* path,
                                      llama_token* tokens, size_t capacity, size_t* token_count,
                                      float* logits) {
    return host::answer([&] {
        if (context == nullptr) return host::missing("context");
        if (path == nullptr) return host::missing("path");
        if (token_count == nullptr) return host::missing("token_count");
        *token_count = 0;
        return host::load_sequence(context, path,
                                   {tokens, tokens == nullptr ? 0 : capacity, token_count, logits});
    });
}

int64_t shoal_llama_rows_read(uint32_t layer, uint32_t query, uint32_t kv_head,
                              shoal_llama_row* rows, size_t capacity) {
    int64_t count = -1;
    host::answer([&] {
        const auto registry = host::find_device();
        if (!registry) return registry.status();
        count = host::side_call<shoal_llama_attended_rows_t>(
            *registry, "shoal_llama_attended_rows")(layer, query, kv_head, rows, capacity);
        return shoal::Status::ok();
    });
    return count;
}

size_t shoal_llama_stats(char* buffer, size_t size) {
    size_t length = 0;
    if (buffer != nullptr && size > 0) buffer[0] = '\0';
    host::answer([&] {
        const auto registry = host::find_device();
        if (!registry) return registry.status();
        length = host::side_call<shoal_llama_stats_json_t>(*registry, "shoal_llama_stats_json")(
            buffer, size);
        return shoal::Status::ok();
    });
    return length;
}
