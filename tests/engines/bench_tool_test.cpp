// Stock llama-bench with nothing but GGML_BACKEND_PATH.
#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

namespace shoal::testing {

namespace {

std::string run(const std::string& command) {
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return "";
    std::string output;
    char piece[4096];
    for (size_t n = 0; (n = fread(piece, 1, sizeof(piece), pipe)) > 0;) output.append(piece, n);
    EXPECT_EQ(pclose(pipe), 0) << command;
    return output;
}

}  // namespace

TEST(LlamaBench, RunsWithThePluginFromTheEnvironment) {
#ifdef SHOAL_SANITIZED
    GTEST_SKIP() << "llama-bench has no sanitizer runtime for the plugin";
#endif
    const std::string output =
        run("GGML_BACKEND_PATH='" SHOAL_TEST_PLUGIN "' '" SHOAL_TEST_LLAMA_BIN_DIR
            "/llama-bench' -m '" SHOAL_TEST_MODEL "' -p 64 -n 8 -t 1 -r 1 -o json 2>/dev/null");
    const nlohmann::json tests = nlohmann::json::parse(output, nullptr, false);
    ASSERT_TRUE(tests.is_array() && tests.size() == 2) << output;
    for (const nlohmann::json& test : tests) {
        EXPECT_EQ(test["backends"], "Shoal");
        EXPECT_GT(test["avg_ts"], 0);
    }
}

}  // namespace shoal::testing
