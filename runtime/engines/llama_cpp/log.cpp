#include "log.hpp"

#include <cstdio>
#include <mutex>
#include <utility>

#include "ggml.h"

namespace shoal::llama_cpp {

namespace {

std::mutex failure_mutex;
std::string failure_text;  // guarded by failure_mutex

ggml_log_level to_ggml(LogLevel level) {
    switch (level) {
        case LogLevel::debug: return GGML_LOG_LEVEL_DEBUG;
        case LogLevel::info: return GGML_LOG_LEVEL_INFO;
        case LogLevel::warning: return GGML_LOG_LEVEL_WARN;
        case LogLevel::error: return GGML_LOG_LEVEL_ERROR;
    }
    return GGML_LOG_LEVEL_ERROR;
}

}  // namespace

void log_line(LogLevel level, const std::string& text) {
    const std::string line = "shoal: " + text + "\n";
    ggml_log_callback callback = nullptr;
    void* user_data = nullptr;
    ggml_log_get(&callback, &user_data);
    if (callback != nullptr) {
        callback(to_ggml(level), line.c_str(), user_data);
    } else if (level != LogLevel::debug) {
        std::fputs(line.c_str(), stderr);
    }
}

void log_failure(const std::string& text) {
    {
        const std::lock_guard lock(failure_mutex);
        failure_text = text;
    }
    log_line(LogLevel::error, text);
}

std::string last_failure() {
    const std::lock_guard lock(failure_mutex);
    return failure_text;
}

Status unsupported(std::string text) {
    return Status::error(StatusCode::unsupported, std::move(text));
}

}  // namespace shoal::llama_cpp
