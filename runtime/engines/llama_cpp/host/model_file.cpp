#include "runtime/engines/llama_cpp/host/model_file.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string_view>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gguf.h>

#include "shoal/text.hpp"

namespace shoal::llama_host {
namespace {

struct Architecture {
    std::string_view name;
    std::string_view refusal;  // empty: served
};
// Others are refused by the list at the end of the message; these say why.
constexpr std::array<Architecture, 15> kArchitectures = {{
    {"llama", ""},
    {"qwen2", ""},
    {"qwen3", ""},
    {"gemma3", ""},
    {"mamba", "keeps no KV cache per token: nothing for Shoal to hold"},
    {"mamba2", "keeps no KV cache per token: nothing for Shoal to hold"},
    {"rwkv6", "keeps no KV cache per token: nothing for Shoal to hold"},
    {"rwkv7", "keeps no KV cache per token: nothing for Shoal to hold"},
    {"jamba", "mixes attention with recurrent layers, which Shoal does not serve yet"},
    {"deepseek2", "keeps a compressed (MLA) cache, which Shoal does not serve yet"},
    {"gemma2", "caps its attention logits, which Shoal does not serve yet"},
    {"gemma3n", "shares the KV cache between layers, which Shoal does not serve yet"},
    {"gpt-oss", "uses attention sinks, which Shoal does not serve yet"},
    {"bert", "is an encoder: it decodes no tokens"},
    {"t5", "is an encoder-decoder, which Shoal does not serve"},
}};

struct GgufDeleter {
    void operator()(gguf_context* gguf) const { gguf_free(gguf); }
};
using Gguf = std::unique_ptr<gguf_context, GgufDeleter>;

Status file_error(StatusCode code, const std::string& path, const std::string& why) {
    return Status::error(code, fmt::format("{}: {}", path, why));
}

// Reads single header values; remembers the first key that is missing or of a wrong type.
class Header {
public:
    Header(const gguf_context* gguf, std::string path) : gguf_(gguf), path_(std::move(path)) {}

    std::string text(const std::string& key, const std::string& otherwise) const {
        const int64_t id = gguf_find_key(gguf_, key.c_str());
        if (id < 0 || gguf_get_kv_type(gguf_, id) != GGUF_TYPE_STRING) return otherwise;
        return gguf_get_val_str(gguf_, id);
    }

    // A number of any type, 0 without the key.
    double real(const std::string& key) const {
        const int64_t id = gguf_find_key(gguf_, key.c_str());
        if (id < 0) return 0;
        switch (gguf_get_kv_type(gguf_, id)) {
            case GGUF_TYPE_FLOAT32: return gguf_get_val_f32(gguf_, id);
            case GGUF_TYPE_FLOAT64: return gguf_get_val_f64(gguf_, id);
            case GGUF_TYPE_UINT32: return gguf_get_val_u32(gguf_, id);
            case GGUF_TYPE_INT32: return gguf_get_val_i32(gguf_, id);
            default: return 1;  // there, at any rate
        }
    }

    bool has(const std::string& key) const { return gguf_find_key(gguf_, key.c_str()) >= 0; }

    // One number for all layers, or an array of one per layer.
    Result<std::vector<uint32_t>> per_layer(const std::string& key, uint32_t layer_count) const {
        const int64_t id = gguf_find_key(gguf_, key.c_str());
        if (id < 0) return missing(key);
        if (gguf_get_kv_type(gguf_, id) != GGUF_TYPE_ARRAY) {
            const Result<uint32_t> one = number(key);
            if (!one) return one.status();
            return std::vector<uint32_t>(layer_count, *one);
        }
        const gguf_type type = gguf_get_arr_type(gguf_, id);
        if (gguf_get_arr_n(gguf_, id) != layer_count ||
            (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32)) {
            return missing(key);
        }
        const auto* values = static_cast<const uint32_t*>(gguf_get_arr_data(gguf_, id));
        return std::vector<uint32_t>(values, values + layer_count);
    }

