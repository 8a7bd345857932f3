// shoal calibrate: channel statistics of a model, from a text, into a profile.
#include <filesystem>
#include <memory>
#include <system_error>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/generate.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/output_file.hpp"
#include "runtime/tool/report.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

struct CalibrateFlags {
    CommonFlags common;
    std::string file;
    std::string output;
    std::string source;
    int64_t tokens = 4096;
};

// "persuasion.txt, tokens 0 to 4,096", unless the user has a better name for the text.
std::string source_name(const CalibrateFlags& flags) {
    if (!flags.source.empty()) return flags.source;
    return fmt::format("{}, first {} tokens", std::filesystem::path(flags.file).filename().string(),
                       grouped(static_cast<uint64_t>(flags.tokens)));
}

// A profile is put in place by a rename, which would replace a device by a file.
Status check_output(const CalibrateFlags& flags) {
    const std::string& path = flags.output;
    SHOAL_TRY(check_writable("-o", path));
    std::error_code error;
    if (!std::filesystem::exists(path, error) || std::filesystem::is_regular_file(path, error)) {
        const OutputFile files[] = {{"-o", path, kProfileBeginning},
                                    {"--report", flags.common.report, kReportBeginning}};
        return check_outputs(files);
    }
    return input_error(fmt::format("-o {}: is there and not a regular file", path));
}

Result<PrefillTiming> calibrate(const CalibrateFlags& flags, const EngineOptions& options,
                                const std::string& text) {
    Result<std::unique_ptr<Engine>> loaded = Engine::load(EngineKind::shoal, options);
    if (!loaded) return loaded.status();
    Engine& engine = **loaded;
    std::vector<llama_token> tokens = engine.tokenize(text, false);
    const auto wanted = static_cast<size_t>(flags.tokens);
    if (tokens.size() < wanted) {
        return input_error(fmt::format("-f {}: has {} tokens, --tokens asks for {}", flags.file,
                                       grouped(tokens.size()), grouped(wanted)));
    }
    tokens.resize(wanted);
    SHOAL_TRY(engine.make_context(padded_context(wanted)));
    PrefillTiming timing;
    SHOAL_TRY(read_prompt(engine, tokens, "calibrating", timing));
    SHOAL_TRY(engine.plugin().write_profile(flags.output, source_name(flags)));
    return timing;
}

int calibrate_command(const CalibrateFlags& flags) {
    SHOAL_TOOL_TRY(refuse_context(flags.common, "calibrate"));
    const Result<uint32_t> count = checked_number("--tokens", flags.tokens, 256, 1 << 20);
    if (!count) return report_error(count.status());
    SHOAL_TOOL_TRY(check_output(flags));
    const Result<std::string> text = read_text_file("-f", flags.file);
    if (!text) return report_error(text.status());
    Result<Prepared> prepared = prepare(flags.common);
    if (!prepared) return report_error(prepared.status());
    Config& config = prepared->config.config;
    config.profile.path.clear();      // learn afresh, from as many tokens as were asked for
    config.profile.tokens = *count;
    config.selector.kind = SelectorKind::labels;
    prepared->engine.config = config;
    SHOAL_TOOL_TRY(check_config(*prepared));
    const Result<PrefillTiming> timing = calibrate(flags, prepared->engine, *text);
    if (!timing) return report_error(timing.status());
    nlohmann::ordered_json json = report_header("calibrate", *prepared);
    json["output"] = flags.output;
    json["source"] = source_name(flags);
    json["tokens"] = timing->tokens;
    json["seconds"] = timing->seconds;
    const std::string told = fmt::format(
        "{}: channel statistics of {}, learnt in {:.1f} s\nUse it with --profile.path {}\n",
        flags.output, prepared->engine.model.name, timing->seconds, flags.output);
    SHOAL_TOOL_TRY(print_result(flags.common, json, told));
    return kExitOk;
}

}  // namespace

void add_calibrate(CLI::App& app, Action& action) {
    auto flags = std::make_shared<CalibrateFlags>();
    CLI::App* command = app.add_subcommand(
        "calibrate", "learn from a text which key channels matter, and write a profile");
    add_model_flags(*command, flags->common.model);
    command->add_option("-f,--file", flags->file, "the text; a mixture of kinds is best")
        ->required();
    command->add_option("-o,--output", flags->output, "the profile to write")->required();
    command->add_option("--tokens", flags->tokens, "tokens of the text to use")
        ->capture_default_str();
    command->add_option("--source", flags->source, "what the profile says it was made from");
    add_output_flags(*command, flags->common);
    add_config_flags(*command, flags->common.config);
    command->callback(
        [flags, &action] { action.run = [flags] { return calibrate_command(*flags); }; });
}

}  // namespace shoal::tool
