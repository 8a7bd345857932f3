// shoal eval: how far a policy's next-token distributions are from those of dense attention, over
// the same rows, on a text of the user's.
#include <cmath>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/commands.hpp"
#include "runtime/tool/evaluation.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/f32_weights.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/report.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

struct EvalFlags {
    CommonFlags common;
    std::string file;
    std::string rows = "512,1024";
    std::vector<std::string> policies = {"labels"};
    std::string reference = "dense";
    int64_t tokens = 8192;
    int64_t positions = 2048;
    int64_t offset = 0;
    int64_t recall_every = 4;
    bool f32_weights = false;
};

double same_top_part(const Quality& quality) {
    return static_cast<double>(quality.same_top) / static_cast<double>(quality.kl.size());
}

std::string eval_text(const EvalFlags& flags, const Evaluation& evaluation) {
    Table table({"policy", "KL mean", "p50", "p99", "perplexity", "change %", "same top",
                 "mass found", "worst layer", "ms/token", "attended"});
    for (const Quality& q : evaluation.results()) {
        const PerplexityChange change = perplexity_change(q.loss_change);
        table.add({q.name, fmt::format("{:.5f}", mean_of(q.kl)),
                   fmt::format("{:.5f}", median(q.kl)), fmt::format("{:.4f}", quantile(q.kl, 0.99)),
                   fmt::format("{:.3f}", std::exp(q.loss_mean)),
                   fmt::format("{:+.2f} ±{:.2f}", change.percent, change.error),
                   fmt::format("{:.4f}", same_top_part(q)),
                   q.recall_samples == 0 ? "" : fmt::format("{:.3f}", q.mass_recall_mean),
                   q.recall_samples == 0 ? "" : fmt::format("{:.3f} ({})", q.mass_recall_worst,
                                                            q.mass_recall_worst_layer),
                   fmt::format("{:.1f}", median(q.cost.ms)),
                   fmt::format("{:.0f}", q.cost.tokens_attended)});
    }
    return fmt::format("{} positions after {} tokens of {}; reference {}, perplexity {:.3f}\n\n{}",
                       grouped(static_cast<uint64_t>(flags.positions)),
                       grouped(static_cast<uint64_t>(flags.tokens - flags.positions - 1)),
                       flags.file, flags.reference, std::exp(evaluation.reference_loss()),
                       table.text());
}

nlohmann::ordered_json eval_json(const EvalFlags& flags, const Prepared& prepared,
                                 const Evaluation& evaluation) {
    nlohmann::ordered_json json = report_header("eval", prepared);
    json["file"] = flags.file;
    json["tokens"] = flags.tokens;
    json["positions"] = flags.positions;
    json["offset"] = flags.offset;
    json["reference"] = {{"name", flags.reference},
                         {"perplexity", std::exp(evaluation.reference_loss())}};
    json["policies"] = nlohmann::ordered_json::array();
    for (const Quality& q : evaluation.results()) {
        const PerplexityChange change = perplexity_change(q.loss_change);
        nlohmann::ordered_json entry;
        entry["name"] = q.name;
        entry["kl_mean"] = mean_of(q.kl);
        entry["kl_p50"] = median(q.kl);
        entry["kl_p99"] = quantile(q.kl, 0.99);
        entry["kl_max"] = quantile(q.kl, 1.0);
        entry["perplexity"] = std::exp(q.loss_mean);
        entry["perplexity_change_percent"] = change.percent;
        entry["perplexity_change_error"] = change.error;
        entry["same_top"] = same_top_part(q);
        if (q.recall_samples > 0) {
            entry["mass_recall_mean"] = q.mass_recall_mean;
            entry["mass_recall_worst"] = q.mass_recall_worst;
            entry["mass_recall_worst_layer"] = q.mass_recall_worst_layer;
            entry["recall_samples"] = q.recall_samples;
        }
        entry["decode"] = cost_json(q.cost);
        json["policies"].push_back(std::move(entry));
    }
    return json;
}

// "labels-q8" is labels over rows kept as q8.
constexpr std::string_view kQ8Suffix = "-q8";