    // For each layer whether it is marked: by an array, or all but every n-th, n being a number or,
    // without the key, `otherwise`.
    Result<std::vector<bool>> pattern(const std::string& key, uint32_t layer_count,
                                      uint32_t otherwise) const {
        const int64_t id = gguf_find_key(gguf_, key.c_str());
        std::vector<bool> marked(layer_count);
        if (id >= 0 && gguf_get_kv_type(gguf_, id) == GGUF_TYPE_ARRAY) {
            const gguf_type type = gguf_get_arr_type(gguf_, id);
            const bool wide = type == GGUF_TYPE_UINT32 || type == GGUF_TYPE_INT32;
            if (gguf_get_arr_n(gguf_, id) < layer_count || (!wide && type != GGUF_TYPE_BOOL)) {
                return missing(key);
            }
            const auto* data = static_cast<const std::byte*>(gguf_get_arr_data(gguf_, id));
            for (uint32_t l = 0; l < layer_count; ++l) {
                marked[l] = data[l * (wide ? sizeof(uint32_t) : 1)] != std::byte{0};
            }
            return marked;
        }
        const Result<uint32_t> every = id < 0 ? Result<uint32_t>(otherwise) : number(key);
        if (!every) return every.status();
        for (uint32_t l = 0; l < layer_count; ++l) marked[l] = l % *every != *every - 1;
        return marked;
    }

    Result<uint32_t> number(const std::string& key, uint32_t least = 1) const {
        const int64_t id = gguf_find_key(gguf_, key.c_str());
        if (id < 0) return missing(key);
        uint64_t value = 0;
        switch (gguf_get_kv_type(gguf_, id)) {
            case GGUF_TYPE_UINT16: value = gguf_get_val_u16(gguf_, id); break;
            case GGUF_TYPE_UINT32: value = gguf_get_val_u32(gguf_, id); break;
            case GGUF_TYPE_UINT64: value = gguf_get_val_u64(gguf_, id); break;
            case GGUF_TYPE_INT32: value = static_cast<uint64_t>(gguf_get_val_i32(gguf_, id)); break;
            default: return missing(key);
        }
        if (value < least || value > (1U << 30)) {
            return file_error(StatusCode::corrupt, path_, fmt::format("{} = {}", key, value));
        }
        return static_cast<uint32_t>(value);
    }

private:
    Status missing(const std::string& key) const {
        return file_error(StatusCode::corrupt, path_,
                          fmt::format("the header has no usable {}", key));
    }

    const gguf_context* gguf_;
    std::string path_;
};

// What the cache of a served architecture does not have.
struct Feature {
    const char* key;  // behind "llama."; refused when it is there and not 0
    const char* refusal;
};
constexpr std::array<Feature, 9> kFeatures = {{
    {"attention.max_alibi_bias", "biases attention by distance (ALiBi)"},
    {"attn_logit_softcapping", "caps its attention logits"},
    {"attention.key_length_mla", "keeps a compressed (MLA) cache"},
    {"attention.kv_lora_rank", "keeps a compressed (MLA) cache"},
    {"attention.indexer.head_count", "chooses tokens with an indexer of its own"},
    {"attention.shared_kv_layers", "shares the KV cache between layers"},
    {"ssm.conv_kernel", "has recurrent layers"},
    {"wkv.head_size", "has recurrent layers"},
    {"shortconv.l_cache", "has convolution layers"},
}};

// Why keys or tensors of the file keep it from being served, or "".
std::string feature_refusal(const Header& header, const gguf_context* gguf,
                            const std::string& architecture) {
    for (const Feature& feature : kFeatures) {
        const std::string key = architecture + "." + feature.key;
        const double value = header.real(key);
        if (value == 0) continue;
        return fmt::format("{} ({} = {}), which Shoal does not serve yet", feature.refusal, key,
                           value);
    }
    if (gguf_find_tensor(gguf, "blk.0.attn_sinks.weight") < 0) return "";
    return "uses attention sinks (blk.0.attn_sinks.weight), which Shoal does not serve yet";
}

Status check_architecture(const Header& header, const gguf_context* gguf,
                          const ModelFile& model) {
    std::vector<std::string_view> served;
    std::string refusal = "is not one that Shoal was tested with";
    bool is_known = false;
    for (const Architecture& known : kArchitectures) {
        if (known.refusal.empty()) served.push_back(known.name);
        if (known.name != model.architecture) continue;
        refusal = known.refusal;
        is_known = true;
    }
    if (!is_known || refusal.empty()) {
        const std::string feature = feature_refusal(header, gguf, model.architecture);
        if (!feature.empty()) refusal = feature;
    }
    if (refusal.empty()) return Status::ok();
    return file_error(StatusCode::unsupported, model.path,
                      fmt::format("architecture \"{}\" {}. Supported: {}", model.architecture,
                                  refusal, fmt::join(served, ", ")));
}

// A download that was cut has its whole header but not its last tensors.
Status check_length(const std::string& path, const gguf_context* gguf, uint64_t file_bytes) {
    uint64_t needed = gguf_get_data_offset(gguf);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const uint64_t end = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i) +
                             gguf_get_tensor_size(gguf, i);
        needed = std::max(needed, end);
    }
    if (needed <= file_bytes) return Status::ok();
    return file_error(StatusCode::corrupt, path,
                      fmt::format("the file is cut: {} of {} bytes are there",
                                  grouped(file_bytes), grouped(needed)));
}

