#include "llama_support.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>

namespace shoal::testing {

namespace {

std::mutex log_mutex;
std::string log_text;

void keep_log(ggml_log_level, const char* text, void*) {
    const std::lock_guard lock(log_mutex);
    log_text += text;
}

template <typename Function>
void find(ggml_backend_reg_t registry, const char* name, Function& function) {
    function = reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
    EXPECT_NE(function, nullptr) << name;
}

Plugin load_plugin() {
    llama_log_set(keep_log, nullptr);
    llama_backend_init();
    Plugin p;
    p.registry = ggml_backend_load(SHOAL_TEST_PLUGIN);
    if (p.registry == nullptr) {
        ADD_FAILURE() << SHOAL_TEST_PLUGIN << " does not load: " << take_log();
        std::abort();
    }
    p.device = ggml_backend_reg_dev_get(p.registry, 0);
    find(p.registry, "shoal_llama_configure", p.configure);
    find(p.registry, "shoal_llama_reconfigure", p.reconfigure);
    find(p.registry, "shoal_llama_config_toml", p.config_toml);
    find(p.registry, "shoal_llama_stats_json", p.stats_json);
    find(p.registry, "shoal_llama_describe", p.describe);
    find(p.registry, "shoal_llama_reset_stats", p.reset_stats);
    find(p.registry, "shoal_llama_write_profile", p.write_profile);
    find(p.registry, "shoal_llama_attended", p.attended);
    find(p.registry, "shoal_llama_set_delegate", p.set_delegate);
    find(p.registry, "shoal_llama_last_error", p.last_error);
    return p;
}

std::vector<float> logits_at(llama_context* context, int32_t index) {
    const float* logits = llama_get_logits_ith(context, index);
    const llama_vocab* vocab = llama_model_get_vocab(llama_get_model(context));
    return {logits, logits + llama_vocab_n_tokens(vocab)};
}

double log_sum_exp(const std::vector<float>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const float v : x) sum += std::exp(v - top);
    return top + std::log(sum);
}

double kl(const std::vector<float>& base, const std::vector<float>& other) {
    const double base_lse = log_sum_exp(base);
    const double other_lse = log_sum_exp(other);
    double sum = 0;
    for (size_t i = 0; i < base.size(); ++i) {
        const double p = std::exp(base[i] - base_lse);
        sum += p * ((base[i] - base_lse) - (other[i] - other_lse));
    }
    return sum;
}

}  // namespace

const Plugin& plugin() {
    static const Plugin loaded = load_plugin();
    return loaded;
}

std::string take_log() {
    const std::lock_guard lock(log_mutex);
    return std::exchange(log_text, "");
}

llama_model* model(Engine engine) {
    plugin();
    // Never freed: ggml's own statics may be gone before ours.
    static auto& models = *new std::map<Engine, llama_model*>;
    llama_model*& loaded = models[engine];
    if (loaded == nullptr) {
        static ggml_backend_dev_t no_device[] = {nullptr};
        static ggml_backend_dev_t shoal_device[] = {plugin().device, nullptr};
        llama_model_params params = llama_model_default_params();
        params.devices = engine == Engine::stock ? no_device : shoal_device;
        loaded = llama_model_load_from_file(SHOAL_TEST_MODEL, params);
        EXPECT_NE(loaded, nullptr) << SHOAL_TEST_MODEL;
    }
    return loaded;
}

Context make_context(Engine engine, const ContextOptions& options) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options.n_ctx;
    params.n_batch = options.n_ctx;
    params.n_ubatch = options.n_ubatch;
    params.n_seq_max = options.n_seq_max;
    params.n_threads = options.threads;
    params.n_threads_batch = options.threads;
    params.kv_unified = options.kv_unified;
    params.offload_kqv = options.offload_kqv;
    params.swa_full = options.swa_full;
    params.type_k = options.type_k;
    params.type_v = options.type_v;
    params.flash_attn_type = options.flash_attn;
    llama_model* loaded = options.model != nullptr ? options.model : model(engine);
    return {llama_init_from_model(loaded, params), &llama_free};
}

Logits decode(llama_context* context, const std::vector<llama_token>& tokens, llama_pos first,
              size_t every, llama_seq_id sequence) {
    llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
    batch.n_tokens = static_cast<int32_t>(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = first + static_cast<llama_pos>(i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = i % every == 0 || i + 1 == tokens.size();
    }
    Logits result;
    const int32_t status = llama_decode(context, batch);
    EXPECT_EQ(status, 0) << plugin().last_error();
    for (size_t i = 0; status == 0 && i < tokens.size(); ++i) {
        if (batch.logits[i]) result.push_back(logits_at(context, static_cast<int32_t>(i)));
    }
    llama_batch_free(batch);
    return result;
}

Logits decode_singly(llama_context* context, const std::vector<llama_token>& tokens,
                     llama_pos first, llama_seq_id sequence) {
    Logits result;
    for (size_t i = 0; i < tokens.size() && !::testing::Test::HasFailure(); ++i) {
        Logits one = decode(context, {tokens[i]}, first + static_cast<llama_pos>(i), 1, sequence);
        result.insert(result.end(), one.begin(), one.end());
    }
    return result;
}

int32_t try_decode(llama_context* context, llama_token token, llama_pos position) {
    llama_batch batch = llama_batch_get_one(&token, 1);
    batch.pos = &position;
    return llama_decode(context, batch);
}

std::vector<llama_token> novel_tokens(size_t count, const char* file, size_t skip) {
    std::ifstream stream(std::string(SHOAL_TEST_TEXT_DIR) + "/" + file);
    std::stringstream content;
    content << stream.rdbuf();
    // Novels run at about four characters a token.
    const std::string text = content.str().substr(skip, count * 8);
    std::vector<llama_token> tokens(text.size());
    const int32_t n = llama_tokenize(llama_model_get_vocab(model(Engine::stock)), text.data(),
                                     static_cast<int32_t>(text.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), true, false);
    EXPECT_GE(n, static_cast<int32_t>(count)) << file;
    tokens.resize(count);
    return tokens;
}

std::vector<llama_token> slice(const std::vector<llama_token>& tokens, size_t begin, size_t end) {
    return {tokens.begin() + static_cast<ptrdiff_t>(begin),
            tokens.begin() + static_cast<ptrdiff_t>(end)};
}

size_t count_different(const Logits& a, const Logits& b) {
    EXPECT_EQ(a.size(), b.size());
    size_t count = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        count += a[i].size() != b[i].size() ||
                 std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0;
    }
    return count;
}

double kl_mean(const Logits& base, const Logits& other) {
    EXPECT_EQ(base.size(), other.size());
    double sum = 0;
    for (size_t i = 0; i < base.size() && i < other.size(); ++i) sum += kl(base[i], other[i]);
    return base.empty() ? 0 : sum / static_cast<double>(base.size());
}

}  // namespace shoal::testing
