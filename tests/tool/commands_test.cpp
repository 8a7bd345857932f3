// The commands on the real model, with few tokens: they work, their JSON is JSON, their exit codes
// are the documented ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using testing::HasSubstr;

// Under a sanitizer half as much text, which is 3 times slower and finds no more in the rest.
constexpr size_t scaled(size_t n) {
#ifdef SHOAL_SANITIZED
    return n / 2;
#else
    return n;
#endif
}

class ToolCommands : public testing::Test {
protected:
    void SetUp() override {
        if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
    }
    // Sparse from 128 tokens on, with statistics from the first 256. One thread: llama.cpp's
    // workers spin, and beside other suites two of them are many times slower than one.
    std::vector<std::string> small(std::vector<std::string> arguments) {
        const std::vector<std::string> common = {
            "-m", model_path(), "-t", "1", "--profile.tokens", "256", "--budget.rows", "64"};
        arguments.insert(arguments.end(), common.begin(), common.end());
        return arguments;
    }
};

TEST(ToolWithoutModel, HelpVersionAndSchema) {
    const Outcome help = run_tool({"--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("Exit codes: 0 ok, 1 failure"));
    EXPECT_THAT(help.out, HasSubstr("selfcheck"));
    const Outcome run_help = run_tool({"run", "--help"});
    EXPECT_EQ(run_help.exit_code, 0);
    EXPECT_THAT(run_help.out, HasSubstr("--budget.rows"));
    EXPECT_THAT(run_help.out, HasSubstr("--compare"));
    const Outcome version = run_tool({"--version"});
    EXPECT_EQ(version.exit_code, 0);
    EXPECT_THAT(version.out, testing::MatchesRegex("shoal [0-9.]+ \\(llama.cpp .*\\)\n"));
    EXPECT_TRUE(run_tool({"config", "--schema"}).json().is_object());
}

TEST(ToolWithoutModel, ConfigurationLayers) {
    const std::string file = temporary_file(
        "shoal.toml", "[budget]\nrows = 100\ndense_rows = 200\n[safety]\nwindow = 9\n");
    const Outcome outcome = run_tool({.arguments = {"config", "--json", "--config", file, "--set",
                                                    "safety.sinks=2", "--budget.rows", "300"},
                                      .environment = {"SHOAL_BUDGET_ROWS=250",
                                                      "SHOAL_BUDGET_DENSE_ROWS=251"}});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json json = outcome.json();
    EXPECT_EQ(json["budget.rows"]["value"], "300");
    EXPECT_EQ(json["budget.rows"]["origin"], "flag");
    EXPECT_EQ(json["budget.dense_rows"]["value"], "251");
    EXPECT_EQ(json["budget.dense_rows"]["where"], "SHOAL_BUDGET_DENSE_ROWS");
    EXPECT_EQ(json["safety.window"]["where"], file + ":5:1");
    EXPECT_EQ(json["safety.sinks"]["value"], "2");
    EXPECT_EQ(json["host.pin"]["origin"], "default");
    // What it prints as a file is read back to the same.
    const std::string again = temporary_file(
        "again.toml", run_tool({"config", "--toml", "--config", file}).out);
    EXPECT_EQ(run_tool({"config", "--toml", "--config", again}).out,
              run_tool({"config", "--toml", "--config", file}).out);
}

TEST_F(ToolCommands, PlanAddsUp) {
    const Outcome outcome = run_tool({"plan", "-m", model_path(), "-c", "8192", "--json"});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json json = outcome.json();
    EXPECT_EQ(json["context_tokens"], 8192);
    EXPECT_GE(json["kv_bytes"].get<uint64_t>(), 8192U * 23'040);
    EXPECT_EQ(json["total_bytes"].get<uint64_t>(),
              json["kv_bytes"].get<uint64_t>() + json["label_bytes"].get<uint64_t>() +
                  json["index_bytes"].get<uint64_t>() + json["workspace_bytes"].get<uint64_t>());
    EXPECT_EQ(json["fits"], true);
}

TEST_F(ToolCommands, RunIsSparseAndRepeatable) {
    const std::string text = text_of(scaled(2500));
    const auto arguments = small({"run", "-f", text, "-n", "12", "--temp", "0", "--json"});
    const Outcome first = run_tool(arguments);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    const nlohmann::json json = first.json();
    ASSERT_TRUE(json.is_object()) << first.out;
    EXPECT_EQ(json["generated_tokens"], 12);
    EXPECT_GT(json["stats"]["queries_sparse"].get<uint64_t>(), 0U);
    EXPECT_GT(json["decode"]["ms_per_token_median"].get<double>(), 0.0);
    EXPECT_LT(json["decode"]["tokens_attended"].get<double>(),
              json["prompt_tokens"].get<double>());
    EXPECT_EQ(json["config"]["budget.rows"], "64");
    EXPECT_EQ(run_tool(arguments).json()["tokens"], json["tokens"]);
}

TEST_F(ToolCommands, RunStreamsTheTextAndExplainsOnStderr) {
    const Outcome outcome =
        run_tool(small({"run", "-p", "The sea was calm and", "-n", "6", "--temp", "0"}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, testing::StartsWith("The sea was calm and"));
    EXPECT_THAT(outcome.err, HasSubstr("ms per token"));
    EXPECT_THAT(outcome.err, HasSubstr("with budget.rows = 64"));
    EXPECT_THAT(outcome.err, testing::Not(HasSubstr("\033")));  // no terminal, no escapes
}

TEST_F(ToolCommands, RunChatUsesTheTemplate) {
    const auto with = run_tool(small({"run", "-p", "Say hello.", "-n", "2", "--chat", "--json"}));
    const auto without = run_tool(small({"run", "-p", "Say hello.", "-n", "2", "--json"}));
    ASSERT_EQ(with.exit_code, 0) << with.err;
    EXPECT_GT(with.json()["prompt_tokens"].get<int>(), without.json()["prompt_tokens"].get<int>());
}

TEST_F(ToolCommands, PromptThatDoesNotFitSaysWhatWould) {
    const Outcome outcome = run_tool(small({"run", "-f", text_of(2500), "-c", "256"}));
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.err, HasSubstr("-c 256: the prompt has "));
    EXPECT_THAT(outcome.err, HasSubstr(": needs -c "));
}

TEST_F(ToolCommands, CompareMeasuresBothSides) {
    const Outcome outcome = run_tool(small(
        {"run", "-f", text_of(scaled(2500)), "-n", "9", "--temp", "0", "--ignore-eos", "--compare",
         "--json"}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json compare = outcome.json()["compare"];
    EXPECT_EQ(compare["complete"], true);
    EXPECT_EQ(compare["dense"]["against_stock"]["positions"], 9);
    // Stock differs from itself by about .003 when its flash attention is off: the activations are
    // rounded to 8 bits before every product with the weights of this model.
    EXPECT_LT(compare["dense"]["against_stock"]["kl_mean"].get<double>(), 0.02);
    EXPECT_GT(compare["sparse"]["against_dense"]["kl_mean"].get<double>(), 0.0);
    EXPECT_LT(compare["sparse"]["decode"]["kv_bytes_per_token"].get<double>(),
              compare["stock"]["decode"]["kv_bytes_per_token"].get<double>());
    EXPECT_GT(compare["stock"]["context_bytes"].get<uint64_t>(), 10'000'000U);
}

TEST_F(ToolCommands, SelfcheckPasses) {
    for (const std::vector<std::string>& policy :
         {std::vector<std::string>{},
          {"--selector.kind", "page_bounds", "--sharing.kind", "tidal", "--sharing.anchors",
           "5,12"}}) {
        std::vector<std::string> arguments = {"selfcheck"};
        arguments.insert(arguments.end(), policy.begin(), policy.end());
        const Outcome outcome = run_tool(small(arguments));
        EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
        EXPECT_THAT(outcome.out, testing::StartsWith("PASS"));
    }
}

TEST_F(ToolCommands, CalibrateWritesAProfileThatRunReads) {
    const std::string profile = temporary_file("smollm2.profile", "");
    const size_t tokens = scaled(512);
    const Outcome made =
        run_tool({"calibrate", "-m", model_path(), "-t", "1", "-f", text_of(4000), "-o", profile,
                  "--tokens", std::to_string(tokens), "--json"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_EQ(made.json()["tokens"], tokens);
    const Outcome used =
        run_tool({"run", "-m", model_path(), "-t", "1", "-f", text_of(1500), "-n", "4",
                  "--budget.rows", "64", "--profile.path", profile, "--json"});
    ASSERT_EQ(used.exit_code, 0) << used.err;
    EXPECT_GT(used.json()["stats"]["queries_sparse"].get<uint64_t>(), 0U);
    std::filesystem::remove(profile);
    const Outcome missing = run_tool({"run", "-m", model_path(), "-p", "x", "-n", "1",
                                      "--profile.path", profile});
    EXPECT_EQ(missing.exit_code, 2);
    EXPECT_THAT(missing.err, HasSubstr(profile));
}

TEST_F(ToolCommands, EvalReportsEveryPolicy) {
    const Outcome outcome = run_tool(
        small({"eval", "-f", text_of(4000), "--tokens", std::to_string(scaled(700)), "--positions",
               "24", "--rows", "64", "--policy",
               "labels,dense,recent,stock,page_bounds,hybrid,tidal", "--sharing.anchors", "2,9,20",
               "--json"}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json policies = outcome.json()["policies"];
    ASSERT_EQ(policies.size(), 7U);
    EXPECT_EQ(policies[0]["name"], "labels 64");
    EXPECT_EQ(policies[1]["name"], "dense");
    EXPECT_LT(policies[1]["kl_mean"].get<double>(), 1e-12) << "dense against itself";
    EXPECT_EQ(policies[1]["same_top"], 1.0);
    EXPECT_LT(policies[0]["kl_mean"].get<double>(), policies[2]["kl_mean"].get<double>());
    EXPECT_LT(policies[3]["kl_mean"].get<double>(), 0.02);
    // Each really ran: by what it selected from, and all closer than the safety set alone.
    const auto bytes = [&](size_t policy) {
        return policies[policy]["decode"]["label_bytes_per_token"].get<double>();
    };
    EXPECT_EQ(policies[4]["name"], "page_bounds 64");
    EXPECT_GT(bytes(4), bytes(0));
    EXPECT_EQ(policies[5]["name"], "hybrid 64");
    EXPECT_GT(bytes(5), bytes(4));
    EXPECT_EQ(policies[6]["name"], "tidal 64");
    EXPECT_LT(bytes(6), bytes(0) / 4);
    for (size_t i = 4; i < 7; ++i) {
        EXPECT_LT(policies[i]["kl_mean"].get<double>(), policies[2]["kl_mean"].get<double>()) << i;
    }
}

TEST_F(ToolCommands, AnchorsAreCheckedBeforeTheModelIsLoaded) {
    const auto refused = [&](std::vector<std::string> arguments) {
        const Outcome outcome = run_tool(small(std::move(arguments)));
        EXPECT_EQ(outcome.exit_code, 2);
        EXPECT_EQ(outcome.out, "");
        return outcome.err;
    };
    EXPECT_THAT(refused({"eval", "-f", text_of(4000), "--policy", "labels,tidal"}),
                HasSubstr("sharing.anchors = []: must name 1 layer or more"));
    EXPECT_THAT(refused({"run", "-p", "x", "-n", "1", "--sharing.kind", "tidal",
                         "--sharing.anchors", "1,40"}),
                HasSubstr("sharing.anchors: 1: is in budget.dense_layers too"));
    EXPECT_THAT(refused({"plan", "--sharing.kind", "tidal", "--sharing.anchors", "40"}),
                HasSubstr("sharing.anchors: 40: must be below 30, the layers of this model"));
}

TEST_F(ToolCommands, BenchFillsDepthByReplication) {
    const std::string report = temporary_file("bench.json", "");
    const Outcome outcome =
        run_tool(small({"bench", "-f", text_of(4000), "-d", "300,2000", "--read-max", "512", "-n",
                        "4", "--repeats", "1", "--prefill", "256", "--report", report}));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("* a speed test only"));
    const nlohmann::json json = nlohmann::json::parse(std::ifstream(report), nullptr, false);
    ASSERT_TRUE(json.is_object());
    ASSERT_EQ(json["depths"].size(), 2U);
    EXPECT_EQ(json["depths"][0]["replicated"], false);
    EXPECT_EQ(json["depths"][1]["replicated"], true);
    EXPECT_EQ(json["depths"][1]["shoal"]["tokens"], 4);
    EXPECT_LT(json["depths"][1]["shoal"]["tokens_attended"].get<double>(), 2000.0);
    EXPECT_EQ(json["prefill"][0]["tokens"], 256);
    // They once never reached the report. With 64 rows the last threshold misses now and then.
    const nlohmann::json& cost = json["depths"][1]["shoal"];
    EXPECT_GT(cost["rescans_per_token"].get<double>() +
                  cost["guess_misses_per_token"].get<double>(),
              0.0);
    EXPECT_GT(cost["score_ms_per_token"].get<double>(), 0.0);
}

// What a context takes against what `shoal plan` says of it, with the engine's own part of it.
void expect_memory_as_planned(const std::string& depth,
                              const std::vector<std::string>& more = {}) {
#ifdef SHOAL_SANITIZED
    GTEST_SKIP() << "a sanitizer's own memory would be counted";
#endif
    std::vector<std::string> arguments = {
        "bench", "-m", model_path(), "-t", "1", "-f", text_of(4000), "--profile.path",
        profile_path(), "-d", depth, "--read-max", "512", "-n", "2", "--repeats", "1", "--no-stock",
        "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run_tool(arguments);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const nlohmann::json found = outcome.json()["depths"][0];
    const auto planned = found["plan_bytes"].get<double>();
    EXPECT_NEAR(found["shoal_context_bytes"].get<double>() / planned, 1.0, 0.03) << found;
}

TEST_F(ToolCommands, MemoryIsAsPlanned) { expect_memory_as_planned("8192"); }
TEST_F(ToolCommands, LongMemoryIsAsPlanned) { expect_memory_as_planned("131072"); }
// A tenth of the rows in RAM.
TEST_F(ToolCommands, MemoryBesideADiskIsAsPlanned) {
    expect_memory_as_planned("32768", {"--kv-disk", testing::TempDir(), "--kv-ram", "128MiB"});
}

TEST_F(ToolCommands, InterruptPrintsWhatWasMeasured) {
    Outcome outcome;
    // Before it decodes there is nothing to print: on a busy machine it gets more time.
    for (const double seconds : {5.0, 15.0, 40.0}) {
        outcome = run_tool(Invocation{
            .arguments = small({"run", "-p", "Once upon a time", "-n", "20000", "--ignore-eos",
                                "--json"}),
            .interrupt_after_s = seconds});
        if (outcome.json().is_object()) break;
    }
    EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
    const nlohmann::json json = outcome.json();
    ASSERT_TRUE(json.is_object()) << outcome.out << outcome.err;
    EXPECT_EQ(json["interrupted"], true);
    EXPECT_LT(json["generated_tokens"].get<int>(), 20000);
    EXPECT_THAT(outcome.err, HasSubstr("shoal: interrupted\n"));
}

}  // namespace
}  // namespace shoal::tool_test
