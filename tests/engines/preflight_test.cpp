// shoal_llama_preflight: every refusal is one sentence that names what it is about, and what is
// served passes. The device's own refusals of the same: refusal_test.cpp.
#include <gmock/gmock.h>

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "gguf.h"
#include "runtime/engines/llama_cpp/shoal_llama_host.h"
#include "llama_support.hpp"

namespace shoal::testing {

namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A model file of keys alone.
class HeaderFile {
public:
    explicit HeaderFile(const std::string& architecture) : name_(architecture) {
        gguf_set_val_str(gguf_, "general.architecture", architecture.c_str());
        number("block_count", 2).number("context_length", 2048).number("embedding_length", 512);
        number("attention.head_count", 8).number("attention.head_count_kv", 2);
    }
    ~HeaderFile() {
        gguf_free(gguf_);
        std::remove(path_.c_str());
    }
    HeaderFile(const HeaderFile&) = delete;
    HeaderFile& operator=(const HeaderFile&) = delete;

    HeaderFile& number(const char* key, uint32_t value) {
        gguf_set_val_u32(gguf_, (name_ + "." + key).c_str(), value);
        return *this;
    }
    HeaderFile& real(const char* key, float value) {
        gguf_set_val_f32(gguf_, (name_ + "." + key).c_str(), value);
        return *this;
    }
    HeaderFile& tensor(const char* name) {
        const ggml_init_params params = {1 << 16, nullptr, false};
        ggml_context* context = ggml_init(params);
        ggml_tensor* tensor = ggml_new_tensor_1d(context, GGML_TYPE_F32, 8);
        ggml_set_name(tensor, name);
        gguf_add_tensor(gguf_, tensor);
        write(false);
        ggml_free(context);
        written_ = true;
        return *this;
    }
    const char* path() {
        if (!written_) write(true);
        return path_.c_str();
    }

private:
    void write(bool only_keys) {
        ASSERT_TRUE(gguf_write_to_file(gguf_, path_.c_str(), only_keys)) << path_;
    }

    std::string name_;
    std::string path_ =
        ::testing::TempDir() + "shoal_header_" + std::to_string(getpid()) + ".gguf";
    gguf_context* gguf_ = gguf_init_empty();
    bool written_ = false;
};

class Preflight : public ::testing::Test {
protected:
    Preflight() {
        devices_[0] = plugin().device;
        model_.devices = devices_;
        context_.n_ctx = 1024;
        take_log();
    }
    ~Preflight() override {
        plugin().configure(nullptr);
        unsetenv("SHOAL_CONFIG");
    }

    // What is said, "" when it would be served.
    std::string said(const char* path = SHOAL_TEST_MODEL) {
        const char* error = shoal_llama_preflight(path, &model_, &context_);
        return error == nullptr ? "" : error;
    }

    ggml_backend_dev_t devices_[3] = {nullptr, nullptr, nullptr};
    llama_model_params model_ = llama_model_default_params();
    llama_context_params context_ = llama_context_default_params();
};

}  // namespace

TEST_F(Preflight, ServesWhatIsServed) {
    EXPECT_EQ(said(), "");
    for (const char* architecture : {"llama", "qwen2", "qwen3", "gemma3"}) {
        EXPECT_EQ(said(HeaderFile(architecture).path()), "") << architecture;
    }
    context_.n_seq_max = 4;
    context_.type_k = GGML_TYPE_F32;
    context_.type_v = GGML_TYPE_BF16;
    context_.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    model_.n_gpu_layers = 31;
    model_.devices = nullptr;  // there is no other that takes layers
    EXPECT_EQ(said(), "");
    EXPECT_EQ(take_log(), "") << "it decides without a word of llama.cpp's";
}

TEST_F(Preflight, NoContextSizeIsThatOfTraining) {
    context_.n_ctx = 0;
    EXPECT_EQ(said(), "");
    context_.n_batch = 256;
    const Context context{llama_init_from_model(model(Engine::shoal), context_), &llama_free};
    ASSERT_TRUE(context) << plugin().last_error();
    EXPECT_EQ(llama_n_ctx(context.get()),
              static_cast<uint32_t>(llama_model_n_ctx_train(model(Engine::shoal))));
    ASSERT_EQ(plugin().configure("[host]\nkv_bytes = \"90MiB\"\n"), nullptr);
    EXPECT_THAT(said(), AllOf(StartsWith("n_ctx = 8192: needs "),
                              HasSubstr("host.kv_bytes allows 90.0 MiB. Largest context")));
}