std::string without_suffix(const std::string& name) {
    return name.ends_with(kQ8Suffix) ? name.substr(0, name.size() - kQ8Suffix.size()) : name;
}

// FLAG is the one that named it: --policy or --reference.
Result<Policy> named_policy(const EvalFlags& flags, const char* flag, const std::string& given,
                            Config config) {
    config.stats.recall_every = static_cast<uint32_t>(flags.recall_every);
    std::string name = without_suffix(given);
    if (name != given) config.host.rows = HostRows::q8;
    if (name != given && name.starts_with("stock")) name = given;  // stock has no such rows
    Policy policy{.name = given, .engine = EngineKind::shoal, .config = config};
    if (name == "stock") {
        policy.engine = EngineKind::stock;
    } else if (name == "stock-noflash") {
        policy.engine = EngineKind::stock_no_flash;
    } else if (name == "dense") {
        policy.config.selector.kind = SelectorKind::dense;
    } else if (name == "labels") {
        policy.config.selector.kind = SelectorKind::labels;
    } else if (name == "page_bounds") {
        policy.config.selector.kind = SelectorKind::page_bounds;
    } else if (name == "hybrid") {
        policy.config.selector.kind = SelectorKind::hybrid;
    } else if (name == "tidal") {
        policy.config.selector.kind = SelectorKind::labels;
        policy.config.sharing.kind = SharingKind::tidal;
    } else if (name == "recent") {
        policy.config.selector.kind = SelectorKind::recent;
    } else {
        return input_error(fmt::format("{} {}: must be labels, page_bounds, hybrid, tidal, dense, "
                                       "recent, each with -q8 or without, stock or stock-noflash",
                                       flag, given));
    }
    return policy;
}

// Policies that select a number of rows: one entry for each of --rows.
bool takes_rows(const std::string& given) {
    const std::string name = without_suffix(given);
    return name == "labels" || name == "page_bounds" || name == "hybrid" || name == "tidal";
}

Result<std::vector<Policy>> make_policies(const EvalFlags& flags, const Config& config) {
    const auto rows = parse_numbers("--rows", flags.rows, 1);
    if (!rows) return rows.status();
    std::vector<Policy> policies;
    for (const std::string& name : flags.policies) {
        Result<Policy> policy = named_policy(flags, "--policy", name, config);
        if (!policy) return policy.status();
        if (!takes_rows(name)) {
            policies.push_back(std::move(*policy));
            continue;
        }
        for (const uint32_t count : *rows) {
            policy->name = fmt::format("{} {}", name, count);
            policy->config.budget.rows = count;
            policies.push_back(*policy);
        }
    }
    return policies;
}

// All policies read one context, which keeps what any of them selects by.
Config config_for(const std::vector<Policy>& policies, Config config) {
    bool labels = false;
    bool bounds = false;
    for (const Policy& policy : policies) {
        const SelectorKind kind = policy.config.selector.kind;
        labels = labels || kind == SelectorKind::labels || kind == SelectorKind::hybrid;
        bounds = bounds || kind == SelectorKind::page_bounds || kind == SelectorKind::hybrid;
    }
    if (bounds) config.selector.kind = labels ? SelectorKind::hybrid : SelectorKind::page_bounds;
    else if (labels) config.selector.kind = SelectorKind::labels;
    return config;
}

Status check_flags(const EvalFlags& flags) {
    if (flags.tokens < 2 || flags.tokens > (1 << 26)) {
        return input_error(fmt::format("--tokens {}: must be 2 or more", flags.tokens));
    }
    if (flags.positions < 1 || flags.positions > flags.tokens - 2) {
        return input_error(fmt::format("--positions {}: must be 1 to {} (--tokens less 2)",
                                       flags.positions, flags.tokens - 2));
    }
    const auto offset = checked_number("--offset", flags.offset, 0, kTokensMax);
    if (!offset) return offset.status();
    const auto every = checked_number("--recall-every", flags.recall_every, 0, kTokensMax);
    if (!every) return every.status();
    // Names and counts, before a model is opened; its configuration comes into the policies later.
    const auto policies = make_policies(flags, {});
    if (!policies) return policies.status();
    return named_policy(flags, "--reference", flags.reference, {}).status();
}

