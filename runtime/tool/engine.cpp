#include "runtime/tool/engine.hpp"

#include <sched.h>

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "runtime/clock.hpp"
#include "runtime/engines/llama_cpp/shoal_llama_host.h"
#include "runtime/tool/engine_log.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

bool show_load_progress(float part, void* bar) {
    static_cast<ProgressBar*>(bar)->update(static_cast<uint64_t>(part * 100.0F));
    return !interrupted();
}

bool abort_on_interrupt(void*) { return interrupted(); }

// The plugin's own sentence when there is one: it names field and value.
std::string reason(const Plugin* plugin) {
    if (plugin != nullptr && !plugin->last_error().empty()) return plugin->last_error();
    const std::string logged = EngineLog::instance().last_error();
    return logged.empty() ? "llama.cpp gives no reason" : logged;
}

}  // namespace

const char* engine_name(EngineKind kind) {
    switch (kind) {
        case EngineKind::stock: return "stock llama.cpp";
        case EngineKind::stock_no_flash: return "stock, no flash attention";
        case EngineKind::shoal: return "Shoal";
    }
    return "";
}

uint32_t default_threads() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
}

Result<std::unique_ptr<Engine>> Engine::load(EngineKind kind, const EngineOptions& options) {
    std::unique_ptr<Engine> engine(new Engine());
    engine->kind_ = kind;
    engine->options_ = options;
    std::array<ggml_backend_dev_t, 2> devices = {nullptr, nullptr};  // none: the CPU alone
    if (kind == EngineKind::shoal) {
        const Result<const Plugin*> plugin = Plugin::load();
        if (!plugin) return plugin.status();
        engine->plugin_ = *plugin;
        devices[0] = (*plugin)->device();
    }
    ProgressBar bar("loading the model", "%", 100);
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.progress_callback = show_load_progress;
    params.progress_callback_user_data = &bar;
    EngineLog::instance().clear();
    engine->model_.reset(llama_model_load_from_file(options.model.path.c_str(), params));
    if (interrupted()) return interrupted_status();
    if (!engine->model_) {
        return Status::error(StatusCode::corrupt,
                             fmt::format("{}: llama.cpp cannot load it: {}", options.model.path,
                                         reason(engine->plugin_)));
    }
    return engine;
}

Status Engine::make_context(uint32_t context_tokens) {
    context_.reset();
    if (is_shoal()) {
        SHOAL_TRY(plugin_->configure(options_.config, options_.model.fingerprint));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = padded_context(context_tokens);
    params.n_batch = options_.batch;
    params.n_ubatch = options_.micro_batch;
    params.n_seq_max = 1;
    params.swa_full = false;
    params.n_threads = options_.threads;
    params.n_threads_batch = options_.threads;
    params.flash_attn_type = kind_ == EngineKind::stock_no_flash ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                                                 : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = to_ggml(options_.model.shape.rows.k);
    params.type_v = to_ggml(options_.model.shape.rows.v);
    params.abort_callback = abort_on_interrupt;
    EngineLog::instance().clear();
    context_.reset(llama_init_from_model(model_.get(), params));
    if (context_) return Status::ok();
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("no context of {} tokens: {}", params.n_ctx,
                                     reason(plugin_)));
}

Status Engine::set_policy(const Config& config) { return plugin_->reconfigure(config); }

Status Engine::decode_failed(int32_t code) const {
    if (code == 2 || interrupted()) return interrupted_status();
    if (code == 1) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("the context is full at {} tokens: raise -c", depth()));
    }
    return Status::error(StatusCode::internal,
                         fmt::format("{}: decoding failed ({}): {}", engine_name(kind_), code,
                                     reason(plugin_)));
}

