// shoal config: every resolved value and where it comes from.
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/report.hpp"

namespace shoal::tool {
namespace {

struct ConfigCommandFlags {
    ConfigFlags config;
    bool json = false;
    bool schema = false;
    bool toml = false;
};

const char* origin_word(ConfigOrigin origin) {
    switch (origin) {
        case ConfigOrigin::default_value: return "default";
        case ConfigOrigin::file: return "file";
        case ConfigOrigin::environment: return "environment";
        case ConfigOrigin::flag: return "flag";
    }
    return "";
}

nlohmann::ordered_json settings_json(const ResolvedConfig& resolved) {
    nlohmann::ordered_json json;
    for (const ConfigSetting& setting : resolved.settings) {
        json[setting.key] = {{"value", setting.value},
                             {"origin", origin_word(setting.origin)},
                             {"where", setting.where}};
    }
    return json;
}

int config_command(const ConfigCommandFlags& flags) {
    if (flags.schema) {
        fmt::print("{}\n", config_schema());
        return kExitOk;
    }
    const Result<ResolvedConfig> resolved = resolve_config(flags.config);
    if (!resolved) return report_error(resolved.status());
    if (flags.json) {
        print_json(settings_json(*resolved));
    } else if (flags.toml) {
        fmt::print("{}", config_to_toml(resolved->config));
    } else {
        fmt::print("{}", settings_text(*resolved));
    }
    return kExitOk;
}

}  // namespace

void add_config(CLI::App& app, Action& action) {
    auto flags = std::make_shared<ConfigCommandFlags>();
    CLI::App* command =
        app.add_subcommand("config", "print every setting and where its value comes from");
    command->add_flag("--schema", flags->schema, "print the JSON Schema of the file instead");
    command->add_flag("--toml", flags->toml, "print a file to start from instead");
    command->add_flag("--json", flags->json, "print one JSON object");
    add_config_flags(*command, flags->config);
    command->callback(
        [flags, &action] { action.run = [flags] { return config_command(*flags); }; });
}

}  // namespace shoal::tool
