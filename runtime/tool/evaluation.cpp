#include "runtime/tool/evaluation.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "offload/memory_limits.hpp"
#include "runtime/tool/distribution.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {

using offload::bytes_text;

double mean_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

PerplexityChange perplexity_change(const std::vector<double>& differences) {
    const double mean = mean_of(differences);
    double squares = 0;
    for (const double d : differences) squares += (d - mean) * (d - mean);
    const auto n = static_cast<double>(differences.size());
    const double error = n > 1 ? std::sqrt(squares / (n - 1) / n) : 0;
    return {.percent = (std::exp(mean) - 1) * 100, .error = std::exp(mean) * error * 100};
}

Evaluation::Evaluation(const EvalOptions& options, const EngineOptions& engine_options)
    : options_(options), engine_options_(engine_options) {}

Status Evaluation::run(const std::string& text, const std::vector<Policy>& policies,
                       const Policy& reference) {
    SHOAL_TRY(load_tokens(text));
    SHOAL_TRY(measure_reference(reference));
    for (const Policy& policy : policies) {
        if (interrupted()) return interrupted_status();
        Quality quality;
        quality.name = policy.name;
        SHOAL_TRY(measure(policy, quality));
        results_.push_back(std::move(quality));
    }
    return Status::ok();
}

Status Evaluation::load_tokens(const std::string& text) {
    SHOAL_TRY(open(EngineKind::shoal, engine_options_.config.host.rows));
    std::vector<llama_token> all = engine_->tokenize(text, false);
    const size_t begin = options_.offset;
    const size_t count = options_.tokens;
    if (all.size() < begin + count) {
        return input_error(fmt::format("-f {}: has {} tokens; --offset and --tokens ask for {}",
                                       options_.file, grouped(all.size()),
                                       grouped(begin + count)));
    }
    tokens_.assign(all.begin() + options_.offset, all.begin() + options_.offset + options_.tokens);
    const uint64_t bytes = sizeof(float) * options_.positions * engine_->vocab_size();
    const uint64_t available = offload::read_memory_limits().available_bytes;
    if (bytes < available / 2) return Status::ok();
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("--positions {}: keeping the reference takes {} of the {} this machine "
                    "offers; use fewer",
                    options_.positions, bytes_text(bytes), bytes_text(available)));
}

Status Evaluation::open(EngineKind kind, HostRows rows) {
    const bool same_rows = kind != EngineKind::shoal || engine_options_.config.host.rows == rows;
    if (engine_ && engine_->kind() == kind && same_rows) return Status::ok();
    engine_.reset();
    prefix_read_ = false;
    engine_options_.config.host.rows = rows;
    Result<std::unique_ptr<Engine>> loaded = Engine::load(kind, engine_options_);
    if (!loaded) return loaded.status();
    engine_ = std::move(*loaded);
    return Status::ok();
}

Status Evaluation::read_prefix(const Policy& policy) {
    SHOAL_TRY(open(policy.engine, policy.config.host.rows));
    if (!prefix_read_) {
        SHOAL_TRY(engine_->make_context(padded_context(tokens_.size())));
        PrefillTiming timing;
        SHOAL_TRY(read_prompt(*engine_, std::span(tokens_).first(first()),
                              std::string(engine_name(policy.engine)) + " reads the text",
                              timing));
        prefix_read_ = true;
    }
    SHOAL_TRY(engine_->truncate(static_cast<uint32_t>(first())));
    if (!engine_->is_shoal()) return Status::ok();
    engine_->plugin().reset_stats();
    return engine_->set_policy(policy.config);
}

Result<std::vector<double>> Evaluation::decode_all(const Policy& policy, const Visit& visit) {
    SHOAL_TRY(read_prefix(policy));
    ProgressBar bar(policy.name, "tokens", options_.positions);
    std::vector<double> ms;
    for (size_t i = 0; i < options_.positions; ++i) {
        const Result<double> took = engine_->decode(tokens_[first() + i]);
        if (!took) return took.status();
        ms.push_back(*took);
        visit(i, engine_->logits());
        bar.update(i + 1);
    }
    return ms;
}

Status Evaluation::measure_reference(const Policy& policy) {
    reference_.width = engine_->vocab_size();
    reference_.logits.resize(reference_.width * options_.positions);
    reference_.lse.resize(options_.positions);
    const auto ms = decode_all(policy, [&](size_t i, std::span<const float> logits) {
        std::copy(logits.begin(), logits.end(),
                  reference_.logits.begin() + static_cast<std::ptrdiff_t>(i * reference_.width));
        reference_.lse[i] = log_sum_exp(logits);
        reference_loss_ += (reference_.lse[i] - logits[static_cast<size_t>(target(i))]) /
                           static_cast<double>(options_.positions);
    });
    return ms.status();
}

Status Evaluation::measure(const Policy& policy, Quality& quality) {
    auto ms = decode_all(policy, [&](size_t i, std::span<const float> logits) {
        const std::span<const float> expected = reference_.row(i);
        const double lse = log_sum_exp(logits);
        const auto wanted = static_cast<size_t>(target(i));
        const double loss = lse - logits[wanted];
        quality.kl.push_back(kl_divergence(expected, reference_.lse[i], logits, lse));
        quality.loss_change.push_back(loss - (reference_.lse[i] - expected[wanted]));
        quality.loss_mean += loss / static_cast<double>(options_.positions);
        quality.same_top += argmax(expected) == argmax(logits) ? 1 : 0;
    });
    if (!ms) return ms.status();
    const ModelFile& model = engine_options_.model;
    if (!engine_->is_shoal()) {
        const double mean_depth = static_cast<double>(tokens_.size()) - options_.positions / 2.0;
        quality.cost = stock_cost(model, mean_depth, std::move(*ms));
        return Status::ok();
    }
    const Stats stats = engine_->plugin().stats();
    quality.cost = shoal_cost(model, Stats{}, stats, std::move(*ms));
    quality.mass_recall_mean = stats.mass_recall_mean();
    quality.mass_recall_worst = stats.mass_recall_min;
    quality.mass_recall_worst_layer = stats.mass_recall_min_layer;
    quality.recall_samples = stats.recall_samples;
    return Status::ok();
}

}  // namespace shoal::tool
