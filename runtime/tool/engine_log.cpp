#include "runtime/tool/engine_log.hpp"

#include <string_view>

#include <fmt/core.h>
#include <llama.h>

namespace shoal::tool {

EngineLog& EngineLog::instance() {
    static EngineLog log;
    return log;
}

void EngineLog::install(bool verbose) {
    verbose_ = verbose;
    llama_log_set(&EngineLog::receive, this);
}

void EngineLog::clear() {
    const std::lock_guard lock(mutex_);
    last_error_.clear();
}

std::string EngineLog::last_error() const {
    const std::lock_guard lock(mutex_);
    return last_error_;
}

void EngineLog::receive(ggml_log_level level, const char* text, void* self) {
    static_cast<EngineLog*>(self)->add(level, text);
}

void EngineLog::add(ggml_log_level level, const char* text) {
    const std::lock_guard lock(mutex_);
    if (level != GGML_LOG_LEVEL_CONT) level_ = level;
    const std::string_view line = text;
    const bool ours = line.starts_with("shoal");
    if (level == GGML_LOG_LEVEL_ERROR) {
        last_error_ = line.substr(0, line.find('\n'));
    }
    // Errors come back through a Status and are printed once, by report_error.
    const bool warning = level_ == GGML_LOG_LEVEL_WARN;
    if (verbose_ || (ours && warning)) fmt::print(stderr, "{}", line);
}

}  // namespace shoal::tool
