// The subcommands. Each add_* declares its flags and leaves in `run` what is to be done when the
// command line named it; `run` returns an exit code.
#pragma once

#include <functional>

#include <CLI/App.hpp>

namespace shoal::tool {

struct Action {
    std::function<int()> run;
};

void add_run(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_calibrate(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_selfcheck(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_config(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_completions(CLI::App& app, Action& action);
void add_man(CLI::App& app, Action& action);

}  // namespace shoal::tool
