// Lines for the person who runs the engine, and the last reason for refusing.
#pragma once

#include <string>

#include "shoal/session.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

// Prints "shoal: <text>" through ggml's log callback, where the engine's own lines go. Without a
// callback: to stderr. debug is dropped without one.
void log_line(LogLevel level, const std::string& text);

// Logs the text as an error and keeps it as the last error.
void log_failure(const std::string& text);

// Text of the last log_failure, "" when there was none. Thread safe.
std::string last_failure();

// Status::unsupported with `text`: what this device cannot do.
Status unsupported(std::string text);

}  // namespace shoal::llama_cpp
