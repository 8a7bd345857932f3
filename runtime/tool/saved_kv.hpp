// --save-kv and --load-kv: the KV cache of a prompt in a file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <CLI/App.hpp>
#include <nlohmann/json.hpp>

#include "runtime/tool/engine.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

struct SavedKvFlags {
    std::string save;  // "": not asked for
    std::string load;
};
void add_saved_kv_flags(CLI::App& command, SavedKvFlags& flags);

struct SavedKvTiming {
    size_t loaded_tokens = 0;
    uint64_t loaded_bytes = 0;
    double load_seconds = 0;
    uint64_t saved_bytes = 0;
    double save_seconds = 0;
    std::vector<float> logits;  // of the token after the loaded ones
};

// Whether the files can serve, before the model is loaded: fills in loaded_tokens.
Status check_kv_files(const SavedKvFlags& flags, const EngineOptions& options,
                      SavedKvTiming& timing);
// Does what the flags ask for, if anything.
Status load_kv(Engine& engine, const SavedKvFlags& flags, std::span<llama_token> tokens,
               SavedKvTiming& timing);
Status save_kv(Engine& engine, const SavedKvFlags& flags, std::span<const llama_token> tokens,
               SavedKvTiming& timing);

// "1.2 s, 850 MB/s"
std::string seconds_text(uint64_t bytes, double seconds);
nlohmann::ordered_json saved_kv_json(const SavedKvTiming& timing);

}  // namespace shoal::tool
