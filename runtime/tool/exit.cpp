#include "runtime/tool/exit.hpp"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include <fmt/core.h>

namespace shoal::tool {
namespace {

std::atomic<bool> g_interrupted = false;
std::atomic<const char*> g_terminal_reset = nullptr;
constexpr const char* kInterrupted = "interrupted";

extern "C" void on_interrupt(int signal_number) {
    if (!g_interrupted.exchange(true)) return;
    if (const char* reset = g_terminal_reset.load()) {
        // Nothing can be done about a failed write on the way out.
        [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, reset, strlen(reset));
    }
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

}  // namespace

int report_error(const Status& status) {
    fmt::print(stderr, "shoal: {}\n", status.message());
    if (is_interrupted_status(status)) return kExitInterrupted;
    switch (status.code()) {
        case StatusCode::ok: return kExitOk;
        case StatusCode::invalid_argument:
        case StatusCode::out_of_memory:
        case StatusCode::not_found:
        case StatusCode::unsupported:
        case StatusCode::corrupt: return kExitUsage;
        case StatusCode::unavailable:
        case StatusCode::internal: return kExitFailure;
    }
    return kExitFailure;
}

Status input_error(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

void catch_interrupt() {
    struct sigaction action = {};
    action.sa_handler = on_interrupt;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
}

bool interrupted() { return g_interrupted.load(std::memory_order_relaxed); }

Status interrupted_status() { return Status::error(StatusCode::unavailable, kInterrupted); }

bool is_interrupted_status(const Status& status) {
    return status.code() == StatusCode::unavailable && status.message() == kInterrupted;
}

void set_terminal_reset(const char* sequence) { g_terminal_reset.store(sequence); }

}  // namespace shoal::tool