TEST_F(Preflight, Parameters) {
    const llama_context_params context = context_;
    const auto expect_refused = [&](const char* message) {
        EXPECT_THAT(said(), StartsWith(message));
        context_ = context;
        model_.n_gpu_layers = -1;
        model_.split_mode = LLAMA_SPLIT_MODE_LAYER;
    };
    context_.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    expect_refused("flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED: Shoal needs it on");
    context_.offload_kqv = false;
    expect_refused("offload_kqv = false: would keep the KV cache out of Shoal: must be true");
    context_.type_k = GGML_TYPE_Q8_0;
    expect_refused("type_k = q8_0: Shoal keeps rows as f16, bf16 or f32");
    context_.type_v = GGML_TYPE_Q4_0;
    expect_refused("type_v = q4_0: Shoal keeps rows");
    context_.type_v = GGML_TYPE_COUNT;
    expect_refused("type_v = ");
    model_.n_gpu_layers = 30;
    expect_refused("n_gpu_layers = 30: Shoal holds the KV cache of all 30 layers or none: must be "
                   "31 or more, or -1 for all");
    model_.n_gpu_layers = 0;
    expect_refused("n_gpu_layers = 0: ");
    context_.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    expect_refused("ctx_type = 1: ");
    context_.n_seq_max = 257;
    expect_refused("n_seq_max = 257: llama.cpp allows up to 256");
    context_.n_ctx = (1U << 30) + 1;
    expect_refused("n_ctx = 1073741825: must be 0 (as many as the model was trained with, 8,192)");
    model_.split_mode = LLAMA_SPLIT_MODE_TENSOR;
    expect_refused("split_mode = LLAMA_SPLIT_MODE_TENSOR: ");
    EXPECT_EQ(said(), "") << "without them it is served";
}

TEST_F(Preflight, Devices) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    devices_[1] = cpu;
    EXPECT_EQ(said(), "devices = SHOAL0, CPU: Shoal holds the KV cache of all layers or none: must "
                      "be SHOAL0 alone");
    devices_[0] = cpu;
    devices_[1] = nullptr;
    EXPECT_THAT(said(), StartsWith("devices = CPU: "));
    devices_[0] = nullptr;
    EXPECT_THAT(said(), StartsWith("devices = none: "));
    model_.devices = nullptr;
    model_.split_mode = LLAMA_SPLIT_MODE_NONE;
    model_.main_gpu = -1;
    EXPECT_THAT(said(), StartsWith("devices = none: "));
    model_.main_gpu = 0;
    EXPECT_EQ(said(), "");
}

TEST_F(Preflight, Architectures) {
    const auto expect_refused = [&](HeaderFile& file, const char* message) {
        EXPECT_THAT(said(file.path()), HasSubstr(message));
    };
    const std::pair<const char*, const char*> architectures[] = {
        {"mamba2", "\"mamba2\" keeps no KV cache per token"},
        {"rwkv7", "\"rwkv7\" keeps no KV cache per token"},
        {"jamba", "\"jamba\" mixes attention with recurrent layers"},
        {"deepseek2", "\"deepseek2\" keeps a compressed (MLA) cache"},
        {"gemma2", "\"gemma2\" caps its attention logits"},
        {"gemma3n", "\"gemma3n\" shares the KV cache between layers"},
        {"gpt-oss", "\"gpt-oss\" uses attention sinks"},
        {"bert", "\"bert\" is an encoder"},
        {"newer", "\"newer\" is not one that Shoal was tested with. Supported: llama, qwen2"},
    };
    for (const auto& [name, message] : architectures) {
        HeaderFile file(name);
        expect_refused(file, message);
    }
    const std::pair<const char*, const char*> keys[] = {
        {"attention.max_alibi_bias", "biases attention by distance (ALiBi) (llama.attention."},
        {"attn_logit_softcapping", "caps its attention logits (llama.attn_logit_softcapping = 8)"},
        {"attention.kv_lora_rank", "keeps a compressed (MLA) cache (llama.attention.kv_lora"},
        {"attention.indexer.head_count", "chooses tokens with an indexer of its own"},
        {"attention.shared_kv_layers", "shares the KV cache between layers"},
        {"ssm.conv_kernel", "has recurrent layers (llama.ssm.conv_kernel = 8)"},
        {"wkv.head_size", "has recurrent layers"},
        {"shortconv.l_cache", "has convolution layers"},
    };
    for (const auto& [key, message] : keys) {
        HeaderFile number("llama");
        expect_refused(number.number(key, 8), message);
        HeaderFile real("llama");
        expect_refused(real.real(key, 8.0F), message);
        EXPECT_EQ(said(HeaderFile("llama").real(key, 0.0F).path()), "") << key << " = 0";
    }
    HeaderFile hybrid("newer");
    expect_refused(hybrid.number("ssm.conv_kernel", 4), "\"newer\" has recurrent layers");
    HeaderFile sinks("llama");
    expect_refused(sinks.tensor("blk.0.attn_sinks.weight"), "uses attention sinks (blk.0.");
    HeaderFile heads("llama");
    expect_refused(heads.number("attention.key_length", 24), "head_dim = 24");
}