int eval_command(const EvalFlags& flags) {
    SHOAL_TOOL_TRY(refuse_context(flags.common, "eval"));
    const Status checked = check_flags(flags);
    if (!checked.is_ok()) return report_error(checked);
    const Result<std::string> text = read_text_file("-f", flags.file);
    if (!text) return report_error(text.status());
    CommonFlags common = flags.common;
    std::optional<TemporaryFile> weights;
    if (flags.f32_weights) {
        const Result<Prepared> as_given = prepare(common);  // refuses what is no model
        if (!as_given) return report_error(as_given.status());
        Result<TemporaryFile> written = write_f32_weights(common.model.model, 0);
        if (!written) return report_error(written.status());
        weights.emplace(std::move(*written));
        common.model.model = weights->path();
    }
    const Result<Prepared> prepared = prepare(common);
    if (!prepared) return report_error(prepared.status());
    SHOAL_TOOL_TRY(check_config(*prepared));
    const auto policies = make_policies(flags, prepared->config.config);
    if (!policies) return report_error(policies.status());
    const auto reference =
        named_policy(flags, "--reference", flags.reference, prepared->config.config);
    if (!reference) return report_error(reference.status());
    const EvalOptions options{.file = flags.file,
                              .tokens = static_cast<uint32_t>(flags.tokens),
                              .positions = static_cast<uint32_t>(flags.positions),
                              .offset = static_cast<uint32_t>(flags.offset)};
    for (const Policy& policy : *policies) {
        Prepared under = *prepared;
        under.config.config = policy.config;
        SHOAL_TOOL_TRY(check_config(under));
    }
    EngineOptions engine = prepared->engine;
    engine.config = config_for(*policies, engine.config);
    Evaluation evaluation(options, engine);
    const Status status = evaluation.run(*text, *policies, *reference);
    if (!status.is_ok() && !is_interrupted_status(status)) return report_error(status);
    SHOAL_TOOL_TRY(print_result(flags.common, eval_json(flags, *prepared, evaluation),
                                eval_text(flags, evaluation)));
    return status.is_ok() ? kExitOk : report_error(status);
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
    auto flags = std::make_shared<EvalFlags>();
    CLI::App* command = app.add_subcommand(
        "eval", "how much a policy changes what the model says, against dense attention");
    add_model_flags(*command, flags->common.model);
    command->add_option("-f,--file", flags->file, "the text")->required();
    command->add_option("--tokens", flags->tokens, "tokens of the text to use")
        ->capture_default_str();
    command->add_option("--positions", flags->positions,
                        "last tokens that are read one at a time and compared")
        ->capture_default_str();
    command->add_option("--offset", flags->offset, "tokens of the text to skip first")
        ->capture_default_str();
    command->add_option("--rows", flags->rows,
                        "budgets to try with the policies labels, page_bounds, hybrid and tidal")
        ->capture_default_str();
    command->add_option("--policy", flags->policies,
                        "what to compare: labels, page_bounds, hybrid, tidal (labels that layers "
                        "share, as sharing.anchors says), dense, recent, stock, stock-noflash; "
                        "all but the last two also with -q8 behind: over rows kept as q8")
        ->delimiter(',')->capture_default_str();
    command->add_option("--reference", flags->reference, "what to compare with")
        ->capture_default_str();
    command->add_option("--recall-every", flags->recall_every,
                        "every n-th token one layer's selection is compared with exact scores")
        ->capture_default_str();
    command->add_flag("--f32-weights", flags->f32_weights,
                      "write the weights out as F32 first (a temporary file), so that the "
                      "engine's own rounding of activations does not drown the difference");
    add_output_flags(*command, flags->common);
    add_config_flags(*command, flags->common.config);
    command->callback([flags, &action] { action.run = [flags] { return eval_command(*flags); }; });
}

}  // namespace shoal::tool
