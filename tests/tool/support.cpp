#include "tests/tool/support.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <gtest/gtest.h>

namespace shoal::tool_test {
namespace {

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
    std::vector<char*> list;
    for (std::string& text : texts) list.push_back(text.data());
    list.push_back(nullptr);
    return list;
}

}  // namespace

std::string temporary_file(const std::string& name, const std::string& content) {
    static int counter = 0;
    std::ostringstream path;
    path << testing::TempDir() << "shoal_tool_" << getpid() << "_" << counter++ << "_" << name;
    std::ofstream(path.str(), std::ios::binary) << content;
    return path.str();
}

Outcome run_tool(const Invocation& invocation) {
    const std::string out = temporary_file("out", "");
    const std::string err = temporary_file("err", "");
    std::vector<std::string> arguments = {
        invocation.program.empty() ? SHOAL_TEST_TOOL : invocation.program};
    arguments.insert(arguments.end(), invocation.arguments.begin(), invocation.arguments.end());
    std::vector<std::string> environment = invocation.environment;
    for (const char* name : {"PATH", "HOME", "LD_LIBRARY_PATH", "ASAN_OPTIONS", "LSAN_OPTIONS",
                             "UBSAN_OPTIONS", "TSAN_OPTIONS"}) {
        const std::string prefix = std::string(name) + "=";
        const bool given = std::any_of(
            environment.begin(), environment.end(),
            [&](const std::string& variable) { return variable.starts_with(prefix); });
        const char* value = std::getenv(name);
        if (value != nullptr && !given) environment.push_back(prefix + value);
    }
    std::vector<char*> argv = pointers(arguments);
    std::vector<char*> envp = pointers(environment);
    const pid_t child = fork();
    if (child == 0) {
        dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
        dup2(open(out.c_str(), O_WRONLY), STDOUT_FILENO);
        dup2(open(err.c_str(), O_WRONLY), STDERR_FILENO);
        if (invocation.before_start) invocation.before_start();
        execve(argv[0], argv.data(), envp.data());
        _exit(127);
    }
    if (invocation.interrupt_after_s > 0) {
        std::this_thread::sleep_for(std::chrono::duration<double>(invocation.interrupt_after_s));
        kill(child, SIGINT);
    }
    int status = 0;
    waitpid(child, &status, 0);
    Outcome outcome;
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = contents(out);
    outcome.err = contents(err);
    std::filesystem::remove(out);
    std::filesystem::remove(err);
    return outcome;
}

Outcome run_tool(std::vector<std::string> arguments) {
    return run_tool(Invocation{.arguments = std::move(arguments)});
}

std::string model_path() { return SHOAL_TEST_MODEL; }
std::string text_path() { return std::string(SHOAL_TEST_TEXT_DIR) + "/persuasion.txt"; }
std::string profile_path() { return SHOAL_TEST_PROFILE; }

bool have_model() {
    return std::filesystem::exists(model_path()) && std::filesystem::exists(text_path());
}

std::string text_of(size_t bytes) {
    return temporary_file("text.txt", contents(text_path()).substr(0, bytes));
}

}  // namespace shoal::tool_test
