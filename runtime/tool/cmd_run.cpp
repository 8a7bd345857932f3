// shoal run: continue a text, or answer, with the KV cache in Shoal.
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "offload/memory_limits.hpp"
#include "runtime/tool/commands.hpp"
#include "runtime/tool/compare.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/exports.hpp"
#include "runtime/tool/generate.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/output_file.hpp"
#include "runtime/tool/process_memory.hpp"
#include "runtime/tool/report.hpp"
#include "runtime/tool/sampling.hpp"
#include "runtime/tool/saved_kv.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"
#include "runtime/tool/utf8.hpp"

namespace shoal::tool {
namespace {

using offload::bytes_text;

struct RunFlags {
    CommonFlags common;
    SamplingFlags sampling;
    ExportFlags exports;
    std::string prompt;
    std::string file;
    SavedKvFlags kv;
    int64_t tokens = 128;
    bool chat = false;
    bool ignore_eos = false;
    bool compare = false;
};

struct Outcome {
    std::vector<llama_token> prompt;
    PrefillTiming prefill;
    SavedKvTiming kv;
    Generation generation;
    uint64_t context_bytes = 0;
    uint64_t resident_bytes = 0;  // of the process, weights included, at its end
    uint64_t peak_resident_bytes = 0;
    std::string stats_json;  // after the continuation
    Stats stats;
    bool compared = false;
    Comparison comparison;
};

Result<std::string> prompt_text(const RunFlags& flags) {
    const size_t bad = first_invalid_utf8(flags.prompt);
    if (bad != flags.prompt.size()) {
        return input_error(fmt::format("-p: byte {}: must be UTF-8 text", bad));
    }
    std::string text;
    if (!flags.file.empty()) {
        Result<std::string> file = read_text_file("-f", flags.file);
        if (!file) return file.status();
        text = std::move(*file);
    }
    if (!text.empty() && !flags.prompt.empty()) text += "\n\n";
    text += flags.prompt;
    if (text.empty() && (flags.kv.load.empty() || !flags.file.empty())) {
        return input_error(flags.file.empty()
                               ? "the prompt is empty: give -p TEXT, -f FILE or --load-kv FILE"
                               : fmt::format("-f {}: the file is empty", flags.file));
    }
    return text;
}

// The prompt as a user's message in the model's own chat format.
Result<std::string> chat_text(const Engine& engine, const std::string& prompt) {
    const char* chat_template = llama_model_chat_template(engine.model(), nullptr);
    if (chat_template == nullptr) {
        return input_error(fmt::format("--chat: {} has no chat template; leave --chat out",
                                       engine.options().model.path));
    }
    const llama_chat_message message = {"user", prompt.c_str()};
    std::string text(prompt.size() + 4096, '\0');
    const int32_t length = llama_chat_apply_template(chat_template, &message, 1, true, text.data(),
                                                     static_cast<int32_t>(text.size()));
    if (length < 0 || static_cast<size_t>(length) > text.size()) {
        return input_error("--chat: llama.cpp does not know this model's chat template");
    }
    text.resize(static_cast<size_t>(length));
    return text;
}

// Tokens of the context: -c, or what prompt and -n need.
Result<uint32_t> context_tokens(const EngineOptions& options, uint64_t prompt, uint32_t generated) {
    const uint64_t needed = prompt + generated;
    if (options.context_tokens == 0) return padded_context(needed);
    const uint32_t given = padded_context(options.context_tokens);
    if (needed <= given) return given;
    return input_error(fmt::format("-c {}: the prompt has {} tokens and -n asks for {} more: needs "
                                   "-c {}",
                                   options.context_tokens, prompt, generated, needed));
}

Status check_fits(const Prepared& prepared, uint32_t tokens) {
    const Result<MemoryPlan> plan = plan_memory(prepared.config.config, prepared.engine.model,
                                                tokens, prepared.engine.micro_batch);
    if (!plan) return plan.status();
    return check_memory(*plan, prepared.engine.model, tokens);
}

// The tokens of the file, if any (filled in when it is read), then those of the text.
Status tokenize_prompt(const Engine& engine, const RunFlags& flags, const std::string& given,
                       Outcome& out) {
    if (!flags.kv.load.empty()) {
        out.prompt.resize(out.kv.loaded_tokens);
        const std::vector<llama_token> more = engine.tokenize_more(given);
        out.prompt.insert(out.prompt.end(), more.begin(), more.end());
        return Status::ok();
    }
    Result<std::string> text = flags.chat ? chat_text(engine, given) : Result<std::string>(given);
    if (!text) return text.status();
    out.prompt = engine.tokenize(*text, flags.chat);
    return out.prompt.empty() ? input_error("the prompt is empty: it holds no token")
                              : Status::ok();
}

// Reads the file, then the prompt, then saves both, as the flags want it.
Status fill_context(Engine& engine, const RunFlags& flags, Outcome& out) {
    const std::span<llama_token> prompt(out.prompt);
    SHOAL_TRY(load_kv(engine, flags.kv, prompt.first(out.kv.loaded_tokens), out.kv));
    const std::span<const llama_token> more = prompt.subspan(out.kv.loaded_tokens);
    if (!more.empty()) {
        out.kv.logits.clear();
        SHOAL_TRY(read_prompt(engine, more, "reading the prompt", out.prefill));
    }
    return save_kv(engine, flags.kv, prompt, out.kv);
}

Status generate_all(const RunFlags& flags, const Prepared& prepared, const std::string& given,
                    Outcome& out) {
    Exports exports(flags.exports);
    SHOAL_TRY(exports.open(flags.common.report));
    Result<std::unique_ptr<Engine>> loaded = Engine::load(EngineKind::shoal, prepared.engine);
    if (!loaded) return loaded.status();
    Engine& engine = **loaded;
    SHOAL_TRY(tokenize_prompt(engine, flags, given, out));
    const auto limit = static_cast<uint32_t>(flags.tokens);
    const Result<uint32_t> context = context_tokens(prepared.engine, out.prompt.size(), limit);
    if (!context) return context.status();
    SHOAL_TRY(check_fits(prepared, *context));
    const uint64_t before = resident_anonymous_bytes();
    SHOAL_TRY(engine.make_context(*context));
    SHOAL_TRY(exports.attach(engine));
    const Status read = fill_context(engine, flags, out);
    out.stats = engine.plugin().stats();
    out.stats_json = engine.plugin().stats_json();
    if (!read.is_ok()) {
        out.generation.status = read;
        SHOAL_TRY(exports.finish(engine));
        return is_interrupted_status(read) ? Status::ok() : read;
    }
    const SamplerPtr sampler = make_sampler(flags.sampling);
    if (!flags.common.json && flags.file.empty() && !flags.chat) {
        fmt::print("{}", given);
        std::fflush(stdout);
    }
    out.generation = generate(engine, sampler.get(),
                              {.tokens_max = limit, .ignore_eos = flags.ignore_eos,
                               .logits = out.kv.logits, .stream = !flags.common.json});
    out.context_bytes = resident_anonymous_bytes() - before;
    out.resident_bytes = resident_bytes();
    out.peak_resident_bytes = peak_resident_bytes();
    out.stats = engine.plugin().stats();
    out.stats_json = engine.plugin().stats_json();
    if (!flags.common.json) fmt::print("\n");
    std::fflush(stdout);
    SHOAL_TRY(exports.finish(engine));
    if (flags.compare && out.generation.status.is_ok() && !out.generation.tokens.empty()) {
        out.compared = true;
        out.comparison = compare_with_stock(engine, out.prefill, out.context_bytes, out.prompt,
                                            out.generation.tokens);
    }
    return Status::ok();
}

std::string summary_text(const Prepared& prepared, const Outcome& out) {
    const Stats& stats = out.stats;
    const Generation& generation = out.generation;
    const ModelFile& model = prepared.engine.model;
    const RowFormat stored = stored_rows(prepared.config.config, model.shape.rows);
    Table table({"", "", ""});
    if (out.kv.loaded_tokens > 0) {
        table.add({"loaded", fmt::format("{} tokens", grouped(out.kv.loaded_tokens)),
                   seconds_text(out.kv.loaded_bytes, out.kv.load_seconds)});
    }
    table.add({"prompt", fmt::format("{} tokens", grouped(out.prefill.tokens)),
               fmt::format("{:.0f} tokens/s", out.prefill.tokens_per_second())});
    if (out.kv.saved_bytes > 0) {
        table.add({"saved", fmt::format("{} tokens", grouped(out.prompt.size())),
                   seconds_text(out.kv.saved_bytes, out.kv.save_seconds)});
    }
    if (!generation.cost.ms.empty()) {
        const double ms = median(generation.cost.ms);
        table.add({"continuation", fmt::format("{} tokens", generation.tokens.size()),
                   fmt::format("{:.1f} ms per token ({:.0f} tokens/s)", ms, 1000 / ms)});
        table.add({"attended", fmt::format("{:.0f} tokens", generation.cost.tokens_attended),
                   fmt::format("of {}", grouped(stats.slots_used))});
        table.add({"read per token",
                   bytes_text(static_cast<uint64_t>(generation.cost.kv_bytes +
                                                    generation.cost.label_bytes)),
                   fmt::format("of {}", bytes_text(stats.slots_used *
                                                   model.kv_bytes_per_token(stored)))});
    }
    table.add({"memory", fmt::format("KV {}", bytes_text(stats.host_kv_bytes)),
               fmt::format("labels {}, process {}", bytes_text(stats.label_bytes),
                           bytes_text(out.resident_bytes))});
    if (stats.disk_kv_bytes != 0) {
        const DecodeCost::Disk& disk = generation.cost.disk;
        table.add({"disk", fmt::format("{} a token", bytes_text(static_cast<uint64_t>(
                                                          disk.read_bytes))),
                   fmt::format("file {}, {:.0f} % of blocks found in RAM, waits {:.1f} ms a token",
                               bytes_text(stats.disk_kv_bytes), 100 * disk.hit_rate,
                               disk.wait_ms)});
    }
    if (stats.recall_samples > 0) {
        table.add({"attention mass found", fmt::format("{:.3f}", stats.mass_recall_mean()),
                   fmt::format("{} samples", stats.recall_samples)});
    }
    std::string text = table.text();
    text.erase(0, text.find('\n'));  // the empty header
    const std::string changed = changed_settings(prepared.config);
    if (!changed.empty()) text += fmt::format("with {}\n", changed);
    return text;
}

nlohmann::ordered_json run_json(const Prepared& prepared, const Outcome& out) {
    nlohmann::ordered_json json = report_header("run", prepared);
    json["prompt_tokens"] = out.prompt.size();
    json["text"] = out.generation.text;
    json["generated_tokens"] = out.generation.tokens.size();
    json["tokens"] = out.generation.tokens;
    json["end_of_text"] = out.generation.end_of_text;
    json["interrupted"] = is_interrupted_status(out.generation.status) ||
                          is_interrupted_status(out.comparison.status);
    json["prefill"] = {{"tokens", out.prefill.tokens},
                       {"seconds", out.prefill.seconds},
                       {"tokens_per_second", out.prefill.tokens_per_second()}};
    json["kv_files"] = saved_kv_json(out.kv);
    json["decode"] = cost_json(out.generation.cost);
    json["context_bytes"] = out.context_bytes;
    json["resident_bytes"] = out.resident_bytes;
    json["peak_resident_bytes"] = out.peak_resident_bytes;
    json["stats"] = nlohmann::ordered_json::parse(out.stats_json, nullptr, false);
    if (out.compared) json["compare"] = comparison_json(out.comparison);
    return json;
}

Status check_saved_kv(const RunFlags& flags, const Prepared& prepared, SavedKvTiming& kv) {
    const OutputFile files[] = {{"--report", flags.common.report, kReportBeginning},
                                {"--metrics", flags.exports.metrics, kMetricsBeginning},
                                {"--trace", flags.exports.trace, kTraceBeginning},
                                {"--save-kv", flags.kv.save, kSavedBeginning}};
    SHOAL_TRY(check_outputs(files));
    if (!flags.kv.load.empty() && (flags.chat || flags.compare)) {
        return input_error(fmt::format("--load-kv: not with {}",
                                       flags.chat ? "--chat" : "--compare"));
    }
    return check_kv_files(flags.kv, prepared.engine, kv);
}

int run_command(const RunFlags& flags) {
    const Status sampling = check_sampling(flags.sampling);
    if (!sampling.is_ok()) return report_error(sampling);
    const Result<uint32_t> count = checked_number("-n", flags.tokens, 1, kTokensMax);
    if (!count) return report_error(count.status());
    const Result<std::string> text = prompt_text(flags);
    if (!text) return report_error(text.status());
    const Result<Prepared> prepared = prepare(flags.common);
    if (!prepared) return report_error(prepared.status());
    SHOAL_TOOL_TRY(check_config(*prepared));
    if (prepared->engine.context_tokens > 0) {
        const Status fits = check_fits(*prepared, prepared->engine.context_tokens);
        if (!fits.is_ok()) return report_error(fits);
    }
    Outcome out;
    SHOAL_TOOL_TRY(check_saved_kv(flags, *prepared, out.kv));
    const Status status = generate_all(flags, *prepared, *text, out);
    if (!status.is_ok()) return report_error(status);
    if (!flags.common.json) {
        fmt::print(stderr, "\n{}", summary_text(*prepared, out));
        if (out.compared) fmt::print(stderr, "\n{}", comparison_text(out.comparison));
    }
    SHOAL_TOOL_TRY(print_result(flags.common, run_json(*prepared, out), ""));
    const Status& ended = out.compared ? out.comparison.status : out.generation.status;
    return ended.is_ok() ? kExitOk : report_error(ended);
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
    auto flags = std::make_shared<RunFlags>();
    CLI::App* command = app.add_subcommand("run", "continue a text, or answer a question");
    add_model_flags(*command, flags->common.model);
    command->add_option("-p,--prompt", flags->prompt, "the text to continue, or the question");
    command->add_option("-f,--file", flags->file, "a file to read first");
    command->add_option("-n,--predict", flags->tokens, "tokens to write")->capture_default_str();
    command->add_flag("--chat,!--no-chat", flags->chat,
                      "put the prompt in the model's chat format, as a question to it");
    command->add_flag("--ignore-eos", flags->ignore_eos, "go on after the end of the text");
    command->add_flag("--compare", flags->compare,
                      "do the same with stock llama.cpp and print both side by side");
    add_saved_kv_flags(*command, flags->kv);
    add_sampling_flags(*command, flags->sampling);
    add_output_flags(*command, flags->common);
    add_metrics_flag(*command, flags->exports);
    add_trace_flag(*command, flags->exports);
    add_config_flags(*command, flags->common.config);
    command->callback([flags, &action] { action.run = [flags] { return run_command(*flags); }; });
}

}  // namespace shoal::tool
