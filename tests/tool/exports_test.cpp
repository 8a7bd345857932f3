// Files for other programs: OpenMetrics is read by a strict parser of the format.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "tests/runtime/open_metrics.hpp"
#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using shoal::testing::OpenMetrics;
using ::testing::HasSubstr;

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

class ToolExports : public ::testing::Test {
protected:
    void SetUp() override {
        if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
    }
    Outcome run(const std::vector<std::string>& more) {
        std::vector<std::string> arguments = {
            "run", "-m", model_path(), "-t", "1", "--profile.path", profile_path(),
            "--budget.rows", "64", "--temp", "0", "--ignore-eos", "--json"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_tool(arguments);
    }
};

TEST_F(ToolExports, MetricsAreWholeAtEveryMoment) {
    const std::string path = temporary_file("shoal.prom", "");
    std::atomic<bool> done = false;
    std::set<std::string> seen;
    std::thread reader([&] {
        while (!done) {
            const std::string text = contents(path);
            if (!text.empty()) seen.insert(text);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
    });
    const Outcome outcome = run({"-p", "The sea was calm and", "-n", "160", "--metrics", path});
    done = true;
    reader.join();
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    seen.insert(contents(path));
    const nlohmann::json decode = outcome.json()["decode"];
    const double seconds = 1e-3 * decode["tokens"].get<double>() *
                           decode["ms_per_token_median"].get<double>();
    EXPECT_GE(seen.size(), seconds > 2 ? 3U : 2U) << "at the start, every second, at the end";
    for (const std::string& text : seen) EXPECT_EQ(OpenMetrics().read(text), "") << text;
    OpenMetrics last;
    ASSERT_EQ(last.read(contents(path)), "");
    const nlohmann::json stats = outcome.json()["stats"];
    EXPECT_EQ(last.samples["shoal_steps_total"], stats["steps"].get<double>());
    EXPECT_EQ(last.samples["shoal_queries_total{attention=\"sparse\"}"],
              stats["queries_sparse"].get<double>());
    EXPECT_EQ(last.samples["shoal_spans_encoded_total"], stats["spans_encoded"].get<double>());
    EXPECT_GT(last.samples["shoal_stage_seconds_total{stage=\"attend\"}"], 0.0);
    EXPECT_FALSE(std::filesystem::exists(path + ".new"));
}

TEST_F(ToolExports, BadPathsAreSaidBeforeTheWork) {
    for (const char* flag : {"--metrics"}) {
        const Outcome outcome = run({"-p", "x", "-n", "1", flag, "/nonexistent/file"});
        EXPECT_EQ(outcome.exit_code, 2);
        EXPECT_EQ(outcome.out, "");
        EXPECT_THAT(outcome.err, HasSubstr(std::string(flag) + " /nonexistent/file"));
    }
}

}  // namespace
}  // namespace shoal::tool_test
