// The tool `shoal`: long contexts on unmodified llama.cpp, with the KV cache in Shoal.
#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <llama.h>

#include "runtime/config_keys.hpp"
#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/options.hpp"

namespace shoal {
extern const char kVersion[];  // of libshoal.so, written by the build
}

namespace shoal::tool {
namespace {

constexpr const char* kDescription =
    "shoal: decodes long texts with llama.cpp while Shoal keeps the KV cache and lets each token\n"
    "attend only to the few earlier tokens that matter to it.\n\n"
    "  shoal run -m model.gguf -f novel.txt -n 200       continue a text\n"
    "  shoal run -m model.gguf -p \"...\" --chat           ask the model something\n"
    "  shoal run -m model.gguf -f novel.txt --compare    the same beside stock llama.cpp\n"
    "  shoal plan -m model.gguf -c 131072                how much memory that takes\n\n"
    "Settings: a flag beats the environment (SHOAL_BUDGET_ROWS=512), which beats the file\n"
    "(--config, or SHOAL_CONFIG), which beats the default. `shoal config` shows where each value\n"
    "comes from.\n";
constexpr const char* kFooter =
    "Exit codes: 0 ok, 1 failure, 2 bad flag, file or configuration, 130 interrupted (Ctrl-C).";

// CLI11 says too little about two slips: a command that does not exist, and a misspelt
// configuration key.
std::string flag_error(const CLI::ParseError& error, const CLI::App& app,
                       const std::vector<std::string>& arguments) {
    std::vector<std::string> commands;
    for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
    if (!arguments.empty() && !arguments[0].starts_with('-') &&
        std::find(commands.begin(), commands.end(), arguments[0]) == commands.end()) {
        return fmt::format("{}: unknown command (there are: {})", arguments[0],
                           fmt::join(commands, ", "));
    }
    for (const std::string& argument : arguments) {
        const std::string name = argument.substr(0, argument.find('='));
        const bool key = name.starts_with("--") && name.find('.') != std::string::npos;
        if (!key || config_key_find(name.substr(2)) != nullptr) continue;
        return fmt::format("{}: {}", name, config_unknown_key_text(name.substr(2)));
    }
    return error.what();
}

int run_tool(int argc, char** argv) {
    CLI::App app(kDescription, "shoal");
    app.footer(kFooter);
    app.set_version_flag("--version",
                         fmt::format("shoal {} (llama.cpp {})", kVersion, llama_version()));
    app.require_subcommand(1);
    Action action;
    add_run(app, action);
    add_plan(app, action);
    add_calibrate(app, action);
    add_eval(app, action);
    add_selfcheck(app, action);
    add_bench(app, action);
    add_config(app, action);
    add_doctor(app, action);
    add_completions(app, action);
    add_man(app, action);
    const std::vector<std::string> arguments = expand_short_flags(argc, argv);
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    try {
        app.parse(reversed);  // CLI11 takes them from the back
    } catch (const CLI::Success& done) {
        return app.exit(done);
    } catch (const CLI::ParseError& error) {
        fmt::print(stderr, "shoal: {}\nSee shoal --help, or --help after a command.\n",
                   flag_error(error, app, arguments));
        return kExitUsage;
    }
    catch_interrupt();
    const int exit_code = action.run();
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
    fmt::print(stderr, "shoal: standard output could not be written\n");
    return exit_code == kExitOk ? kExitFailure : exit_code;
}

}  // namespace
}  // namespace shoal::tool

int main(int argc, char** argv) {
    try {
        return shoal::tool::run_tool(argc, argv);
    } catch (const std::bad_alloc&) {
        fmt::print(stderr, "shoal: out of memory\n");
    } catch (const std::exception& error) {
        fmt::print(stderr, "shoal: {}\n", error.what());
    }
    return shoal::tool::kExitFailure;
}