Status check_heads(const ModelFile& model) {
    for (const LayerShape& layer : model.shape.layers) {
        const uint32_t dims[] = {layer.k_head_dim, layer.v_head_dim};
        for (const uint32_t dim : dims) {
            if (dim >= 32 && dim <= 256 && dim % 16 == 0) continue;
            return file_error(StatusCode::unsupported, model.path,
                              fmt::format("head_dim = {}: Shoal serves 32 to 256 in steps of 16",
                                          dim));
        }
        const uint32_t kv_heads = layer.kv_head_count;
        const uint32_t q_heads = model.shape.q_head_count;
        if (q_heads % kv_heads == 0 && q_heads / kv_heads <= 16) continue;
        return file_error(StatusCode::unsupported, model.path,
                          fmt::format("{} query heads on {} KV heads: Shoal serves whole ratios "
                                      "up to 16",
                                      q_heads, kv_heads));
    }
    return Status::ok();
}

// Which layers see a window only: Gemma's, as llama.cpp reads them.
Status read_windows(const Header& header, ModelFile& model) {
    const std::string prefix = model.architecture + ".attention.sliding_window";
    if (model.architecture != "gemma3" || !header.has(prefix)) return Status::ok();
    const Result<uint32_t> window = header.number(prefix, 0);
    if (!window) return window.status();
    if (*window == 0) return Status::ok();
    constexpr uint32_t kEvery = 6;
    const auto slides = header.pattern(prefix + "_pattern", model.layer_count, kEvery);
    if (!slides) return slides.status();
    for (uint32_t l = 0; l < model.layer_count; ++l) {
        if (!(*slides)[l]) continue;
        model.shape.layers[l].kind = LayerKind::sliding;
        model.shape.layers[l].window = *window;
    }
    return Status::ok();
}

Status read_shape(const Header& header, ModelFile& model) {
    const std::string prefix = model.architecture + ".";
    const Result<uint32_t> layers = header.number(prefix + "block_count");
    if (!layers) return layers.status();
    if (*layers > 4096) {
        return file_error(StatusCode::corrupt, model.path,
                          fmt::format("{}block_count = {}", prefix, *layers));
    }
    model.layer_count = *layers;
    const auto q_heads = header.per_layer(prefix + "attention.head_count", *layers);
    if (!q_heads) return q_heads.status();
    const std::string kv_key = prefix + "attention.head_count_kv";
    const auto kv_heads = header.has(kv_key) ? header.per_layer(kv_key, *layers) : q_heads;
    if (!kv_heads) return kv_heads.status();
    const Result<uint32_t> embedding = header.number(prefix + "embedding_length");
    if (!embedding) return embedding.status();
    const Result<uint32_t> trained = header.number(prefix + "context_length");
    if (!trained) return trained.status();
    model.context_trained = *trained;
    model.shape.q_head_count = q_heads->front();
    uint32_t k_dim = *embedding / std::max(1U, q_heads->front());
    uint32_t v_dim = k_dim;
    for (const auto& [key, dim] : {std::pair<const char*, uint32_t*>{"key_length", &k_dim},
                                   std::pair<const char*, uint32_t*>{"value_length", &v_dim}}) {
        const std::string name = prefix + "attention." + key;
        if (!header.has(name)) continue;
        const Result<uint32_t> read = header.number(name);
        if (!read) return read.status();
        *dim = *read;
    }
    for (uint32_t l = 0; l < *layers; ++l) {
        if ((*q_heads)[l] != q_heads->front() || (*kv_heads)[l] == 0) {
            return file_error(StatusCode::unsupported, model.path,
                              "layers have different numbers of heads, which Shoal does not serve");
        }
        model.shape.layers.push_back({.kind = LayerKind::full, .kv_head_count = (*kv_heads)[l],
                                      .k_head_dim = k_dim, .v_head_dim = v_dim, .window = 0});
    }
    SHOAL_TRY(read_windows(header, model));
    return check_heads(model);
}

