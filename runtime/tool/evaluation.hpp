// Teacher-forced comparison of ways to attend: one text, one prefix, each policy reads the same
// last tokens one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/tool/engine.hpp"
#include "runtime/tool/generate.hpp"
#include "runtime/tool/options.hpp"

namespace shoal::tool {

struct EvalOptions {
    std::string file;          // for messages
    uint32_t tokens = 8192;    // of the text, prefix and positions together
    uint32_t positions = 2048; // of them the last, read one at a time; 1 .. tokens - 2
    uint32_t offset = 0;       // tokens of the text to skip first
};

// One way to attend, by a name people read: "labels 512", "dense", "stock".
struct Policy {
    std::string name;
    EngineKind engine = EngineKind::shoal;
    Config config;
};

struct Quality {
    std::string name;
    std::vector<double> kl;          // KL(reference || policy) per position
    std::vector<double> loss_change; // -log p(target), policy minus reference
    double loss_mean = 0;            // of the policy
    uint64_t same_top = 0;
    double mass_recall_mean = 0;
    double mass_recall_worst = 0;
    int32_t mass_recall_worst_layer = -1;
    uint64_t recall_samples = 0;
    DecodeCost cost;
};

// Perplexity change in per cent, and its standard error from the paired differences.
struct PerplexityChange {
    double percent = 0;
    double error = 0;
};
PerplexityChange perplexity_change(const std::vector<double>& differences);
double mean_of(const std::vector<double>& values);

// Runs the reference, then each policy, on the same rows of the same context where the engine is
// the same. results() holds what was finished, also after Ctrl-C.
class Evaluation {
public:
    Evaluation(const EvalOptions& options, const EngineOptions& engine_options);
    Status run(const std::string& text, const std::vector<Policy>& policies,
               const Policy& reference);

    const EvalOptions& options() const { return options_; }
    const std::vector<Quality>& results() const { return results_; }
    double reference_loss() const { return reference_loss_; }

private:
    // The reference's logits, as the engine gave them: 2,048 positions x 49,152 x 4 B = 400 MB. Log
    // probabilities are made from them in double when they are compared, so nothing is rounded
    // twice. (Streaming them instead would take a second context, and the side calls know one.)
    struct Reference {
        std::vector<float> logits;
        std::vector<double> lse;
        size_t width = 0;
        std::span<const float> row(size_t position) const {
            return std::span(logits).subspan(position * width, width);
        }
    };
    using Visit = std::function<void(size_t position, std::span<const float> logits)>;

    // The token at first() + i is read at position i and predicts the one after it.
    size_t first() const { return tokens_.size() - options_.positions - 1; }
    llama_token target(size_t position) const { return tokens_[first() + position + 1]; }

    Status load_tokens(const std::string& text);
    // Makes `engine_` one of this kind that keeps its rows so; keeps the one there is.
    Status open(EngineKind kind, HostRows rows);
    Status read_prefix(const Policy& policy);
    Result<std::vector<double>> decode_all(const Policy& policy, const Visit& visit);
    Status measure_reference(const Policy& policy);
    Status measure(const Policy& policy, Quality& quality);

    EvalOptions options_;
    EngineOptions engine_options_;
    std::unique_ptr<Engine> engine_;
    bool prefix_read_ = false;
    std::vector<llama_token> tokens_;
    Reference reference_;
    double reference_loss_ = 0;
    std::vector<Quality> results_;
};

}  // namespace shoal::tool
