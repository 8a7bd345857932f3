// What llama.cpp and Shoal's device log: kept for error messages, shown where a user wants it.
#pragma once

#include <mutex>
#include <string>

#include <ggml.h>

namespace shoal::tool {

class EngineLog {
public:
    static EngineLog& instance();
    // Takes over llama.cpp's log. Shoal's own warnings are always shown; the rest with `verbose`.
    void install(bool verbose);
    void clear();
    // The last error line since clear(), or "".
    std::string last_error() const;

private:
    static void receive(ggml_log_level level, const char* text, void* self);
    void add(ggml_log_level level, const char* text);

    mutable std::mutex mutex_;
    bool verbose_ = false;
    ggml_log_level level_ = GGML_LOG_LEVEL_NONE;  // of the line being continued
    std::string last_error_;
};

}  // namespace shoal::tool
