// Shoal's own attention through the device, on a real model.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "llama_support.hpp"

namespace shoal::testing {

namespace {

constexpr size_t kPrefill = 500;
constexpr size_t kDecoded = 24;

constexpr const char* kDense = "[selector]\nkind = \"dense\"\n";

// Selection runs, over the labels of channels learnt from the first 256 tokens.
std::string sparse_config(uint32_t rows) {
    return "[budget]\nrows = " + std::to_string(rows) +
           "\ndense_below = 1\ndense_layers = []\n[profile]\ntokens = 256\n[safety]\nsinks = 4\n"
           "window = 16\n";
}

nlohmann::json stats() {
    std::string text(1 << 16, '\0');
    text.resize(plugin().stats_json(text.data(), text.size()));
    return nlohmann::json::parse(text);
}

class Attention : public ::testing::Test {
protected:
    ~Attention() override { plugin().configure(nullptr); }

    Context make(const std::string& config) {
        const char* error = plugin().configure(config.c_str());
        EXPECT_EQ(error, nullptr) << error;
        Context context = make_context(Engine::shoal, {});
        EXPECT_NE(context, nullptr) << plugin().last_error();
        return context;
    }

    // Logits of a part of the prefill and of every token decoded after it.
    Logits run(llama_context* context) {
        Logits logits = decode(context, slice(tokens_, 0, kPrefill), 0, 4);
        const Logits tail = decode_singly(context, slice(tokens_, kPrefill, tokens_.size()),
                                          static_cast<llama_pos>(kPrefill));
        logits.insert(logits.end(), tail.begin(), tail.end());
        return logits;
    }

    const std::vector<llama_token> tokens_ = novel_tokens(kPrefill + kDecoded, "emma.txt");
};

}  // namespace

TEST_F(Attention, DenseIsAsCloseToStockAsStockToItself) {
    Context stock = make_context(Engine::stock, {});
    ContextOptions without;
    without.flash_attn = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    Context stock_without = make_context(Engine::stock, without);
    Context shoal = make(kDense);
    ASSERT_TRUE(stock && stock_without && shoal);

    const Logits base = run(stock.get());
    const double own = kl_mean(base, run(stock_without.get()));
    const double ours = kl_mean(base, run(shoal.get()));
    RecordProperty("kl_shoal_dense", std::to_string(ours));
    RecordProperty("kl_stock_without_flash_attention", std::to_string(own));
    printf("KL to stock: Shoal dense %.3g, stock without flash attention %.3g\n", ours, own);
    EXPECT_LE(ours, std::max(1e-4, 1.5 * own));
    EXPECT_GT(stats()["queries_exact"], 0);
    EXPECT_GT(stats()["queries_dense"], 0);
}

TEST_F(Attention, BudgetOfEverythingIsDense) {
    Context dense = make(kDense);
    ASSERT_TRUE(dense);
    const Logits base = run(dense.get());
    Context sparse = make(sparse_config(4096));
    ASSERT_TRUE(sparse);
    EXPECT_EQ(count_different(base, run(sparse.get())), 0U);
    EXPECT_GT(stats()["queries_sparse"], 0) << "the sparse path must have run";
}

TEST_F(Attention, FewRowsAreAttended) {
    Context context = make(sparse_config(48));
    ASSERT_TRUE(context);
    run(context.get());
    const uint32_t current = static_cast<uint32_t>(tokens_.size()) - 1;
    for (const uint32_t layer : {0U, 7U, 29U}) {
        std::vector<uint32_t> slots(1024);
        const int64_t count = plugin().attended(layer, 0, 0, slots.data(), slots.size());
        ASSERT_GT(count, 0) << "layer " << layer;
        slots.resize(static_cast<size_t>(count));
        EXPECT_LE(count, 48 + 4 + 16);
        EXPECT_TRUE(std::is_sorted(slots.begin(), slots.end()));
        for (uint32_t sink = 0; sink < 4; ++sink) {
            EXPECT_EQ(std::count(slots.begin(), slots.end(), sink), 1) << sink;
        }
        for (uint32_t slot = current - 15; slot <= current; ++slot) {
            EXPECT_EQ(std::count(slots.begin(), slots.end(), slot), 1) << slot;
        }
    }
    EXPECT_EQ(plugin().attended(99, 0, 0, nullptr, 0), 0);
}

TEST_F(Attention, PolicyChangesWhileTheContextLives) {
    Context context = make(sparse_config(48));
    ASSERT_TRUE(context);
    run(context.get());
    EXPECT_EQ(plugin().reconfigure("[selector]\nkind = \"dense\"\n"), nullptr);
    plugin().reset_stats();
    decode(context.get(), {tokens_[0]}, static_cast<llama_pos>(tokens_.size()));
    EXPECT_EQ(stats()["queries_sparse"], 0);
    EXPECT_EQ(stats()["queries_dense"], 30);
    const char* error = plugin().reconfigure("[selector]\nlabel_bits = 8\n");
    ASSERT_NE(error, nullptr) << "labels are stored already";
    EXPECT_NE(std::string(error).find("label_bits"), std::string::npos) << error;
}

}  // namespace shoal::testing
