#include "runtime/tool/compare.hpp"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include "offload/memory_limits.hpp"
#include "runtime/tool/distribution.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/process_memory.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

using offload::bytes_text;

// Turns short enough that both engines meet the same load of the machine, long enough that the
// caches of the one are warm again after the other.
constexpr size_t kTurnTokens = 4;
// Two rows of logits are kept for each: 256 positions x 49,152 x 4 B x 2 = 100 MB.
constexpr size_t kReplayMax = 256;

using Logits = std::vector<std::vector<float>>;

void add_agreement(std::span<const float> reference, std::span<const float> other,
                   Agreement& agreement) {
    const double kl = kl_divergence(reference, log_sum_exp(reference), other, log_sum_exp(other));
    agreement.kl_mean += (kl - agreement.kl_mean) / (agreement.positions + 1.0);
    agreement.kl_max = std::max(agreement.kl_max, kl);
    agreement.same_top += argmax(reference) == argmax(other) ? 1 : 0;
    ++agreement.positions;
}

struct Turn {
    Engine& engine;
    std::vector<double>& ms;
    Logits& logits;
};

Status take_turn(const Turn& turn, std::span<const llama_token> tokens) {
    for (const llama_token token : tokens) {
        const Result<double> took = turn.engine.decode(token);
        if (!took) return took.status();
        turn.ms.push_back(*took);
        const std::span<const float> logits = turn.engine.logits();
        turn.logits.emplace_back(logits.begin(), logits.end());
    }
    return Status::ok();
}

Status replay(const Turn& a, const Turn& b, std::span<const llama_token> tokens,
              const std::string& label) {
    ProgressBar bar(label, "tokens", tokens.size());
    for (size_t done = 0; done < tokens.size(); done += kTurnTokens) {
        const auto part = tokens.subspan(done, std::min(kTurnTokens, tokens.size() - done));
        const bool a_first = done / kTurnTokens % 2 == 0;
        SHOAL_TRY(take_turn(a_first ? a : b, part));
        SHOAL_TRY(take_turn(a_first ? b : a, part));
        bar.update(done + part.size());
    }
    return Status::ok();
}

std::string agreement_text(const Agreement& agreement) {
    if (agreement.positions == 0) return "";
    return fmt::format("{:.2g}", agreement.kl_mean);
}

std::string same_text(const Agreement& agreement) {
    if (agreement.positions == 0) return "";
    return fmt::format("{} of {}", agreement.same_top, agreement.positions);
}

nlohmann::ordered_json agreement_json(const Agreement& agreement) {
    if (agreement.positions == 0) return nullptr;
    return {{"kl_mean", agreement.kl_mean}, {"kl_max", agreement.kl_max},
            {"same_top", agreement.same_top}, {"positions", agreement.positions}};
}

nlohmann::ordered_json column_json(const Column& column) {
    nlohmann::ordered_json json;
    json["name"] = column.name;
    if (column.prefill.tokens > 0) {
        json["prefill"] = {{"tokens", column.prefill.tokens},
                           {"seconds", column.prefill.seconds},
                           {"tokens_per_second", column.prefill.tokens_per_second()}};
    }
    json["decode"] = cost_json(column.cost);
    json["context_bytes"] = column.context_bytes;
    json["against_stock"] = agreement_json(column.to_stock);
    json["against_dense"] = agreement_json(column.to_dense);
    return json;
}

// The steps in order; each returns early on failure, and what came before stays in `out`.
class Comparer {
public:
    Comparer(Engine& shoal, std::span<const llama_token> prompt,
             std::span<const llama_token> tokens, Comparison& out)
        : shoal_(shoal), prompt_(prompt), tokens_(tokens), out_(out) {}

    Status run() {
        SHOAL_TRY(read_with_stock());
        SHOAL_TRY(measure(shoal_.options().config, out_.sparse, sparse_logits_, "comparing"));
        Config dense = shoal_.options().config;
        dense.selector.kind = SelectorKind::dense;
        Logits dense_logits;
        SHOAL_TRY(measure(dense, out_.dense, dense_logits, "comparing, Shoal dense"));
        for (size_t i = 0; i < dense_logits.size(); ++i) {
            add_agreement(dense_logits[i], sparse_logits_[i], out_.sparse.to_dense);
        }
        return shoal_.set_policy(shoal_.options().config);
    }

private:
    Status read_with_stock() {
        Result<std::unique_ptr<Engine>> stock = Engine::load(EngineKind::stock, shoal_.options());
        if (!stock) return stock.status();
        stock_ = std::move(*stock);
        const uint64_t before = resident_anonymous_bytes();
        SHOAL_TRY(stock_->make_context(llama_n_ctx(shoal_.context())));
        SHOAL_TRY(read_prompt(*stock_, prompt_, "stock llama.cpp reads the prompt",
                              out_.stock.prefill));
        const uint64_t after = resident_anonymous_bytes();
        out_.stock.context_bytes = after > before ? after - before : 0;
        return Status::ok();
    }

