// The man page, from the texts that --help prints.
#include <algorithm>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/config_keys.hpp"
#include "runtime/tool/app_text.hpp"
#include "runtime/tool/config_layers.hpp"

namespace shoal::tool {
namespace {

// Text as roff prints it: no line may begin with a request, '-' stays an ASCII minus.
std::string roff(const std::string& text) {
    std::string out;
    bool line_start = true;
    for (const char c : text) {
        if (line_start && (c == '.' || c == '\'')) out += "\\&";
        line_start = c == '\n';
        if (c == '\\') out += "\\e";
        else if (c == '-') out += "\\-";
        else out += c;
    }
    return out;
}

// Paragraphs are filled; lines that --help indents are examples and stay as they are.
std::string roff_description(const std::string& text) {
    std::string out;
    bool example = false;
    size_t begin = 0;
    while (begin < text.size()) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string line = text.substr(begin, end - begin);
        const bool indented = line.starts_with("  ");
        if (indented != example) out += indented ? ".PP\n.EX\n" : ".EE\n";
        example = indented;
        if (line.empty()) out += ".PP\n";
        else out += roff(line) + "\n";
        begin = end + 1;
    }
    const std::string twice = ".PP\n.PP\n";  // in front of an example
    for (size_t at = out.find(twice); at != std::string::npos; at = out.find(twice)) {
        out.erase(at, 4);
    }
    return example ? out + ".EE\n" : out;
}

std::string option_item(const OptionText& option) {
    std::string text = ".TP\n";
    std::string names;
    for (const std::string& name : option.names) {
        names += fmt::format("{}\\fB{}\\fR", names.empty() ? "" : ", ", roff(name));
    }
    if (!option.value.empty()) names += fmt::format(" \\fI{}\\fR", roff(option.value));
    text += names + "\n" + roff(option.description);
    if (!option.default_value.empty()) text += " [" + roff(option.default_value) + "]";
    return text + ".\n";
}

std::string key_item(const ConfigKey& key) {
    const std::string name(key.name);
    return fmt::format(".TP\n\\fB{}\\fR = {}\n{} ({}). Flag \\fB\\-\\-{}\\fR, environment "
                       "\\fB{}\\fR.\n",
                       roff(name), roff(config_key_text(key, Config{})),
                       roff(std::string(key.doc)), roff(config_key_allowed(key)), roff(name),
                       roff(environment_name(name)));
}

}  // namespace

std::string man_page(const CLI::App& app, const std::string& version) {
    const std::vector<CommandText> commands = read_commands(app);
    const std::string description = app.get_description();
    std::string text = fmt::format(".TH SHOAL 1 \"\" \"shoal {}\" \"User Commands\"\n", version);
    text += ".SH NAME\nshoal \\- long contexts on llama.cpp, with the KV cache in Shoal\n";
    text += ".SH SYNOPSIS\n";
    for (const CommandText& command : commands) {
        const std::string words = fmt::format("{}", fmt::join(command.words, "|"));
        text += fmt::format(".B shoal {}\n{}{}[\\fIoptions\\fR]\n.br\n", command.name, words,
                            words.empty() ? "" : " ");
    }
    text += ".SH DESCRIPTION\n" + roff_description(description);
    text += ".SH COMMANDS\n";
    for (const CommandText& command : commands) {
        text += fmt::format(".SS shoal {}\n{}.\n", command.name, roff(command.description));
        bool keys = false;
        for (const OptionText& option : command.options) {
            keys = keys || option.is_key;
            if (!option.is_key) text += option_item(option);
        }
        if (keys) text += ".PP\nTakes every configuration key as a flag.\n";
    }
    text += ".SH CONFIGURATION\nKeys with their defaults; in a file: [section] key = value.\n";
    std::string_view section;
    for (const ConfigKey& key : config_keys()) {
        if (key.section() != section) {
            section = key.section();
            text += fmt::format(".SS [{}]\n{}\n", section,
                                roff(std::string(config_section_doc(section))));
        }
        text += key_item(key);
    }
    text += ".SH EXIT STATUS\n" + roff(app.get_footer()) + "\n";
    text += ".SH ENVIRONMENT\n.TP\n.B SHOAL_CONFIG\nA configuration file, read by the tool and by "
            "the device in stock programs.\n.TP\n.B SHOAL_SECTION_KEY\nOne key, read by the tool "
            "alone.\n";
    return text;
}

}  // namespace shoal::tool
