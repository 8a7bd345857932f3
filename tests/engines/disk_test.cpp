// The KV cache of a real model on disk, with a tenth of it in RAM: the same logits, bit for bit.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "llama_support.hpp"
#include "shoal/session.hpp"

namespace shoal::testing {

namespace {

constexpr uint32_t kContext = 4096;
constexpr uint32_t kMicroBatch = 256;
constexpr size_t kPrefill = 600;
constexpr size_t kDecoded = 16;

struct DiskCase {
    const char* name;
    const char* sharing;
};

Config with(const std::string& text) {
    Config config;
    EXPECT_TRUE(config_merge_text(text, "test", config));
    return config;
}

// host.kv_bytes that leaves a tenth of the KV cache for rows in RAM.
uint64_t a_tenth(const Config& config) {
    ModelShape shape;
    shape.layers.resize(30, {LayerKind::full, 3, 64, 64, 0});
    shape.q_head_count = 9;
    SessionOptions options;
    options.slots_per_store = kContext;
    options.queries_per_step_max = kMicroBatch;
    Config least = config;
    const Result<MemoryPlan> whole = Session::plan(config, shape, options);
    EXPECT_TRUE(whole) << whole.status().message();
    least.host.kv_bytes = whole->least_bytes;
    const Result<MemoryPlan> plan = Session::plan(least, shape, options);
    EXPECT_TRUE(plan);
    EXPECT_LT(plan->kv_bytes, plan->disk_bytes / 10);
    return plan->total_bytes + plan->disk_bytes / 10 - plan->kv_bytes;
}

nlohmann::json stats() {
    std::string text(1 << 16, '\0');
    text.resize(plugin().stats_json(text.data(), text.size()));
    return nlohmann::json::parse(text);
}

}  // namespace

class OnDisk : public ::testing::TestWithParam<DiskCase> {
protected:
    ~OnDisk() override { plugin().configure(nullptr); }

    Logits run(const std::string& config) {
        const char* error = plugin().configure(config.c_str());
        EXPECT_EQ(error, nullptr) << error;
        ContextOptions options;
        options.n_ctx = kContext;
        options.n_ubatch = kMicroBatch;
        const Context context = make_context(Engine::shoal, options);
        EXPECT_NE(context, nullptr) << plugin().last_error();
        if (context == nullptr) return {};
        Logits logits = decode(context.get(), slice(tokens_, 0, kPrefill), 0, 16);
        const Logits tail = decode_singly(context.get(), slice(tokens_, kPrefill, tokens_.size()),
                                          static_cast<llama_pos>(kPrefill));
        logits.insert(logits.end(), tail.begin(), tail.end());
        stats_ = stats();
        return logits;
    }

    const std::vector<llama_token> tokens_ = novel_tokens(kPrefill + kDecoded, "emma.txt");
    nlohmann::json stats_;
};

INSTANTIATE_TEST_SUITE_P(
    Sharing, OnDisk,
    ::testing::Values(DiskCase{"layer", "[sharing]\nkind = \"layer\"\n"},
                      DiskCase{"head", "[sharing]\nkind = \"head\"\n"},
                      DiskCase{"tidal",
                               "[sharing]\nkind = \"tidal\"\nanchors = [2, 10, 18, 25]\n"}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(OnDisk, LogitsAsInRam) {
    const std::string policy = std::string(GetParam().sharing) +
                               "[budget]\nrows = 64\ndense_below = 1\n"
                               "[profile]\ntokens = 256\n[safety]\nsinks = 4\nwindow = 16\n"
                               "[stats]\nrecall_every = 0\n";
    const std::string disk = "[disk]\ndir = \"" + ::testing::TempDir() + "\"\n";
    const Logits in_ram = run(policy);
    EXPECT_EQ(stats_["block_misses"], 0);
    const uint64_t bytes = a_tenth(with(policy + disk));
    const Logits on_disk =
        run(policy + disk + "[host]\nkv_bytes = \"" + std::to_string(bytes) + "B\"\n");
    EXPECT_EQ(in_ram.size(), on_disk.size());
    EXPECT_EQ(count_different(in_ram, on_disk), 0U);
    EXPECT_GT(stats_["block_misses"], 0);
    EXPECT_GT(stats_["queries_sparse"], 0);
    EXPECT_GT(stats_["blocks_prefetched_used"], 0);
    EXPECT_GT(stats_["prefetch_hints"], 0);
    EXPECT_EQ(stats_["disk_checksum_mismatches"], 0);
}

}  // namespace shoal::testing
