#include "settings.hpp"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <optional>

namespace shoal::llama_cpp {

namespace {

std::mutex settings_mutex;
std::optional<Config> given_config;  // guarded by settings_mutex, as the next one
std::string model_fingerprint;
std::atomic<bool> delegate = false;

}  // namespace

Result<Config> next_config() {
    {
        const std::lock_guard lock(settings_mutex);
        if (given_config.has_value()) return *given_config;
    }
    Config config;
    // The one environment variable that Shoal reads: stock programs offer no other way in.
    const char* path = std::getenv("SHOAL_CONFIG");
    if (path == nullptr || *path == '\0') return config;
    const Status status = config_merge_file(path, config);
    if (!status) {
        return Status::error(status.code(), "SHOAL_CONFIG: " + status.message());
    }
    return config;
}

Status set_next_config(const char* text) {
    std::optional<Config> config;
    if (text != nullptr) {
        config.emplace();
        SHOAL_TRY(config_merge_text(text, "configuration", *config));
        SHOAL_TRY(config_check(*config));
    }
    const std::lock_guard lock(settings_mutex);
    given_config = config;
    return Status::ok();
}

void set_next_model(const char* fingerprint) {
    const std::lock_guard lock(settings_mutex);
    model_fingerprint = fingerprint == nullptr ? "" : fingerprint;
}

std::string next_model() {
    const std::lock_guard lock(settings_mutex);
    return model_fingerprint;
}

void set_delegate(bool on) { delegate.store(on); }
bool delegate_on() { return delegate.load(); }

}  // namespace shoal::llama_cpp