Status Engine::prefill(std::span<const llama_token> tokens,
                       const std::function<void(uint64_t)>& progress) {
    for (size_t done = 0; done < tokens.size();) {
        if (interrupted()) return interrupted_status();
        const size_t count = std::min<size_t>(options_.micro_batch, tokens.size() - done);
        // llama_decode does not write to the tokens; its C type only lacks the const.
        auto* first = const_cast<llama_token*>(tokens.data() + done);
        const uint64_t start = now_ns();
        const int32_t code =
            llama_decode(context_.get(), llama_batch_get_one(first, static_cast<int32_t>(count)));
        if (code != 0) return decode_failed(code);
        llama_synchronize(context_.get());
        if (watcher_) watcher_({start, now_ns(), static_cast<uint32_t>(count), true});
        done += count;
        if (progress) progress(done);
    }
    return Status::ok();
}

Result<double> Engine::decode(llama_token token) {
    const uint64_t start = now_ns();
    const int32_t code = llama_decode(context_.get(), llama_batch_get_one(&token, 1));
    if (code != 0) return decode_failed(code);
    llama_synchronize(context_.get());
    const uint64_t end = now_ns();
    if (watcher_) watcher_({start, end, 1, false});
    return static_cast<double>(end - start) * 1e-6;
}

std::span<const float> Engine::logits() const {
    return {llama_get_logits_ith(context_.get(), -1), vocab_size()};
}

Status Engine::save_kv(const std::string& path, std::span<const llama_token> tokens,
                       std::span<const float> logits) const {
    const char* error = shoal_llama_save_sequence(context(), path.c_str(), tokens.data(),
                                                  tokens.size(), logits.data());
    return error == nullptr ? Status::ok() : input_error(fmt::format("--save-kv: {}", error));
}

Status Engine::load_kv(const std::string& path, std::span<llama_token> tokens,
                       std::vector<float>& logits) const {
    logits.resize(vocab_size());
    size_t count = 0;
    const char* error = shoal_llama_load_sequence(context(), path.c_str(), tokens.data(),
                                                  tokens.size(), &count, logits.data());
    if (error != nullptr) return input_error(fmt::format("--load-kv: {}", error));
    if (count == tokens.size()) return Status::ok();
    return input_error(fmt::format("--load-kv {}: changed while it was read", path));
}

Status Engine::truncate(uint32_t position) {
    const bool removed = llama_memory_seq_rm(llama_get_memory(context_.get()), 0,
                                             static_cast<llama_pos>(position), -1);
    if (removed) return Status::ok();
    return Status::error(StatusCode::internal, "llama.cpp could not shorten the sequence");
}

uint32_t Engine::depth() const {
    return static_cast<uint32_t>(
        llama_memory_seq_pos_max(llama_get_memory(context_.get()), 0) + 1);
}

std::vector<llama_token> Engine::tokenize(const std::string& text, bool special) const {
    const auto length = static_cast<int32_t>(text.size());
    const int32_t count = -llama_tokenize(vocab(), text.data(), length, nullptr, 0, true, special);
    std::vector<llama_token> tokens(static_cast<size_t>(std::max(0, count)));
    llama_tokenize(vocab(), text.data(), length, tokens.data(), count, true, special);
    return tokens;
}

std::vector<llama_token> Engine::tokenize_more(const std::string& text) const {
    const auto length = static_cast<int32_t>(text.size());
    const int32_t count = -llama_tokenize(vocab(), text.data(), length, nullptr, 0, false, false);
    std::vector<llama_token> tokens(static_cast<size_t>(std::max(0, count)));
    llama_tokenize(vocab(), text.data(), length, tokens.data(), count, false, false);
    return tokens;
}

std::string Engine::piece(llama_token token) const {
    std::array<char, 64> small = {};
    const int32_t length = llama_token_to_piece(vocab(), token, small.data(),
                                                static_cast<int32_t>(small.size()), 0, false);
    if (length >= 0) return {small.data(), static_cast<size_t>(length)};
    std::string text(static_cast<size_t>(-length), '\0');
    llama_token_to_piece(vocab(), token, text.data(), -length, 0, false);
    return text;
}

}  // namespace shoal::tool