    Status measure(const Config& policy, Column& column, Logits& logits, const std::string& label) {
        const auto depth = static_cast<uint32_t>(prompt_.size());
        SHOAL_TRY(stock_->truncate(depth));
        SHOAL_TRY(shoal_.truncate(depth));
        SHOAL_TRY(shoal_.set_policy(policy));
        const Stats before = shoal_.plugin().stats();
        std::vector<double> stock_ms;
        std::vector<double> shoal_ms;
        Logits stock_logits;
        const Status status = replay({*stock_, stock_ms, stock_logits}, {shoal_, shoal_ms, logits},
                                     tokens_, label);
        column.cost = shoal_cost(shoal_.options().model, before, shoal_.plugin().stats(), shoal_ms);
        const size_t both = std::min(stock_logits.size(), logits.size());
        for (size_t i = 0; i < both; ++i) {
            add_agreement(stock_logits[i], logits[i], column.to_stock);
        }
        stock_ms.insert(stock_ms.end(), out_.stock.cost.ms.begin(), out_.stock.cost.ms.end());
        out_.stock.cost = stock_cost(shoal_.options().model,
                                     depth + static_cast<double>(tokens_.size()) / 2,
                                     std::move(stock_ms));
        return status;
    }

    Engine& shoal_;
    std::unique_ptr<Engine> stock_;
    std::span<const llama_token> prompt_;
    std::span<const llama_token> tokens_;
    Comparison& out_;
    Logits sparse_logits_;
};

}  // namespace

Comparison compare_with_stock(Engine& shoal, const PrefillTiming& prefill,
                              uint64_t shoal_context_bytes, std::span<const llama_token> prompt,
                              std::span<const llama_token> generated) {
    Comparison out;
    out.stock.name = engine_name(EngineKind::stock);
    out.dense.name = "Shoal, dense";
    out.sparse.name = "Shoal";
    out.sparse.prefill = prefill;
    out.sparse.context_bytes = shoal_context_bytes;
    out.dense.context_bytes = shoal_context_bytes;
    const auto tokens = generated.first(std::min(generated.size(), kReplayMax));
    out.status = Comparer(shoal, prompt, tokens, out).run();
    return out;
}

std::string comparison_text(const Comparison& comparison) {
    const Column* columns[] = {&comparison.stock, &comparison.dense, &comparison.sparse};
    Table table({"", comparison.stock.name, comparison.dense.name, comparison.sparse.name});
    const auto row = [&](const std::string& name,
                         const std::function<std::string(const Column&)>& cell) {
        std::vector<std::string> cells = {name};
        for (const Column* column : columns) cells.push_back(cell(*column));
        table.add(cells);
    };
    row("prompt, tokens/s", [](const Column& c) {
        return c.prefill.tokens == 0 ? "" : fmt::format("{:.0f}", c.prefill.tokens_per_second());
    });
    row("ms per token, median", [](const Column& c) {
        return c.cost.ms.empty() ? "" : fmt::format("{:.1f}", median(c.cost.ms));
    });
    row("ms per token, least", [](const Column& c) {
        return c.cost.ms.empty() ? "" : fmt::format("{:.1f}", minimum(c.cost.ms));
    });
    row("tokens attended", [](const Column& c) {
        return grouped(static_cast<uint64_t>(c.cost.tokens_attended));
    });
    row("KV read per token", [](const Column& c) {
        return bytes_text(static_cast<uint64_t>(c.cost.kv_bytes));
    });
    row("labels read per token", [](const Column& c) {
        return bytes_text(static_cast<uint64_t>(c.cost.label_bytes));
    });
    row("memory of the context", [](const Column& c) { return bytes_text(c.context_bytes); });
    row("KL to stock", [](const Column& c) { return agreement_text(c.to_stock); });
    row("KL to Shoal dense", [](const Column& c) { return agreement_text(c.to_dense); });
    row("same likeliest token as stock", [](const Column& c) { return same_text(c.to_stock); });
    return table.text();
}

nlohmann::ordered_json comparison_json(const Comparison& comparison) {
    return {{"stock", column_json(comparison.stock)},
            {"dense", column_json(comparison.dense)},
            {"sparse", column_json(comparison.sparse)},
            {"complete", comparison.status.is_ok()}};
}

}  // namespace shoal::tool
