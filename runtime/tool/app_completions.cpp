// Completion scripts. Values: the choices of a configuration key, else the names of files.
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/tool/app_text.hpp"

namespace shoal::tool {
namespace {

std::string all_names(const CommandText& command) {
    std::vector<std::string> names = command.words;
    for (const OptionText& option : command.options) {
        names.insert(names.end(), option.names.begin(), option.names.end());
    }
    return fmt::format("{}", fmt::join(names, " "));
}

std::string command_names(const std::vector<CommandText>& commands) {
    std::string names;
    for (const CommandText& command : commands) names += command.name + " ";
    return names + "--help --version";
}

// "--key" -> "a b c" over all commands.
std::map<std::string, std::string> all_choices(const std::vector<CommandText>& commands) {
    std::map<std::string, std::string> choices;
    for (const CommandText& command : commands) {
        for (const OptionText& option : command.options) {
            if (option.choices.empty()) continue;
            choices[option.names.front()] = fmt::format("{}", fmt::join(option.choices, " "));
        }
    }
    return choices;
}

// Options that are followed by a value, for a `case` of the shell: "-m|--model|...".
std::string with_value(const CommandText& command) {
    std::string names;
    for (const OptionText& option : command.options) {
        if (option.value.empty() || !option.choices.empty()) continue;
        for (const std::string& name : option.names) names += (names.empty() ? "" : "|") + name;
    }
    return names;
}

// Inside single quotes of any shell.
std::string single_quoted(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '\'') out += "'\\''";
        else out += c;
    }
    return out;
}

// Inside "[...]" of zsh's _arguments as well, where brackets and colons have a meaning.
std::string zsh_quoted(const std::string& text) {
    std::string out;
    for (const char c : text) {
        if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
        out += c;
    }
    return single_quoted(out);
}

}  // namespace

std::string bash_completions(const CLI::App& app) {
    const std::vector<CommandText> commands = read_commands(app);
    std::string text = "# bash: source <(shoal completions bash)\n_shoal() {\n"
                       "    local word=\"${COMP_WORDS[COMP_CWORD]}\" names=\n"
                       "    local before=\"${COMP_WORDS[COMP_CWORD - 1]}\"\n"
                       "    COMPREPLY=()\n"
                       "    case \"$before\" in\n";
    for (const auto& [name, choices] : all_choices(commands)) {
        text += fmt::format("        {}) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;\n",
                            name, choices);
    }
    text += "    esac\n    if [ \"$COMP_CWORD\" -eq 1 ]; then\n";
    text += fmt::format("        COMPREPLY=($(compgen -W '{}' -- \"$word\"))\n        return\n"
                        "    fi\n    case \"${{COMP_WORDS[1]}}\" in\n",
                        command_names(commands));
    for (const CommandText& command : commands) {
        text += fmt::format("        {})\n", command.name);
        const std::string values = with_value(command);
        if (!values.empty()) {  // no reply: bash completes files, as `complete -o default` says
            text += fmt::format("            case \"$before\" in\n                {}) return ;;\n"
                                "            esac\n",
                                values);
        }
        text += fmt::format("            names='{}' ;;\n", all_names(command));
    }
    return text + "    esac\n    COMPREPLY=($(compgen -W \"$names\" -- \"$word\"))\n}\n"
                  "complete -o default -F _shoal shoal\n";
}

std::string zsh_completions(const CLI::App& app) {
    const std::vector<CommandText> commands = read_commands(app);
    std::string text = "#compdef shoal\n# zsh: shoal completions zsh > a folder of $fpath/_shoal\n"
                       "_shoal() {\n    local -a commands=(\n";
    for (const CommandText& command : commands) {
        text += fmt::format("        '{}:{}'\n", command.name, zsh_quoted(command.description));
    }
    text += "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n"
            "        return\n    fi\n    local command=\"$words[2]\"\n    shift words\n"
            "    (( CURRENT-- ))\n    case \"$command\" in\n";
    for (const CommandText& command : commands) {
        text += fmt::format("        {})\n            _arguments", command.name);
        for (const OptionText& option : command.options) {
            std::string value;
            if (!option.choices.empty()) {
                value = fmt::format(":value:({})", fmt::join(option.choices, " "));
            } else if (!option.value.empty()) {
                value = ":value:_files";
            }
            for (const std::string& name : option.names) {
                text += fmt::format(" \\\n                '{}[{}]{}'", name,
                                    zsh_quoted(option.description), value);
            }
        }
        if (!command.words.empty()) {
            text += fmt::format(" \\\n                '1:value:({})'",
                                fmt::join(command.words, " "));
        }
        text += " ;;\n";
    }
    return text + "    esac\n}\n"
                  "if [ \"$funcstack[1]\" = _shoal ]; then _shoal \"$@\"; "
                  "else compdef _shoal shoal; fi\n";
}

std::string fish_completions(const CLI::App& app) {
    const std::vector<CommandText> commands = read_commands(app);
    std::string text = "# fish: shoal completions fish | source\n";
    for (const CommandText& command : commands) {
        text += fmt::format("complete -c shoal -n __fish_use_subcommand -f -a {} -d '{}'\n",
                            command.name, single_quoted(command.description));
    }
    for (const CommandText& command : commands) {
        if (!command.words.empty()) {
            text += fmt::format("complete -c shoal -n '__fish_seen_subcommand_from {}' -f -a "
                                "'{}'\n",
                                command.name, fmt::join(command.words, " "));
        }
        for (const OptionText& option : command.options) {
            text += fmt::format("complete -c shoal -n '__fish_seen_subcommand_from {}'",
                                command.name);
            for (const std::string& name : option.names) {
                const bool is_long = name.starts_with("--");
                text += fmt::format(" -{} {}", is_long ? "l" : "s", name.substr(is_long ? 2 : 1));
            }
            if (!option.value.empty()) text += " -r";
            if (!option.choices.empty()) {
                text += fmt::format(" -f -a '{}'", fmt::join(option.choices, " "));
            }
            text += fmt::format(" -d '{}'\n", single_quoted(option.description));
        }
    }
    return text;
}

}  // namespace shoal::tool
