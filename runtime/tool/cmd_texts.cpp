// shoal completions, shoal man: the command line in the forms that shells and man want.
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/tool/app_text.hpp"
#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"

namespace shoal {
extern const char kVersion[];
}

namespace shoal::tool {
namespace {

int completions_command(const CLI::App& app, const std::string& shell) {
    if (shell == "bash") fmt::print("{}", bash_completions(app));
    else if (shell == "zsh") fmt::print("{}", zsh_completions(app));
    else if (shell == "fish") fmt::print("{}", fish_completions(app));
    else return report_error(input_error(fmt::format("completions {}: must be bash, zsh or fish",
                                                     shell)));
    return kExitOk;
}

}  // namespace

void add_completions(CLI::App& app, Action& action) {
    auto shell = std::make_shared<std::string>();
    CLI::App* command =
        app.add_subcommand("completions", "print the completion script of a shell");
    command->add_option("shell", *shell, "whose; the script says how it is used")
        ->required()
        ->type_name("bash|zsh|fish");
    command->callback([shell, &app, &action] {
        action.run = [shell, &app] { return completions_command(app, *shell); };
    });
}

void add_man(CLI::App& app, Action& action) {
    CLI::App* command =
        app.add_subcommand("man", "print the manual page (shoal man | man -l -)");
    command->callback([&app, &action] {
        action.run = [&app] {
            fmt::print("{}", man_page(app, kVersion));
            return kExitOk;
        };
    });
}

}  // namespace shoal::tool
