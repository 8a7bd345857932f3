// Architectures and ratios of heads beside those of the test model: small models with random
// weights, through the device and without.
#include <filesystem>
#include <random>

#include "tiny_model.hpp"

namespace shoal::testing {

namespace {

constexpr size_t kPrompt = 400;
constexpr size_t kDecoded = 24;

std::string case_name(const ::testing::TestParamInfo<TinyShape>& given) {
    return std::string(given.param.architecture) + "_" + std::to_string(given.param.q_heads) +
           "q_" + std::to_string(given.param.kv_heads) + "kv_" +
           std::to_string(given.param.head_dim);
}

class Architectures : public ::testing::TestWithParam<TinyShape> {
protected:
    Architectures() : path_(write_tiny_model(GetParam(), 5)) {
        plugin();
        stock_ = load_model(Engine::stock, path_);
        shoal_ = load_model(Engine::shoal, path_);
        std::mt19937_64 random(9);
        for (size_t i = 0; i < kPrompt + kDecoded; ++i) {
            tokens_.push_back(static_cast<llama_token>(random() % GetParam().vocabulary));
        }
    }
    ~Architectures() override {
        plugin().configure(nullptr);
        std::filesystem::remove(path_);
    }

    Context make(Engine engine, bool flash = true) {
        ContextOptions options;
        options.n_ctx = 512;
        options.n_ubatch = 64;
        options.model = engine == Engine::stock ? stock_.get() : shoal_.get();
        options.flash_attn =
            flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        Context context = make_context(engine, options);
        EXPECT_NE(context, nullptr) << plugin().last_error();
        return context;
    }

    // Logits of a part of the prompt, and of every token decoded after it.
    Logits run(const Context& context) {
        Logits logits = decode(context.get(), slice(tokens_, 0, kPrompt), 0, 16);
        const Logits tail = decode_singly(context.get(), slice(tokens_, kPrompt, tokens_.size()),
                                          static_cast<llama_pos>(kPrompt));
        logits.insert(logits.end(), tail.begin(), tail.end());
        return logits;
    }

    std::string path_;
    Model stock_{nullptr, &llama_model_free};
    Model shoal_{nullptr, &llama_model_free};
    std::vector<llama_token> tokens_;
};

}  // namespace

TEST_P(Architectures, HandedAttentionIsStockBitForBit) {
    const DelegateScope delegate;
    const Logits stock = run(make(Engine::stock));
    EXPECT_EQ(count_different(run(make(Engine::shoal)), stock), 0U);
}

// Weights are f32, so nothing rounds but attention: stock's own flash attention multiplies in f16.
TEST_P(Architectures, DenseIsStocksExactAttention) {
    ASSERT_EQ(plugin().configure("[selector]\nkind = \"dense\"\n"), nullptr);
    const Logits exact = run(make(Engine::stock, false));
    const double own = kl_mean(exact, run(make(Engine::stock)));
    const double ours = kl_mean(exact, run(make(Engine::shoal)));
    printf("KL from exact attention: stock's flash attention %.2g, Shoal dense %.2g\n", own, ours);
    EXPECT_LE(ours, 1e-6 + 1.5 * own);
    EXPECT_LE(ours, 1e-4);
}

// Keys of random weights are far from each other in every head, and a layer's heads share a list: a
// quarter of the rows is little here. That many recent rows are further off all the same.
TEST_P(Architectures, SelectedRowsAreNearerThanRecentOnes) {
    const auto config = [](const char* kind, int rows) {
        return "[selector]\nkind = \"" + std::string(kind) + "\"\n[budget]\nrows = " +
               std::to_string(rows) + "\ndense_below = 1\ndense_layers = []\n" +
               "[profile]\ntokens = 256\n[safety]\nsinks = 1\nwindow = 4\n";
    };
    ASSERT_EQ(plugin().configure("[selector]\nkind = \"dense\"\n"), nullptr);
    const Logits dense = run(make(Engine::shoal));
    ASSERT_EQ(plugin().configure(config("recent", 96).c_str()), nullptr);
    const double recent = kl_mean(dense, run(make(Engine::shoal)));
    ASSERT_EQ(plugin().configure(config("labels", 96).c_str()), nullptr);
    const double labels = kl_mean(dense, run(make(Engine::shoal)));
    printf("KL from dense: labels %.2g, recent %.2g\n", labels, recent);
    EXPECT_GT(labels, 0.0) << "nothing was selected";
    EXPECT_LT(labels, 0.8 * recent);
}

INSTANTIATE_TEST_SUITE_P(Tiny, Architectures,
                         ::testing::Values(TinyShape{.architecture = "llama", .kv_heads = 8},
                                           TinyShape{.architecture = "llama", .kv_heads = 1},
                                           TinyShape{.architecture = "qwen2"},
                                           TinyShape{.architecture = "qwen3", .head_dim = 48}),
                         case_name);

}  // namespace shoal::testing
