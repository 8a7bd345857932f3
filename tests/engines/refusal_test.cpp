// What the device cannot serve it refuses, with the reason, and never answers as if it could.
#include <cstdlib>
#include <string>

#include "llama_support.hpp"

namespace shoal::testing {

namespace {

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// The message is both logged, as one line, and kept.
void expect_said(const std::string& part) {
    EXPECT_TRUE(contains(plugin().last_error(), part)) << plugin().last_error();
    const std::string log = take_log();
    EXPECT_TRUE(contains(log, "shoal: ")) << log;
    EXPECT_TRUE(contains(log, part)) << log;
}

class Refusal : public ::testing::Test {
protected:
    Refusal() {
        model(Engine::shoal);
        take_log();
    }
    ~Refusal() override {
        plugin().configure(nullptr);
        unsetenv("SHOAL_CONFIG");
    }

    void expect_no_context(const ContextOptions& options, const std::string& reason) {
        EXPECT_EQ(make_context(Engine::shoal, options), nullptr);
        expect_said(reason);
    }
};

llama_model* load_model(int32_t gpu_layers) {
    static ggml_backend_dev_t devices[] = {plugin().device, nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices;
    params.n_gpu_layers = gpu_layers;
    return llama_model_load_from_file(SHOAL_TEST_MODEL, params);
}

}  // namespace

TEST_F(Refusal, FlashAttentionOff) {
    ContextOptions options;
    options.flash_attn = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    expect_no_context(options, "flash attention is off");
}

TEST_F(Refusal, QuantisedCache) {
    ContextOptions options;
    options.type_k = GGML_TYPE_Q8_0;
    options.type_v = GGML_TYPE_Q8_0;
    expect_no_context(options, "cache type q8_0 is not supported: use f16, bf16 or f32");
}

TEST_F(Refusal, SomeLayersOnly) {
    llama_model* partial = load_model(10);
    ASSERT_NE(partial, nullptr);
    ContextOptions options;
    options.model = partial;
    expect_no_context(options, "layer 0 keeps its KV cache elsewhere");
    llama_model_free(partial);
}

TEST_F(Refusal, KvOffloadOffIsSaid) {
    ContextOptions options;
    options.offload_kqv = false;
    Context context = make_context(Engine::shoal, options);
    ASSERT_TRUE(context);
    EXPECT_EQ(try_decode(context.get(), 1, 0), 0);
    expect_said("not in use: the engine keeps this context's KV cache elsewhere");
    EXPECT_EQ(try_decode(context.get(), 1, 1), 0);
    EXPECT_FALSE(contains(take_log(), "not in use")) << "said once";
}

TEST_F(Refusal, ConfigurationText) {
    const char* error = plugin().configure("[budget]\nrowz = 3\n");
    ASSERT_NE(error, nullptr);
    EXPECT_TRUE(contains(error, "budget.rowz")) << error;
    EXPECT_TRUE(contains(error, "budget.rows")) << error;
    error = plugin().configure("[budget]\nrows = 0\n");
    ASSERT_NE(error, nullptr);
    EXPECT_TRUE(contains(error, "budget.rows = 0")) << error;
}

TEST_F(Refusal, ConfigurationFileMissing) {
    setenv("SHOAL_CONFIG", "/nonexistent/shoal.toml", 1);
    expect_no_context({}, "/nonexistent/shoal.toml");
    // What the program says itself replaces the file.
    ASSERT_EQ(plugin().configure(""), nullptr);
    EXPECT_NE(make_context(Engine::shoal, {}), nullptr);
}

TEST_F(Refusal, ConfigurationFileWithError) {
    const std::string path = ::testing::TempDir() + "shoal_bad.toml";
    FILE* file = fopen(path.c_str(), "w");
    ASSERT_NE(file, nullptr);
    fputs("[safety]\nwindow = 0\n", file);
    fclose(file);
    setenv("SHOAL_CONFIG", path.c_str(), 1);
    expect_no_context({}, "shoal_bad.toml:2");
    remove(path.c_str());
}

TEST_F(Refusal, ContextLargerThanMemory) {
    ASSERT_EQ(plugin().configure("[host]\nkv_bytes = \"4MiB\"\n"), nullptr);
    ContextOptions options;
    options.n_ctx = 4096;
    expect_no_context(options, "host.kv_bytes");
}

// ggml rotates no bf16: stock llama.cpp aborts.
TEST_F(Refusal, ContextShiftOfBf16) {
    ContextOptions options;
    options.type_k = GGML_TYPE_BF16;
    Context context = make_context(Engine::shoal, options);
    ASSERT_TRUE(context);
    const std::vector<llama_token> tokens = novel_tokens(40);
    decode(context.get(), tokens, 0, 40);
    llama_memory_t memory = llama_get_memory(context.get());
    ASSERT_TRUE(llama_memory_seq_rm(memory, 0, 4, 20));
    llama_memory_seq_add(memory, 0, 20, -1, -16);
    take_log();
    EXPECT_NE(try_decode(context.get(), tokens[0], 24), 0);
    expect_said("context shift (llama_memory_seq_add) over a bf16 K cache");
    EXPECT_NE(try_decode(context.get(), tokens[0], 24), 0) << "not forgotten";
    llama_memory_clear(memory, true);
    EXPECT_EQ(try_decode(context.get(), tokens[0], 0), 0);
}

TEST_F(Refusal, SideCallsWithoutAContext) {
    EXPECT_EQ(plugin().stats_json(nullptr, 0), 0U);
    EXPECT_EQ(plugin().describe(nullptr, 0), 0U);
    EXPECT_EQ(plugin().attended(0, 0, 0, nullptr, 0), -1);
    ASSERT_NE(plugin().reconfigure("[budget]\nrows = 8\n"), nullptr);
    ASSERT_NE(plugin().write_profile("x", "y"), nullptr);
    EXPECT_GT(plugin().config_toml(nullptr, 0), 100U);
}

TEST_F(Refusal, WhatIsHeldIsSaid) {
    Context context = make_context(Engine::shoal, {});
    ASSERT_TRUE(context);
    const std::string log = take_log();
    const std::string line =
        "shoal: holding the KV cache of 30 layers (3 KV heads x 64, f16), up to 1,024 tokens, "
        "22 MiB; selector labels, rows 1024, dense layers 0,1; executor: the engine's OpenMP";
    EXPECT_TRUE(contains(log, line)) << log;
}

}  // namespace shoal::testing
