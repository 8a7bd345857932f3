// Contexts of a real model, with and without Shoal, side by side in one process.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "runtime/engines/llama_cpp/shoal_llama.h"

namespace shoal::testing {

// The side calls of the plugin, reached as a host program does. Loads the plugin at first use.
struct Plugin {
    ggml_backend_reg_t registry = nullptr;
    ggml_backend_dev_t device = nullptr;
    shoal_llama_configure_t configure = nullptr;
    shoal_llama_reconfigure_t reconfigure = nullptr;
    shoal_llama_config_toml_t config_toml = nullptr;
    shoal_llama_stats_json_t stats_json = nullptr;
    shoal_llama_describe_t describe = nullptr;
    shoal_llama_reset_stats_t reset_stats = nullptr;
    shoal_llama_write_profile_t write_profile = nullptr;
    shoal_llama_attended_t attended = nullptr;
    shoal_llama_set_delegate_t set_delegate = nullptr;
    shoal_llama_last_error_t last_error = nullptr;
};
const Plugin& plugin();

// Lines logged since the last call, by llama.cpp and the plugin.
std::string take_log();

enum class Engine { stock, shoal };

// The test model, loaded once per engine.
llama_model* model(Engine engine);

struct ContextOptions {
    uint32_t n_ctx = 1024;
    uint32_t n_ubatch = 256;
    uint32_t n_seq_max = 1;
    // One: ggml's barriers between two threads take forever on a machine that is busy otherwise.
    int32_t threads = 1;
    bool kv_unified = false;
    bool offload_kqv = true;
    bool swa_full = true;  // false: sliding layers keep a window only
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_model* model = nullptr;  // null: the test model of the engine
};

using Context = std::unique_ptr<llama_context, decltype(&llama_free)>;
// Null when llama.cpp could not make it.
Context make_context(Engine engine, const ContextOptions& options);

// Logits of the positions that were asked for, one vector each.
using Logits = std::vector<std::vector<float>>;

// Decodes `tokens` from position `first` on, in one llama_decode, of sequence `sequence`; logits
// of every `every`-th and the last token. Fails the test when llama_decode does.
Logits decode(llama_context* context, const std::vector<llama_token>& tokens, llama_pos first,
              size_t every = 1, llama_seq_id sequence = 0);
// One token per llama_decode.
Logits decode_singly(llama_context* context, const std::vector<llama_token>& tokens,
                     llama_pos first, llama_seq_id sequence = 0);
// What llama_decode answers for one token.
int32_t try_decode(llama_context* context, llama_token token, llama_pos position);

// The first `count` tokens of a novel, from character `skip` on.
std::vector<llama_token> novel_tokens(size_t count, const char* file = "persuasion.txt",
                                      size_t skip = 2000);
std::vector<llama_token> slice(const std::vector<llama_token>& tokens, size_t begin, size_t end);

// Positions at which `a` and `b` differ in any bit.
size_t count_different(const Logits& a, const Logits& b);

// Kullback-Leibler divergence of softmax(other) from softmax(base), mean over positions.
double kl_mean(const Logits& base, const Logits& other);

// Hands attention to ggml's kernel while alive.
class DelegateScope {
public:
    DelegateScope() { plugin().set_delegate(1); }
    ~DelegateScope() { plugin().set_delegate(0); }
    DelegateScope(const DelegateScope&) = delete;
    DelegateScope& operator=(const DelegateScope&) = delete;
};

}  // namespace shoal::testing
