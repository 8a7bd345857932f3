// libggml-shoal.so: found, loaded into ggml, and its side calls (shoal_llama.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ggml-backend.h>

#include "runtime/engines/llama_cpp/shoal_llama.h"
#include "shoal/config.hpp"
#include "shoal/stats.hpp"
#include "shoal/status.hpp"
#include "shoal/trace.hpp"

namespace shoal::tool {

class Plugin {
public:
    // Looks beside the running program, in ../lib and in ../lib/shoal. A second call returns the
    // plugin that the first one loaded: ggml cannot unload one.
    static Result<const Plugin*> load();

    ggml_backend_dev_t device() const { return device_; }
    const std::string& path() const { return path_; }

    // Configuration and model name for contexts created afterwards.
    Status configure(const Config& config, const std::string& model_fingerprint) const;
    // Policy of the context created last, between decodes.
    Status reconfigure(const Config& config) const;
    Status write_profile(const std::string& path, const std::string& source) const;
    Stats stats() const;
    void reset_stats() const { reset_stats_(); }
    // Events of the live session's steps from here on; 0: none.
    Status trace(uint32_t event_capacity) const;
    // Moves out what was recorded; counts what found no room.
    void read_trace(std::vector<TraceEvent>& events, uint64_t& dropped) const;
    std::string stats_json() const;
    std::string last_error() const;

private:
    Plugin() = default;
    Status open(const std::string& path);

    std::string path_;
    ggml_backend_dev_t device_ = nullptr;
    shoal_llama_configure_t configure_ = nullptr;
    shoal_llama_set_model_t set_model_ = nullptr;
    shoal_llama_reconfigure_t reconfigure_ = nullptr;
    shoal_llama_stats_json_t stats_json_ = nullptr;
    shoal_llama_reset_stats_t reset_stats_ = nullptr;
    shoal_llama_write_profile_t write_profile_ = nullptr;
    shoal_llama_last_error_t last_error_ = nullptr;
    shoal_llama_trace_t trace_ = nullptr;
    shoal_llama_read_trace_t read_trace_ = nullptr;
};

}  // namespace shoal::tool
