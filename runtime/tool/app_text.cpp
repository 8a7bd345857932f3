#include "runtime/tool/app_text.hpp"

#include <sstream>

#include <CLI/CLI.hpp>

#include "runtime/config_keys.hpp"

namespace shoal::tool {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
    return parts;
}

OptionText read_option(const CLI::Option& option) {
    OptionText text;
    for (const std::string& name : option.get_snames()) text.names.push_back("-" + name);
    for (const std::string& name : option.get_lnames()) text.names.push_back("--" + name);
    text.description = option.get_description();
    if (option.get_items_expected_max() > 0) text.value = option.get_type_name();
    text.default_value = option.get_default_str();
    if (option.get_lnames().empty()) return text;
    const ConfigKey* key = config_key_find(option.get_lnames().front());
    if (key == nullptr) return text;
    text.is_key = true;
    if (key->kind == ConfigKeyKind::boolean) text.choices = {"true", "false"};
    if (key->kind != ConfigKeyKind::choice) return text;
    text.choices.assign(key->choices.begin(), key->choices.end());
    return text;
}

}  // namespace

std::vector<CommandText> read_commands(const CLI::App& app) {
    std::vector<CommandText> commands;
    for (const CLI::App* command : app.get_subcommands({})) {
        CommandText text{command->get_name(), command->get_description(), {}, {}};
        for (const CLI::Option* option : command->get_options()) {
            if (option->get_group().empty()) continue;  // hidden
            if (option->get_positional()) text.words = split(option->get_type_name(), '|');
            else text.options.push_back(read_option(*option));
        }
        commands.push_back(std::move(text));
    }
    return commands;
}

}  // namespace shoal::tool
