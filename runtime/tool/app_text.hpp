// What the command line offers, read from the parser itself, in the forms that shells and man
// want: they cannot fall behind the flags.
#pragma once

#include <string>
#include <vector>

#include <CLI/App.hpp>

namespace shoal::tool {

// An option as a user sees it; hidden ones are left out everywhere.
struct OptionText {
    std::vector<std::string> names;    // "-m", "--model", in this order
    std::string description;
    std::string value;                 // "TEXT", "1024", or "" for a flag
    std::string default_value;         // as --help shows it in brackets, or ""
    std::vector<std::string> choices;  // of a configuration key
    bool is_key = false;               // a configuration key: the same in every command
};

struct CommandText {
    std::string name;
    std::string description;
    std::vector<OptionText> options;
    std::vector<std::string> words;  // that may stand without a flag: "bash", "zsh", "fish"
};

std::vector<CommandText> read_commands(const CLI::App& app);

std::string bash_completions(const CLI::App& app);
std::string zsh_completions(const CLI::App& app);
std::string fish_completions(const CLI::App& app);
// A page of section 1, roff with the man macros.
std::string man_page(const CLI::App& app, const std::string& version);

}  // namespace shoal::tool
