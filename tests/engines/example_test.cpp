// examples/simple.cpp, as it is built: it writes what stock llama.cpp writes, and its statistics
// show that Shoal held the cache.
#include <gmock/gmock.h>

#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "llama_support.hpp"

namespace shoal::testing {

namespace {

struct Ended {
    int status = -1;
    std::string output;
};

Ended run(const std::string& arguments) {
    Ended result;
    FILE* pipe = popen(("'" SHOAL_TEST_EXAMPLE "' " + arguments + " 2>&1").c_str(), "r");
    if (pipe == nullptr) return result;
    char piece[4096];
    for (size_t n = 0; (n = fread(piece, 1, sizeof(piece), pipe)) > 0;) {
        result.output.append(piece, n);
    }
    result.status = WEXITSTATUS(pclose(pipe));
    return result;
}

std::string stock_text(const std::string& prompt, int count) {
    const llama_vocab* vocab = llama_model_get_vocab(model(Engine::stock));
    std::vector<llama_token> tokens(prompt.size() + 2);
    tokens.resize(static_cast<size_t>(
        llama_tokenize(vocab, prompt.data(), static_cast<int32_t>(prompt.size()), tokens.data(),
                       static_cast<int32_t>(tokens.size()), true, true)));
    const Context context = make_context(Engine::stock, {});
    std::string text = prompt;
    auto position = static_cast<llama_pos>(tokens.size());
    Logits logits = decode(context.get(), tokens, 0, tokens.size());
    for (int i = 0; i < count; ++i) {
        const std::vector<float>& last = logits.back();
        const auto token = static_cast<llama_token>(
            std::max_element(last.begin(), last.end()) - last.begin());
        char piece[128];
        const int32_t n = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, true);
        text.append(piece, static_cast<size_t>(n));
        logits = decode(context.get(), {token}, position++);
    }
    return text;
}

}  // namespace

TEST(Example, SimpleWritesWhatStockWrites) {
    const std::string prompt = "The capital of France is";
    const Ended simple = run("'" SHOAL_TEST_MODEL "' '" + prompt + "'");
    ASSERT_EQ(simple.status, 0) << simple.output;
    const size_t end = simple.output.rfind("\n{");
    ASSERT_NE(end, std::string::npos) << simple.output;
    const nlohmann::json stats = nlohmann::json::parse(simple.output.substr(end));
    EXPECT_EQ(stats["tokens_unnoted"], 0);
    EXPECT_EQ(stats["tokens_missing"], 0);
    EXPECT_GE(stats["steps"], 8);
    EXPECT_EQ(stats["tokens_written"], stats["tokens_noted"]);
    const std::string text = stock_text(prompt, 8);
    EXPECT_EQ(simple.output.substr(0, text.size()), text);
}

TEST(Example, SimpleSaysWhatIsWrong) {
    const Ended missing = run("/nonexistent.gguf");
    EXPECT_EQ(missing.status, 1);
    EXPECT_THAT(missing.output, ::testing::HasSubstr(
                                    "simple: /nonexistent.gguf: No such file or directory"));
    EXPECT_EQ(run("").status, 1);
}

}  // namespace shoal::testing
