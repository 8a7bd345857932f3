// Files for other programs: OpenMetrics is read by a strict parser of the format, the trace by a
// reader that checks what Chrome's does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
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

// "" or what a reader of Chrome's trace events would not show as it was meant.
std::string trace_error(const nlohmann::json& trace) {
    if (!trace.is_object() || !trace["traceEvents"].is_array()) return "no traceEvents";
    std::vector<nlohmann::json> open;
    double last = 0;
    for (const nlohmann::json& event : trace["traceEvents"]) {
        const double at = event.at("ts").get<double>();
        if (at < last) return "time goes back: " + event.dump();
        last = at;
        if (event["ph"] == "B") {
            open.push_back(event);
            const std::string name = event["name"];
            const bool top = name == "prefill" || name == "decode";
            if (top != (open.size() == 1)) return "wrong depth: " + event.dump();
            if (name == "step" && open.size() != 2) return "a step inside a step";
            if (!top && name != "step" && open.size() != 3) return "not in a step: " + event.dump();
        } else if (event["ph"] == "E") {
            if (open.empty() || open.back()["name"] != event["name"]) {
                return "ends another: " + event.dump();
            }
            open.pop_back();
        } else {
            return "unknown phase: " + event.dump();
        }
    }
    return open.empty() ? "" : "not ended: " + open.back().dump();
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
    for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir())) {
        EXPECT_FALSE(entry.path().string().starts_with(path + ".")) << entry.path();
    }
}

TEST_F(ToolExports, TraceIsNestedAndOrdered) {
    const std::string path = temporary_file("trace.json", "");
    const Outcome outcome = run({"-f", text_of(1500), "-n", "5", "--trace", path});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    const nlohmann::json trace = nlohmann::json::parse(contents(path), nullptr, false);
    ASSERT_EQ(trace_error(trace), "");
    std::map<std::string, int> count;
    std::set<int> attended;
    for (const nlohmann::json& event : trace["traceEvents"]) {
        if (event["ph"] != "B") continue;
        count[event["name"]]++;
        if (event["name"] == "attend") attended.insert(event["args"]["layer"].get<int>());
    }
    const nlohmann::json stats = outcome.json()["stats"];
    EXPECT_EQ(count["decode"], 4) << "the last token is not decoded again";
    EXPECT_EQ(count["prefill"], 1);
    EXPECT_EQ(count["step"], stats["steps"].get<int>());
    EXPECT_EQ(attended.size(), 30U);
    EXPECT_EQ(count["exact"], 30);
    EXPECT_EQ(count["append"], 5 * 30);
    EXPECT_EQ(count["attend"], 4 * 30);
    EXPECT_EQ(count["score"], stats["queries_sparse"].get<int>());
    EXPECT_EQ(count["select"], count["score"]);
}

// A file that is read, or any other that holds something, is not written over.
TEST_F(ToolExports, NothingThatIsThereIsLost) {
    const std::string text = temporary_file("prompt.txt", "The sea was calm and the sky was clear");
    const std::string model = temporary_file("link.gguf", "");
    std::filesystem::remove(model);
    std::filesystem::create_symlink(std::filesystem::absolute(model_path()), model);
    const auto model_bytes = std::filesystem::file_size(model);
    for (const char* flag : {"--metrics", "--trace", "--report"}) {
        for (const std::string& path : {text, model}) {
            const Outcome outcome = run({"-f", text, "-n", "1", flag, path});
            EXPECT_EQ(outcome.exit_code, 2);
            EXPECT_THAT(outcome.err, HasSubstr(std::string(flag) + " " + path +
                                               ": is there and holds something else"));
        }
        // What a run of this kind left is written again.
        const std::string again = temporary_file("again", "");
        for (int i = 0; i < 2; ++i) {
            const Outcome outcome = run({"-f", text, "-n", "1", flag, again});
            EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        }
    }
    const Outcome twice = run({"-f", text, "-n", "1", "--metrics", text + ".x", "--trace",
                               text + ".x"});
    EXPECT_THAT(twice.err, HasSubstr("--trace " + text + ".x: is the file of --metrics too"));
    const Outcome profile = run_tool({"calibrate", "-m", model_path(), "-f", text, "-o", text});
    EXPECT_THAT(profile.err, HasSubstr("-o " + text + ": is there and holds something else"));
    EXPECT_EQ(std::filesystem::file_size(model), model_bytes);
    EXPECT_EQ(contents(text), "The sea was calm and the sky was clear");
    std::filesystem::remove(model);
}

TEST_F(ToolExports, BadPathsAreSaidBeforeTheWork) {
    for (const char* flag : {"--metrics", "--trace"}) {
        const Outcome outcome = run({"-p", "x", "-n", "1", flag, "/nonexistent/file"});
        EXPECT_EQ(outcome.exit_code, 2);
        EXPECT_EQ(outcome.out, "");
        EXPECT_THAT(outcome.err, HasSubstr(std::string(flag) + " /nonexistent/file"));
    }
    const Outcome device = run({"-p", "x", "-n", "1", "--metrics", "/dev/null"});
    EXPECT_EQ(device.exit_code, 2);
    EXPECT_THAT(device.err, HasSubstr("--metrics /dev/null: is no regular file"));
}

TEST_F(ToolExports, AFullDiskIsSaid) {
    const Outcome outcome = run({"-p", "The sea was calm and", "-n", "3", "--trace", "/dev/full"});
    EXPECT_EQ(outcome.exit_code, 1);
    EXPECT_EQ(outcome.err, "shoal: --trace /dev/full: No space left on device\n");
}

}  // namespace
}  // namespace shoal::tool_test
