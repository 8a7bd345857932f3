// shoal selfcheck: with a budget of everything, the sparse path gives the dense one's logits, bit
// for bit, on the user's own model and machine.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/generate.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/report.hpp"

namespace shoal::tool {
namespace {

constexpr uint32_t kTokens = 64;

struct SelfcheckFlags {
    CommonFlags common;
    std::string file;
};

struct CheckResult {
    uint32_t prompt = 0;
    uint32_t identical = 0;     // tokens whose logits are the same bits
    uint64_t sparse_queries = 0;  // query x layer pairs that went the sparse way
    double largest_difference = 0;
    bool passed(uint32_t layers) const {
        return identical == kTokens && sparse_queries >= uint64_t{kTokens} * layers;
    }
};

// Any tokens will do; without a file they are drawn, the same ones every time.
std::vector<llama_token> drawn_tokens(const Engine& engine, size_t count) {
    std::mt19937 random(1);
    std::vector<llama_token> tokens;
    while (tokens.size() < count) {
        const auto token = static_cast<llama_token>(random() % engine.vocab_size());
        if (!llama_vocab_is_control(engine.vocab(), token)) tokens.push_back(token);
    }
    return tokens;
}

Result<std::vector<std::vector<float>>> decode_under(Engine& engine, const Config& policy,
                                                     std::span<const llama_token> tokens,
                                                     uint32_t prompt) {
    SHOAL_TRY(engine.truncate(prompt));
    SHOAL_TRY(engine.set_policy(policy));
    std::vector<std::vector<float>> logits;
    for (const llama_token token : tokens) {
        const Result<double> took = engine.decode(token);
        if (!took) return took.status();
        const std::span<const float> row = engine.logits();
        logits.emplace_back(row.begin(), row.end());
    }
    return logits;
}

Result<CheckResult> check(const SelfcheckFlags& flags, const Prepared& prepared) {
    Result<std::unique_ptr<Engine>> loaded = Engine::load(EngineKind::shoal, prepared.engine);
    if (!loaded) return loaded.status();
    Engine& engine = **loaded;
    // Labels exist only once their statistics do: the prompt is longer than those need.
    CheckResult result;
    result.prompt = prepared.config.config.profile.tokens + 256;
    std::vector<llama_token> tokens;
    if (flags.file.empty()) {
        tokens = drawn_tokens(engine, result.prompt + kTokens);
    } else {
        const Result<std::string> text = read_text_file("-f", flags.file);
        if (!text) return text.status();
        tokens = engine.tokenize(*text, false);
        if (tokens.size() < result.prompt + kTokens) {
            return input_error(fmt::format("-f {}: has {} tokens, the check needs {}", flags.file,
                                           tokens.size(), result.prompt + kTokens));
        }
    }
    SHOAL_TRY(engine.make_context(padded_context(result.prompt + kTokens)));
    PrefillTiming timing;
    SHOAL_TRY(read_prompt(engine, std::span(tokens).first(result.prompt), "reading", timing));
    const auto tail = std::span<const llama_token>(tokens).subspan(result.prompt, kTokens);
    Config dense = prepared.config.config;
    dense.selector.kind = SelectorKind::dense;
    Config sparse = prepared.config.config;
    const SelectorKind kind = sparse.selector.kind;
    if (kind == SelectorKind::dense || kind == SelectorKind::recent) {
        sparse.selector.kind = SelectorKind::labels;
    }
    sparse.budget.rows = 1U << 30;
    sparse.budget.dense_rows = 1U << 30;
    sparse.budget.dense_layers.clear();
    sparse.budget.dense_below = 1;
    const auto expected = decode_under(engine, dense, tail, result.prompt);
    if (!expected) return expected.status();
    const Stats before = engine.plugin().stats();
    const auto actual = decode_under(engine, sparse, tail, result.prompt);
    if (!actual) return actual.status();
    result.sparse_queries = engine.plugin().stats().queries_sparse - before.queries_sparse;
    for (uint32_t i = 0; i < kTokens; ++i) {
        const std::vector<float>& a = (*expected)[i];
        const std::vector<float>& b = (*actual)[i];
        if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) ++result.identical;
        for (size_t j = 0; j < a.size(); ++j) {
            result.largest_difference =
                std::max(result.largest_difference, static_cast<double>(std::fabs(a[j] - b[j])));
        }
    }
    return result;
}

std::string selfcheck_text(const CheckResult& result, bool passed) {
    std::string text = fmt::format(
        "{}  sparse attention over everything equals dense attention: logits of {} of {} tokens "
        "are the same bits after {} tokens",
        passed ? "PASS" : "FAIL", result.identical, kTokens, result.prompt);
    if (result.identical < kTokens) {
        text += fmt::format(" (largest difference {:.3g})", result.largest_difference);
    }
    if (result.sparse_queries == 0) text += " (but the sparse path did not run)";
    return text + "\n";
}

int selfcheck_command(const SelfcheckFlags& flags) {
    SHOAL_TOOL_TRY(refuse_context(flags.common, "selfcheck"));
    const Result<Prepared> prepared = prepare(flags.common);
    if (!prepared) return report_error(prepared.status());
    SHOAL_TOOL_TRY(check_config(*prepared));
    const Result<CheckResult> result = check(flags, *prepared);
    if (!result) return report_error(result.status());
    const bool passed = result->passed(prepared->engine.model.layer_count);
    nlohmann::ordered_json json = report_header("selfcheck", *prepared);
    json["passed"] = passed;
    json["prompt_tokens"] = result->prompt;
    json["tokens"] = kTokens;
    json["identical_tokens"] = result->identical;
    json["sparse_queries"] = result->sparse_queries;
    json["largest_difference"] = result->largest_difference;
    SHOAL_TOOL_TRY(print_result(flags.common, json, selfcheck_text(*result, passed)));
    return passed ? kExitOk : kExitFailure;
}

}  // namespace

void add_selfcheck(CLI::App& app, Action& action) {
    auto flags = std::make_shared<SelfcheckFlags>();
    CLI::App* command = app.add_subcommand(
        "selfcheck", "prove on your model that a budget of everything gives dense attention");
    add_model_flags(*command, flags->common.model);
    command->add_option("-f,--file", flags->file, "a text to check on; drawn tokens otherwise");
    add_output_flags(*command, flags->common);
    add_config_flags(*command, flags->common.config);
    command->callback(
        [flags, &action] { action.run = [flags] { return selfcheck_command(*flags); }; });
}

}  // namespace shoal::tool