Result<uint64_t> readable_bytes(const std::string& path) {
    if (path.empty()) {
        return Status::error(StatusCode::invalid_argument, "model_path: must name a GGUF file");
    }
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
        return file_error(StatusCode::not_found, path, "is a folder, not a model file");
    }
    // A pipe would be waited for, without end.
    if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
        return file_error(StatusCode::invalid_argument, path, "is not a regular file");
    }
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) {
        return file_error(StatusCode::not_found, path, std::generic_category().message(errno));
    }
    std::array<char, 4> magic = {};
    const size_t got = std::fread(magic.data(), 1, magic.size(), file);
    std::fclose(file);
    if (got != magic.size() || std::string_view(magic.data(), 4) != "GGUF") {
        return file_error(StatusCode::corrupt, path,
                          "is not a GGUF model file (it does not begin with \"GGUF\")");
    }
    return std::filesystem::file_size(path, error);
}

}  // namespace

uint64_t ModelFile::kv_bytes_per_token(const RowFormat& rows) const {
    uint64_t bytes = 0;
    for (const LayerShape& layer : shape.layers) {
        if (layer.kind != LayerKind::full) continue;
        bytes += uint64_t{layer.kv_head_count} *
                 (row_bytes(rows.k, layer.k_head_dim) + row_bytes(rows.v, layer.v_head_dim));
    }
    return bytes;
}

uint64_t ModelFile::lanes() const {
    uint64_t lanes = 0;
    for (const LayerShape& layer : shape.layers) {
        if (layer.kind == LayerKind::full) lanes += layer.kv_head_count;
    }
    return lanes;
}

Result<ModelFile> read_model_file(const std::string& path) {
    const Result<uint64_t> bytes = readable_bytes(path);
    if (!bytes) return bytes.status();
    const Gguf gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
    if (!gguf) {
        return file_error(StatusCode::corrupt, path,
                          "the GGUF header is damaged or cut (llama.cpp's log says where)");
    }
    const Header header(gguf.get(), path);
    ModelFile model;
    model.path = path;
    model.file_bytes = *bytes;
    model.architecture = header.text("general.architecture", "");
    if (model.architecture.empty()) {
        return file_error(StatusCode::corrupt, path, "the header names no general.architecture");
    }
    model.name = header.text("general.name", std::filesystem::path(path).filename().string());
    SHOAL_TRY(check_architecture(header, gguf.get(), model));
    SHOAL_TRY(check_length(path, gguf.get(), *bytes));
    SHOAL_TRY(read_shape(header, model));
    const LayerShape& first = model.shape.layers.front();
    model.fingerprint = fmt::format("{} \"{}\", {} layers, {} / {} heads x {}, {} tensors",
                                    model.architecture, model.name, model.layer_count,
                                    model.shape.q_head_count, first.kv_head_count,
                                    first.k_head_dim, gguf_get_n_tensors(gguf.get()));
    return model;
}

std::optional<DType> row_dtype(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16: return DType::f16;
        case GGML_TYPE_BF16: return DType::bf16;
        case GGML_TYPE_F32: return DType::f32;
        default: return std::nullopt;
    }
}

}  // namespace shoal::llama_host