TEST_F(Preflight, Files) {
    EXPECT_THAT(said("/nonexistent.gguf"), HasSubstr("/nonexistent.gguf: No such file"));
    EXPECT_THAT(said(""), HasSubstr("must name a GGUF file"));
    EXPECT_THAT(said("/"), HasSubstr("is a folder"));
    const std::string path = ::testing::TempDir() + "shoal_preflight_cut.gguf";
    std::ofstream(path) << "hello, this is a text";
    EXPECT_THAT(said(path.c_str()), HasSubstr("is not a GGUF model file"));
    std::ofstream(path) << "GGUF but no more";
    EXPECT_THAT(said(path.c_str()), HasSubstr("the GGUF header is damaged or cut"));
    std::remove(path.c_str());
}

TEST_F(Preflight, MissingArguments) {
    EXPECT_STREQ(shoal_llama_preflight(nullptr, &model_, &context_),
                 "model_path: must not be NULL");
    EXPECT_STREQ(shoal_llama_preflight("x", nullptr, &context_), "model_params: must not be NULL");
    EXPECT_STREQ(shoal_llama_preflight("x", &model_, nullptr), "context_params: must not be NULL");
}

TEST_F(Preflight, Configuration) {
    setenv("SHOAL_CONFIG", "/nonexistent/shoal.toml", 1);
    EXPECT_EQ(said(), "SHOAL_CONFIG: /nonexistent/shoal.toml: No such file or directory");
    unsetenv("SHOAL_CONFIG");
    ASSERT_EQ(plugin().configure("[budget]\ndense_layers = [99]\n"), nullptr);
    EXPECT_THAT(said(), HasSubstr("budget.dense_layers: 99: must be below 30"));
}

// The device cannot know: it sees shapes, and these are the same.
TEST_F(Preflight, ChangedModelUnderTheSameProfile) {
    const std::string text = std::string("[profile]\npath = \"") + SHOAL_TEST_PROFILE + "\"\n";
    ASSERT_EQ(plugin().configure(text.c_str()), nullptr);
    EXPECT_EQ(said(), "");
    HeaderFile other("llama");
    other.number("block_count", 30).number("embedding_length", 576);
    other.number("attention.head_count", 9).number("attention.head_count_kv", 3);
    EXPECT_THAT(said(other.path()), AllOf(HasSubstr("profile.path = \"" SHOAL_TEST_PROFILE "\""),
                                          HasSubstr("model = \"llama ")));
    EXPECT_THAT(said(HeaderFile("llama").path()), HasSubstr("profile.path = "));
}

TEST_F(Preflight, Memory) {
    context_.n_ctx = 1000000000;
    EXPECT_THAT(said(), AllOf(StartsWith("n_ctx = 1000000000: needs "),
                              HasSubstr("this machine offers "),
                              HasSubstr("Largest context that fits: ")));
    ASSERT_EQ(plugin().configure("[host]\nkv_bytes = \"90MiB\"\n"), nullptr);
    context_.n_ctx = 3072;
    EXPECT_EQ(said(), "") << "one stream of them fits";
    context_.n_seq_max = 16;
    context_.n_ctx = 16 * 3072;
    EXPECT_THAT(said(), StartsWith("n_ctx = 49152: needs ")) << "sixteen do not";
}

TEST_F(Preflight, TheDeviceIsLoadedOnce) {
    ggml_backend_dev_t device = nullptr;
    EXPECT_EQ(shoal_llama_load(nullptr, &device), nullptr);
    EXPECT_EQ(device, plugin().device);
    EXPECT_EQ(shoal_llama_load(SHOAL_TEST_PLUGIN, &device), nullptr);
    EXPECT_STREQ(shoal_llama_load(nullptr, nullptr), "device: must not be NULL");
    const char* error = shoal_llama_load("/nonexistent/libggml-shoal.so", &device);
    ASSERT_NE(error, nullptr);
    EXPECT_THAT(error, StartsWith("plugin_path = /nonexistent/libggml-shoal.so: Shoal's device is "
                                  "loaded already, from "));
    EXPECT_EQ(device, nullptr);
}

// Another build's device beside this one: neither would see the other's caches.
TEST_F(Preflight, ASecondPluginIsRefused) {
    const std::string copy = ::testing::TempDir() + "libggml-shoal-copy.so";
    std::ofstream(copy, std::ios::binary)
        << std::ifstream(SHOAL_TEST_PLUGIN, std::ios::binary).rdbuf();
    take_log();
    const size_t devices = ggml_backend_dev_count();
    EXPECT_EQ(ggml_backend_load(copy.c_str()), nullptr);
    const std::string log = take_log();
    EXPECT_THAT(log, HasSubstr("shoal: a second copy of Shoal's device: loaded already is Shoal "));
    EXPECT_EQ(ggml_backend_dev_count(), devices);
    EXPECT_NE(make_context(Engine::shoal, {}), nullptr) << "the first one serves on";
    std::remove(copy.c_str());
}

}  // namespace shoal::testing
