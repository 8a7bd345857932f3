// Runs the tool as a user would and keeps what it printed.
#pragma once

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace shoal::tool_test {

struct Outcome {
    int exit_code = -1;  // 128 + signal when killed
    std::string out;
    std::string err;
    nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

struct Invocation {
    std::vector<std::string> arguments;
    std::vector<std::string> environment = {};  // NAME=value, besides PATH and HOME
    double interrupt_after_s = 0;               // sends SIGINT then; 0: never
    std::string program = {};                   // "": the tool that was built
    std::function<void()> before_start = {};    // in the child: limits, users, mounts
};

Outcome run_tool(const Invocation& invocation);
Outcome run_tool(std::vector<std::string> arguments);

std::string model_path();
std::string text_path();        // a novel
std::string profile_path();     // of the demo's model
bool have_model();
// The first `bytes` of the novel, in a temporary file.
std::string text_of(size_t bytes);
// Writes a temporary file and returns its path.
std::string temporary_file(const std::string& name, const std::string& content);

}  // namespace shoal::tool_test
