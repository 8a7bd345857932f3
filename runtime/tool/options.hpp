// Flags that several commands share, and how they become an engine's options.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/App.hpp>

#include "runtime/tool/config_layers.hpp"
#include "runtime/tool/engine.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

struct ModelFlags {
    std::string model;
    int64_t context = 0;
    int64_t batch = 2048;
    int64_t micro_batch = 512;
    int64_t threads = 0;
    std::string type_k = "f16";
    std::string type_v = "f16";
    std::string flash_attention = "on";
    bool no_kv_offload = false;
};

struct CommonFlags {
    ModelFlags model;
    ConfigFlags config;
    bool json = false;
    std::string report;  // a file for the same JSON, or ""
    bool verbose = false;
};

// "-ctk" and its kin are one flag to llama.cpp users and three to CLI11: spelled out here.
std::vector<std::string> expand_short_flags(int argc, char** argv);

void add_model_flags(CLI::App& command, ModelFlags& flags);
// --config, --set and one --section.key for every key.
void add_config_flags(CLI::App& command, ConfigFlags& flags);
void add_output_flags(CLI::App& command, CommonFlags& flags);

// Checks every flag against the model's header. Nothing is loaded yet.
struct Prepared {
    EngineOptions engine;
    ResolvedConfig config;
};
Result<Prepared> prepare(const CommonFlags& flags);
// For commands that make the context as long as they need it: -c is refused, not ignored.
Status refuse_context(const CommonFlags& flags, const char* command);
// Minutes of work should not end at a folder that is not there: whether `path` can be written,
// asked beforehand. Makes nothing.
Status check_writable(const std::string& flag, const std::string& path);
// Whether a session of this model takes the configuration: its profile, its layers.
Status check_config(const Prepared& prepared);

// Text of a file, at most 256 MiB of UTF-8; the error names the flag.
Result<std::string> read_text_file(const std::string& flag, const std::string& path);

// Slots of a store at most; counts of tokens above it are refused.
inline constexpr uint32_t kTokensMax = 1U << 30;

// "512,4096" as numbers from `low` to kTokensMax; the error names the flag.
Result<std::vector<uint32_t>> parse_numbers(const std::string& flag, const std::string& text,
                                            uint32_t low);
Result<uint32_t> checked_number(const std::string& flag, int64_t value, int64_t low, int64_t high);

}  // namespace shoal::tool
