// Reading a prompt and continuing it, with what that cost.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "runtime/tool/engine.hpp"
#include "shoal/stats.hpp"

namespace shoal::tool {

struct PrefillTiming {
    uint64_t tokens = 0;
    double seconds = 0;
    double tokens_per_second() const {
        return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
    }
};

// Reads the prompt behind a progress bar.
Status read_prompt(Engine& engine, std::span<const llama_token> tokens, const std::string& label,
                   PrefillTiming& timing);

// What decoding cost; the work figures are averages over the tokens.
struct DecodeCost {
    std::vector<double> ms;          // of each token
    double kv_bytes = 0;             // K and V read per token
    double label_bytes = 0;          // labels read per token
    double tokens_attended = 0;      // per query and KV head
    // Where Shoal's time goes, milliseconds per token; the rest of a token is the engine's.
    struct Stages {
        double append = 0;
        double score = 0;
        double select = 0;
        double attend = 0;
    } stages;
    // Of rows on disk, per token.
    struct Disk {
        double read_bytes = 0;
        double wait_ms = 0;          // not hidden behind other work
        double hit_rate = 0;         // of the blocks that attention needed
    } disk;
    double rescans = 0;              // label scans that were repeated, per token
    double guess_misses = 0;         // top-k runs that read every score, per token
};

// Averages of Shoal's counters over `tokens` decoded tokens; both from before and after.
DecodeCost shoal_cost(const ModelFile& model, const Stats& before, const Stats& after,
                      std::vector<double> ms);
// Stock llama.cpp reads everything: its figures follow from the depths.
DecodeCost stock_cost(const ModelFile& model, double mean_depth, std::vector<double> ms);

struct Generation {
    std::vector<llama_token> tokens;  // generated; the last one was not decoded again
    std::string text;
    DecodeCost cost;
    bool end_of_text = false;
    Status status = Status::ok();     // interrupted_status() after Ctrl-C
};

struct GenerateOptions {
    uint32_t tokens_max = 0;
    bool ignore_eos = false;
    std::span<const float> logits;    // of the first token; empty: the context has them
    bool stream = true;               // write each piece to stdout as it comes
};

// Continues the prompt that the context holds.
Generation generate(Engine& engine, llama_sampler* sampler, const GenerateOptions& options);

// "depth 8,192  9.1 ms/token  1,093 attended  25.2 MiB/token  KV 180.0 MiB  labels 12.0 MiB"
std::string live_text(uint32_t depth, double ms, const ModelFile& model, const Stats& before,
                      const Stats& now, uint64_t tokens);

nlohmann::ordered_json cost_json(const DecodeCost& cost);

}  // namespace shoal::tool
