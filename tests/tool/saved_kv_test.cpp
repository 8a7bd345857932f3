// --save-kv and --load-kv: a prompt is read once, and what comes after it is the same from a file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using testing::HasSubstr;

class SavedKv : public testing::Test {
protected:
    void SetUp() override {
        if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
    }
    ~SavedKv() override { std::filesystem::remove(path_); }
    Outcome run(std::vector<std::string> arguments) {
        const std::vector<std::string> common = {
            "run", "-m", model_path(), "-t", "1", "--profile.path", profile_path(),
            "--budget.rows", "64", "--budget.dense_below", "1", "--temp", "0", "--ignore-eos",
            "--json"};
        arguments.insert(arguments.begin(), common.begin(), common.end());
        return run_tool(arguments);
    }
    void expect_refused(const std::vector<std::string>& arguments, const std::string& message) {
        const Outcome outcome = run(arguments);
        EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
        EXPECT_THAT(outcome.err, HasSubstr(message));
    }
    std::string path_ = temporary_file("kv", "");
};

TEST_F(SavedKv, SixtyFourTokensAreTheSameFromAFile) {
    const std::string text = text_of(1500);
    const Outcome plain = run({"-f", text, "-n", "64"});
    ASSERT_EQ(plain.exit_code, 0) << plain.err;
    const Outcome saving = run({"-f", text, "-n", "64", "--save-kv", path_});
    ASSERT_EQ(saving.exit_code, 0) << saving.err;
    EXPECT_GT(saving.json()["kv_files"]["saved_bytes"], 0);
    const Outcome loading = run({"--load-kv", path_, "-n", "64"});
    ASSERT_EQ(loading.exit_code, 0) << loading.err;
    ASSERT_EQ(plain.json()["tokens"].size(), 64U);
    EXPECT_EQ(saving.json()["tokens"], plain.json()["tokens"]);
    EXPECT_EQ(loading.json()["tokens"], plain.json()["tokens"]);
    EXPECT_EQ(loading.json()["prompt_tokens"], plain.json()["prompt_tokens"]);
    EXPECT_EQ(loading.json()["kv_files"]["loaded_tokens"], plain.json()["prompt_tokens"]);
    EXPECT_EQ(loading.json()["prefill"]["tokens"], 0);
    EXPECT_GT(loading.json()["stats"]["queries_sparse"].get<uint64_t>(), 0U);
}

TEST_F(SavedKv, Q8RowsComeBackAsQ8) {
    const std::vector<std::string> q8 = {"--host.rows", "q8", "-n", "4"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), q8.begin(), q8.end());
        return more;
    };
    const Outcome saving = run(with({"-p", "The sea was calm and", "--save-kv", path_}));
    ASSERT_EQ(saving.exit_code, 0) << saving.err;
    const Outcome loading = run(with({"--load-kv", path_}));
    ASSERT_EQ(loading.exit_code, 0) << loading.err;
    EXPECT_EQ(loading.json()["tokens"], saving.json()["tokens"]);
    expect_refused({"--load-kv", path_}, "rows.k = q8: this session has f16");
    ASSERT_EQ(run({"-p", "The sea", "-n", "1", "--save-kv", path_}).exit_code, 0);
    expect_refused(with({"--load-kv", path_}), "rows.k = f16: this session has q8");
}

TEST_F(SavedKv, APromptGoesOnAfterTheFile) {
    ASSERT_EQ(run({"-p", "The sea was calm and", "-n", "1", "--save-kv", path_}).exit_code, 0);
    const Outcome more =
        run({"--load-kv", path_, "-p", " the wind", "-n", "4", "--save-kv", path_});
    ASSERT_EQ(more.exit_code, 0) << more.err;
    EXPECT_EQ(more.json()["prompt_tokens"].get<size_t>(),
              more.json()["kv_files"]["loaded_tokens"].get<size_t>() +
                  more.json()["prefill"]["tokens"].get<size_t>());
    EXPECT_GT(more.json()["prefill"]["tokens"], 0);
    const Outcome again = run({"--load-kv", path_, "-n", "4"});
    EXPECT_EQ(again.json()["tokens"], more.json()["tokens"]);
}

TEST_F(SavedKv, WrongFilesAreRefusedBeforeTheModelIsLoaded) {
    expect_refused({"--load-kv", path_}, "no saved sequence");
    expect_refused({"--load-kv", path_ + "x"}, "cannot open: No such file or directory");
    expect_refused({"-p", "x", "--save-kv", model_path()}, "is there and holds something else");
    expect_refused({"-p", "x", "--save-kv", "/"}, "--save-kv /: is a folder");
    ASSERT_EQ(run({"-p", "The sea", "-n", "1", "--save-kv", path_}).exit_code, 0);
    expect_refused({"--load-kv", path_, "--chat"}, "--load-kv: not with --chat");
    expect_refused({"--load-kv", path_, "-ctk", "bf16"}, "rows.k = f16: this session has bf16");
    std::ofstream(path_, std::ios::binary | std::ios::app) << "x";
    expect_refused({"--load-kv", path_}, "it was cut, or is no copy of the whole");
}

}  // namespace
}  // namespace shoal::tool_test
