#include "runtime/engines/llama_cpp/host/parameters.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <ggml-backend.h>

#include "shoal/text.hpp"

namespace shoal::llama_host {
namespace {

constexpr uint32_t kSlotsMax = 1U << 30;

Status refuse(const std::string& what, const std::string& why) {
    return Status::error(StatusCode::unsupported, fmt::format("{}: {}", what, why));
}

Status check_cache_types(const llama_context_params& context, Names names) {
    struct Type {
        const char* flag;
        const char* field;
        ggml_type type;
    };
    for (const Type& given : {Type{"-ctk", "type_k =", context.type_k},
                              Type{"-ctv", "type_v =", context.type_v}}) {
        if (row_dtype(given.type)) continue;
        const bool known = given.type >= 0 && given.type < GGML_TYPE_COUNT;
        return refuse(fmt::format("{} {}", names == Names::flags ? given.flag : given.field,
                                  known ? ggml_type_name(given.type)
                                        : std::to_string(static_cast<int>(given.type))),
                      "Shoal keeps rows as f16, bf16 or f32");
    }
    return Status::ok();
}

Status check_layers(const llama_model_params& model, const ModelFile& file, Names names) {
    // llama.cpp counts the output layer too, and takes layers from the last one on.
    const uint32_t all = file.layer_count + 1;
    if (model.n_gpu_layers < 0 || static_cast<uint32_t>(model.n_gpu_layers) >= all) {
        return Status::ok();
    }
    return refuse(fmt::format("{} {}", names == Names::flags ? "-ngl" : "n_gpu_layers =",
                              model.n_gpu_layers),
                  fmt::format("Shoal holds the KV cache of all {} layers or none: must be {} or "
                              "more, or -1 for all (weights stay where they are)",
                              file.layer_count, all));
}

// The devices that llama.cpp gives layers to, in its order.
std::vector<ggml_backend_dev_t> devices_of(const llama_model_params& model) {
    std::vector<ggml_backend_dev_t> devices;
    if (model.devices != nullptr) {
        for (ggml_backend_dev_t* device = model.devices; *device != nullptr; ++device) {
            devices.push_back(*device);
        }
    } else {
        // Integrated GPUs only where there is no other, and Shoal's device counts as one.
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t device = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU) {
                devices.push_back(device);
            }
        }
    }
    if (model.split_mode != LLAMA_SPLIT_MODE_NONE || devices.empty()) return devices;
    if (model.main_gpu < 0) return {};
    const auto main = static_cast<size_t>(model.main_gpu);
    if (main >= devices.size()) return devices;
    return {devices[main]};
}

}  // namespace

Status check_parameters(const llama_model_params& model, const llama_context_params& context,
                        const ModelFile& file, Names names) {
    const bool flags = names == Names::flags;
    if (context.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        return refuse(flags ? "--flash-attn off"
                            : "flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED",
                      "Shoal needs it on (off keeps V transposed, so a token's row is no longer in "
                      "one piece)");
    }
    if (!context.offload_kqv) {
        return refuse(flags ? "--no-kv-offload" : "offload_kqv = false",
                      flags ? "would keep the KV cache out of Shoal; leave it out"
                            : "would keep the KV cache out of Shoal: must be true");
    }
    SHOAL_TRY(check_cache_types(context, names));
    SHOAL_TRY(check_layers(model, file, names));
    if (context.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return refuse(fmt::format("ctx_type = {}", static_cast<int>(context.ctx_type)),
                      "Shoal serves LLAMA_CONTEXT_TYPE_DEFAULT");
    }
    if (context.n_seq_max > llama_max_parallel_sequences()) {
        return refuse(fmt::format("{} {}", flags ? "-np" : "n_seq_max =", context.n_seq_max),
                      fmt::format("llama.cpp allows up to {}", llama_max_parallel_sequences()));
    }
    if (context.n_ctx > kSlotsMax) {
        return refuse(fmt::format("{} {}", flags ? "-c" : "n_ctx =", context.n_ctx),
                      fmt::format("must be 0 (as many as the model was trained with, {}) to {}",
                                  grouped(file.context_trained), grouped(kSlotsMax)));
    }
    return Status::ok();
}

Status check_devices(const llama_model_params& model, ggml_backend_dev_t shoal) {
    const std::string name = ggml_backend_dev_name(shoal);
    if (model.split_mode == LLAMA_SPLIT_MODE_TENSOR) {
        return refuse("split_mode = LLAMA_SPLIT_MODE_TENSOR",
                      "Shoal holds whole rows: must be LLAMA_SPLIT_MODE_NONE or _LAYER");
    }
    const std::vector<ggml_backend_dev_t> devices = devices_of(model);
    if (devices.size() == 1 && devices.front() == shoal) return Status::ok();
    std::string names;
    for (ggml_backend_dev_t device : devices) {
        names += (names.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(device));
    }
    return refuse(fmt::format("devices = {}", names.empty() ? "none" : names),
                  fmt::format("Shoal holds the KV cache of all layers or none: must be {} alone",
                              name));
}

uint32_t ContextShape::slots_of_window(uint32_t window) const {
    if (swa_full) return slots;
    return std::min(slots, padded_context(uint64_t{window} * sequences_per_stream + queries));
}

ContextShape context_shape(const llama_context_params& context, uint32_t context_trained) {
    const uint32_t sequences = std::max(context.n_seq_max, 1U);
    ContextShape shape;
    shape.tokens = context.n_ctx == 0 ? context_trained : context.n_ctx;
    shape.slots = padded_context(shape.tokens);
    shape.swa_full = context.swa_full;
    if (context.kv_unified) {
        shape.sequences_per_stream = sequences;
    } else {
        shape.streams = sequences;
        shape.slots = padded_context(shape.slots / sequences);
    }
    const uint32_t batch = std::min(shape.tokens, context.n_batch);
    const uint32_t micro = context.n_ubatch == 0 ? context.n_batch : context.n_ubatch;
    shape.queries = std::max(1U, std::min(batch, micro));
    return shape;
}

ContextShape context_of_one(uint32_t tokens, uint32_t queries) {
    ContextShape shape;
    shape.tokens = tokens;
    shape.slots = padded_context(tokens);
    shape.queries = queries;
    return shape;
}

uint32_t padded_context(uint64_t tokens) {
    constexpr uint64_t kPadding = 256;  // llama.cpp's
    const uint64_t padded = (tokens + kPadding - 1) / kPadding * kPadding;
    return static_cast<uint32_t>(std::min<uint64_t>(padded, UINT32_MAX - kPadding + 1));
}

}  // namespace shoal::llama_host
