// Completion scripts and the manual page offer what --help offers, no less and no more.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <regex>
#include <set>
#include <sstream>

#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsSupersetOf;

// Every "-x" and "--name" that `shoal COMMAND --help` begins a line with.
std::set<std::string> options_in_help(const std::string& command) {
    std::set<std::string> names;
    const std::string help = run_tool({command, "--help"}).out;
    std::istringstream lines(help);
    const std::regex name("(--?[A-Za-z][A-Za-z0-9._-]*)");
    for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with("  -")) continue;
        const std::string declared = line.substr(2, line.find_first_of(" {", 2) - 2);
        std::sregex_iterator it(declared.begin(), declared.end(), name);
        for (; it != std::sregex_iterator(); ++it) names.insert(it->str());
    }
    return names;
}

std::vector<std::string> commands() {
    std::vector<std::string> names;
    const std::string help = run_tool({"--help"}).out;
    std::istringstream lines(help.substr(help.find("Subcommands:")));
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line) && line.starts_with("  ")) {
        if (line[2] != ' ') names.push_back(line.substr(2, line.find(' ', 2) - 2));
    }
    return names;
}

std::string shell(const std::string& command) {
    std::string out;
    FILE* pipe = popen(command.c_str(), "r");
    char buffer[4096];
    while (const size_t got = fread(buffer, 1, sizeof(buffer), pipe)) out.append(buffer, got);
    pclose(pipe);
    return out;
}

bool has_program(const std::string& name) {
    return !shell("command -v " + name + " 2>/dev/null").empty();
}

// What bash would offer for the last of `words`.
std::set<std::string> bash_offers(const std::string& words) {
    static const std::string script =
        temporary_file("completions.bash", run_tool({"completions", "bash"}).out);
    const std::string out = shell("bash -c 'source " + script + "; COMP_WORDS=(" + words +
                                  "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shoal; "
                                  "printf \"%s\\n\" \"${COMPREPLY[@]}\"' 2>&1");
    std::set<std::string> offers;
    std::istringstream lines(out);
    for (std::string line; std::getline(lines, line);) {
        if (!line.empty()) offers.insert(line);
    }
    return offers;
}

TEST(ToolTexts, BashOffersEveryOptionOfEveryCommand) {
    const std::vector<std::string> all = commands();
    ASSERT_THAT(all, Contains("doctor"));
    const std::set<std::string> first = bash_offers("shoal \"\"");
    for (const std::string& command : all) {
        EXPECT_THAT(first, Contains(command));
        EXPECT_EQ(bash_offers("shoal " + command + " -"), options_in_help(command)) << command;
    }
    EXPECT_EQ(bash_offers("shoal run --pro"),
              (std::set<std::string>{"--prompt", "--profile.path", "--profile.tokens"}));
    EXPECT_EQ(bash_offers("shoal run --selector.kind d"), (std::set<std::string>{"dense"}));
    EXPECT_EQ(bash_offers("shoal run --host.pin \"\""), (std::set<std::string>{"true", "false"}));
    EXPECT_THAT(bash_offers("shoal completions \"\""), IsSupersetOf({"bash", "zsh", "fish"}));
    EXPECT_EQ(bash_offers("shoal run -m \"\""), (std::set<std::string>{})) << "files: by bash";
}

TEST(ToolTexts, ZshAndFishOfferEveryOption) {
    const std::string zsh = run_tool({"completions", "zsh"}).out;
    const std::string fish = run_tool({"completions", "fish"}).out;
    for (const std::string& command : commands()) {
        const std::string fish_head = "'__fish_seen_subcommand_from " + command + "'";
        EXPECT_THAT(zsh, HasSubstr("        '" + command + ":"));
        EXPECT_THAT(fish, HasSubstr(" -a " + command + " "));
        for (const std::string& name : options_in_help(command)) {
            EXPECT_THAT(zsh, HasSubstr("'" + name + "["));
            const std::string spelled =
                name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
            bool found = false;
            std::istringstream lines(fish);
            for (std::string line; std::getline(lines, line) && !found;) {
                found = line.find(fish_head) != std::string::npos &&
                        (line + " ").find(spelled + " ") != std::string::npos;
            }
            EXPECT_TRUE(found) << command << " " << name;
        }
    }
    for (const auto& [program, text] : {std::pair{"zsh", zsh}, std::pair{"fish", fish}}) {
        if (!has_program(program)) continue;
        const std::string file = temporary_file("completions", text);
        EXPECT_EQ(shell(std::string(program) + " -n " + file + " 2>&1"), "");
    }
    EXPECT_EQ(run_tool({"completions", "tcsh"}).exit_code, 2);
}

TEST(ToolTexts, ManPageHasEveryOptionAndNoWarnings) {
    const std::string page = run_tool({"man"}).out;
    EXPECT_THAT(page, testing::StartsWith(".TH SHOAL 1 "));
    const std::string file = temporary_file("shoal.1", page);
    if (!has_program("groff")) GTEST_SKIP() << "no groff";
    EXPECT_EQ(shell("groff -man -ww -rLL=100n -Tutf8 " + file + " 2>&1 >/dev/null"), "");
    const std::string text =
        shell("groff -man -rLL=200n -P -cbou -Tascii " + file + " 2>/dev/null");
    for (const std::string& command : commands()) {
        EXPECT_THAT(text, HasSubstr("shoal " + command));
        for (const std::string& name : options_in_help(command)) EXPECT_THAT(text, HasSubstr(name));
    }
    EXPECT_THAT(text, HasSubstr("SHOAL_BUDGET_ROWS"));
    EXPECT_THAT(text, HasSubstr("Exit codes: 0 ok"));
}

}  // namespace
}  // namespace shoal::tool_test
