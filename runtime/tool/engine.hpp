// llama.cpp as the tool uses it: a model on the CPU, with its KV cache either in llama.cpp's own
// memory (stock) or in Shoal's device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llama.h>

#include "runtime/tool/plugin.hpp"
#include "runtime/tool/preflight.hpp"
#include "shoal/config.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

enum class EngineKind : uint8_t {
    stock,          // llama.cpp alone
    stock_no_flash, // llama.cpp alone, without its flash attention
    shoal,
};
const char* engine_name(EngineKind kind);

struct LlamaDeleter {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* context) const { llama_free(context); }
    void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using ModelPtr = std::unique_ptr<llama_model, LlamaDeleter>;
using ContextPtr = std::unique_ptr<llama_context, LlamaDeleter>;
using SamplerPtr = std::unique_ptr<llama_sampler, LlamaDeleter>;

struct EngineOptions {
    ModelFile model;
    Config config;
    uint32_t context_tokens = 0;  // rounded up to 256
    uint32_t batch = 2048;
    uint32_t micro_batch = 512;
    int threads = 0;
};

// One model and one context. A model belongs to one kind: the device list is fixed at load.
class Engine {
public:
    // Loads the model; makes no context.
    static Result<std::unique_ptr<Engine>> load(EngineKind kind, const EngineOptions& options);

    // Makes the context anew: an empty KV cache of `context_tokens`.
    Status make_context(uint32_t context_tokens);
    void drop_context() { context_.reset(); }

    EngineKind kind() const { return kind_; }
    bool is_shoal() const { return kind_ == EngineKind::shoal; }
    const Plugin& plugin() const { return *plugin_; }
    const EngineOptions& options() const { return options_; }
    llama_context* context() const { return context_.get(); }
    const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
    const llama_model* model() const { return model_.get(); }
    uint32_t vocab_size() const { return static_cast<uint32_t>(llama_vocab_n_tokens(vocab())); }

    // Changes Shoal's policy between decodes.
    Status set_policy(const Config& config);
    // Configuration that the next make_context() uses.
    void set_config(const Config& config) { options_.config = config; }

    // Appends tokens in micro-batches; the logits of the last one remain. Ctrl-C stops it with
    // interrupted_status(). `progress` is called with the tokens done.
    Status prefill(std::span<const llama_token> tokens,
                   const std::function<void(uint64_t)>& progress = {});
    // Appends one token; returns milliseconds.
    Result<double> decode(llama_token token);
    std::span<const float> logits() const;
    // Called after every micro-batch and token, with what it was.
    struct Work {
        uint64_t begin_ns = 0;
        uint64_t end_ns = 0;
        uint32_t tokens = 0;
        bool is_prefill = false;
    };
    void watch(std::function<void(const Work&)> watcher) { watcher_ = std::move(watcher); }
    // Saves the sequence that the context holds, `tokens`, with the logits of the next token.
    Status save_kv(const std::string& path, std::span<const llama_token> tokens,
                   std::span<const float> logits) const;
    // Fills the empty context from a file; `tokens` has room for what the file holds.
    Status load_kv(const std::string& path, std::span<llama_token> tokens,
                   std::vector<float>& logits) const;
    // Forgets the tokens from `position` on.
    Status truncate(uint32_t position);
    uint32_t depth() const;

    std::vector<llama_token> tokenize(const std::string& text, bool special) const;
    // The tokens of a text that goes on after others.
    std::vector<llama_token> tokenize_more(const std::string& text) const;
    std::string piece(llama_token token) const;

private:
    Engine() = default;
    Status decode_failed(int32_t code) const;

    EngineKind kind_ = EngineKind::stock;
    const Plugin* plugin_ = nullptr;
    EngineOptions options_;
    ModelPtr model_;
    ContextPtr context_;
    std::function<void(const Work&)> watcher_;
};

uint32_t default_threads();

}  // namespace shoal::tool
