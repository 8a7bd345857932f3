// shoal bench: milliseconds per token and prompt tokens per second at depths, stock llama.cpp and
// Shoal in turns in one process.
#include <algorithm>
#include <chrono>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "offload/memory_limits.hpp"
#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/exports.hpp"
#include "runtime/tool/generate.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/process_memory.hpp"
#include "runtime/tool/replicate.hpp"
#include "runtime/tool/report.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

using offload::bytes_text;

// As in compare: the same load for both, caches warm after the first token of a turn.
constexpr uint32_t kTurnTokens = 4;

struct BenchFlags {
    CommonFlags common;
    ExportFlags exports;
    std::string file;
    std::string depths = "512,4096,32768";
    std::string prefill;
    int64_t tokens = 32;
    int64_t repeats = 3;
    int64_t read_max = 4096;
    int64_t seconds_max = 0;
    bool no_stock = false;
    bool dense_in_ram = false;
};

struct Side {
    std::unique_ptr<Engine> engine;
    std::vector<double> ms;
    uint64_t context_bytes = 0;
    Stats before;
};

struct DepthResult {
    uint32_t depth = 0;
    bool on_disk = false;
    bool replicated = false;     // rows of a shorter text, repeated: a speed test only
    DecodeCost stock;
    DecodeCost shoal;
    DecodeCost dense;            // Shoal, everything attended, all rows in RAM
    uint64_t stock_bytes = 0;
    uint64_t shoal_bytes = 0;
    uint64_t plan_bytes = 0;
    uint64_t resident_bytes = 0;  // of the process, with the contexts and weights of both
};

struct PrefillResult {
    uint32_t tokens = 0;
    std::vector<double> stock;   // tokens per second, one per repeat
    std::vector<double> shoal;
};

class Bench {
public:
    Bench(const BenchFlags& flags, Prepared prepared)
        : flags_(flags), prepared_(std::move(prepared)), exports_(flags.exports) {}

    Status run(const std::string& text, const std::vector<uint32_t>& depths,
               const std::vector<uint32_t>& prefills) {
        SHOAL_TRY(load());
        tokens_ = shoal_.engine->tokenize(text, false);
        const uint32_t longest = std::max(
            *std::max_element(depths.begin(), depths.end()) > read_max() ? read_max() : 1U,
            prefills.empty() ? 1U : *std::max_element(prefills.begin(), prefills.end()));
        if (tokens_.size() < longest + 1) {
            return input_error(fmt::format("-f {}: has {} tokens, this bench reads {}", flags_.file,
                                           grouped(tokens_.size()), grouped(longest)));
        }
        for (const uint32_t tokens : prefills) SHOAL_TRY(measure_prefill(tokens));
        for (const uint32_t depth : depths) SHOAL_TRY(measure_depth(depth));
        return Status::ok();
    }

    const std::vector<DepthResult>& depths() const { return depths_; }
    const std::vector<PrefillResult>& prefills() const { return prefills_; }

private:
    uint32_t read_max() const { return static_cast<uint32_t>(flags_.read_max); }
    bool with_stock() const { return stock_.engine != nullptr; }

    Status load() {
        SHOAL_TRY(exports_.open(flags_.common.report));
        Result<std::unique_ptr<Engine>> shoal = Engine::load(EngineKind::shoal, prepared_.engine);
        if (!shoal) return shoal.status();
        shoal_.engine = std::move(*shoal);
        SHOAL_TRY(exports_.attach(*shoal_.engine));
        if (flags_.no_stock) return Status::ok();
        Result<std::unique_ptr<Engine>> stock = Engine::load(EngineKind::stock, prepared_.engine);
        if (!stock) return stock.status();
        stock_.engine = std::move(*stock);
        return Status::ok();
    }

    Status measure_prefill(uint32_t tokens) {
        PrefillResult result{.tokens = tokens, .stock = {}, .shoal = {}};
        const auto prompt = std::span<const llama_token>(tokens_).first(tokens);
        for (int64_t i = 0; i < flags_.repeats; ++i) {
            for (Side* side : {&stock_, &shoal_}) {
                if (!side->engine) continue;
                SHOAL_TRY(side->engine->make_context(padded_context(tokens)));
                PrefillTiming timing;
                const std::string label = fmt::format("{} reads {} tokens",
                                                      engine_name(side->engine->kind()), tokens);
                SHOAL_TRY(read_prompt(*side->engine, prompt, label, timing));
                (side == &stock_ ? result.stock : result.shoal)
                    .push_back(timing.tokens_per_second());
                if (side == &shoal_) SHOAL_TRY(exports_.flush(*side->engine));
                side->engine->drop_context();
            }
        }
        prefills_.push_back(std::move(result));
        return Status::ok();
    }

    // A text of `read_max` tokens, or all of the depth where that is less.
    Status fill_shoal(uint32_t depth, uint32_t read) {
        const auto prompt = std::span<const llama_token>(tokens_).first(read);
        PrefillTiming timing;
        SHOAL_TRY(read_prompt(*shoal_.engine, prompt, fmt::format("reading {} tokens", read),
                              timing));
        state_ = save_state(*shoal_.engine);
        if (read == depth) return Status::ok();
        Result<std::vector<uint8_t>> longer = replicate_state(state_, depth);
        if (!longer) return longer.status();
        state_ = std::move(*longer);
        return load_state(*shoal_.engine, state_);
    }

    Status measure_depth(uint32_t depth) {
        DepthResult result;
        result.depth = depth;
        const uint32_t read = std::min(depth, read_max());
        result.replicated = read < depth;
        result.on_disk = !prepared_.config.config.disk.dir.empty();
        const uint32_t context = padded_context(depth + flags_.tokens * flags_.repeats + 1);
        const auto plan = plan_memory(prepared_.config.config, prepared_.engine.model, context,
                                      prepared_.engine.micro_batch);
        if (!plan) return plan.status();
        SHOAL_TRY(check_memory(*plan, prepared_.engine.model, context));
        result.plan_bytes = plan->total_bytes;
        const uint64_t before = resident_anonymous_bytes();
        SHOAL_TRY(shoal_.engine->make_context(context));
        SHOAL_TRY(fill_shoal(depth, read));
        // The state is a copy of the rows that only this bench needs.
        const uint64_t after = resident_anonymous_bytes() - state_.capacity();
        result.shoal_bytes = after > before ? after - before : 0;
        if (with_stock()) {
            const uint64_t stock_before = resident_anonymous_bytes();
            SHOAL_TRY(stock_.engine->make_context(context));
            SHOAL_TRY(load_state(*stock_.engine, state_));
            const uint64_t stock_after = resident_anonymous_bytes();
            result.stock_bytes = stock_after > stock_before ? stock_after - stock_before : 0;
        }
        if (!flags_.dense_in_ram) drop_state();
        SHOAL_TRY(decode_in_turns(depth, result));
        result.resident_bytes = resident_bytes();
        SHOAL_TRY(exports_.flush(*shoal_.engine));
        shoal_.engine->drop_context();
        if (with_stock()) stock_.engine->drop_context();
        if (flags_.dense_in_ram) SHOAL_TRY(measure_dense(context, result));
        depths_.push_back(std::move(result));
        return Status::ok();
    }

    void drop_state() { std::vector<uint8_t>().swap(state_); }  // "= {}" would keep its memory

    // After the others, since two contexts of this length may not fit.
    Status measure_dense(uint32_t context, DepthResult& result) {
        Config dense = prepared_.config.config;
        dense.selector.kind = SelectorKind::dense;
        dense.disk = {};
        dense.host.kv_bytes = 0;
        const auto plan = plan_memory(dense, prepared_.engine.model, context,
                                      prepared_.engine.micro_batch);
        if (!plan) return plan.status();
        SHOAL_TRY(check_memory(*plan, prepared_.engine.model, context));
        Engine& engine = *shoal_.engine;
        engine.set_config(dense);
        SHOAL_TRY(engine.make_context(context));
        SHOAL_TRY(load_state(engine, state_));
        drop_state();
        SHOAL_TRY(turn(engine, 1, nullptr));
        const Stats before = engine.plugin().stats();
        std::vector<double> ms;
        const size_t tokens = result.shoal.ms.size();
        ProgressBar bar("dense, in RAM", "tokens", tokens);
        while (ms.size() < tokens) {
            SHOAL_TRY(turn(engine, 1, &ms));
            bar.update(ms.size());
        }
        result.dense = shoal_cost(prepared_.engine.model, before, engine.plugin().stats(),
                                  std::move(ms));
        engine.drop_context();
        engine.set_config(prepared_.config.config);
        return Status::ok();
    }

    Status decode_in_turns(uint32_t depth, DepthResult& result) {
        std::vector<double> stock_ms;
        std::vector<double> shoal_ms;
        const auto total = static_cast<uint64_t>(flags_.tokens * flags_.repeats);
        ProgressBar bar(fmt::format("depth {}", grouped(depth)), "tokens", total);
        // The first token after a fill builds graphs and touches pages: not counted.
        SHOAL_TRY(turn(*shoal_.engine, 1, nullptr));
        if (with_stock()) SHOAL_TRY(turn(*stock_.engine, 1, nullptr));
        const Stats before = shoal_.engine->plugin().stats();
        const auto started = std::chrono::steady_clock::now();
        const auto spent = [&] {
            return flags_.seconds_max > 0 && std::chrono::steady_clock::now() - started >
                                                 std::chrono::seconds(flags_.seconds_max);
        };
        for (uint64_t done = 0, turns = 0; done < total && (done == 0 || !spent());
             done += kTurnTokens, ++turns) {
            const auto count =
                static_cast<uint32_t>(std::min<uint64_t>(kTurnTokens, total - done));
            const bool shoal_first = turns % 2 == 0;
            if (with_stock() && !shoal_first) SHOAL_TRY(turn(*stock_.engine, count, &stock_ms));
            SHOAL_TRY(turn(*shoal_.engine, count, &shoal_ms));
            if (with_stock() && shoal_first) SHOAL_TRY(turn(*stock_.engine, count, &stock_ms));
            bar.update(done + count);
        }
        const ModelFile& model = prepared_.engine.model;
        result.shoal = shoal_cost(model, before, shoal_.engine->plugin().stats(),
                                  std::move(shoal_ms));
        const auto decoded = static_cast<double>(stock_ms.size());
        result.stock = stock_cost(model, depth + decoded / 2,
                                  std::move(stock_ms));
        return Status::ok();
    }

    Status turn(Engine& engine, uint32_t count, std::vector<double>* ms) {
        for (uint32_t i = 0; i < count; ++i) {
            const size_t at = engine.depth() % (tokens_.size() - 1);
            const Result<double> took = engine.decode(tokens_[at]);
            if (!took) return took.status();
            if (ms != nullptr) ms->push_back(*took);
        }
        return Status::ok();
    }

    const BenchFlags& flags_;
    Prepared prepared_;
    Exports exports_;
    Side shoal_;
    Side stock_;
    std::vector<llama_token> tokens_;
    std::vector<uint8_t> state_;
    std::vector<DepthResult> depths_;
    std::vector<PrefillResult> prefills_;
};

std::string ratio_text(double stock, double shoal) {
    return stock > 0 && shoal > 0 ? fmt::format("{:.2f} x", stock / shoal) : "";
}

std::string number_text(double value) { return value > 0 ? fmt::format("{:.1f}", value) : ""; }

// What only some runs have: rows on disk, and dense attention in RAM beside.
std::string depth_notes(const DepthResult& r) {
    std::string text;
    if (r.on_disk) {
        const DecodeCost::Disk& disk = r.shoal.disk;
        text += fmt::format("{}: {} a token from disk, {:.0f} % of blocks found in RAM, waits "
                            "{:.1f} ms a token\n",
                            grouped(r.depth), bytes_text(static_cast<uint64_t>(disk.read_bytes)),
                            100 * disk.hit_rate, disk.wait_ms);
    }
    if (!r.dense.ms.empty()) {
        text += fmt::format("{}: Shoal dense with all rows in RAM {:.1f} ms/token (least {:.1f}), "
                            "{} faster\n",
                            grouped(r.depth), median(r.dense.ms), minimum(r.dense.ms),
                            ratio_text(median(r.dense.ms), median(r.shoal.ms)));
    }
    return text;
}

std::string bench_text(const Bench& bench, const Prepared& prepared) {
    std::string text;
    if (!bench.prefills().empty()) {
        Table table({"prompt tokens/s", "stock", "Shoal", "faster"});
        for (const PrefillResult& r : bench.prefills()) {
            table.add({grouped(r.tokens), number_text(median(r.stock)),
                       number_text(median(r.shoal)), ratio_text(median(r.shoal), median(r.stock))});
        }
        text += table.text() + "\n";
    }
    Table table({"depth", "stock ms/token", "(least)", "Shoal ms/token", "(least)", "faster",
                 "attended", "read/token", "stock RAM", "Shoal RAM", "plan"});
    bool replicated = false;
    for (const DepthResult& r : bench.depths()) {
        replicated = replicated || r.replicated;
        table.add({grouped(r.depth) + (r.replicated ? " *" : ""),
                   number_text(median(r.stock.ms)), number_text(minimum(r.stock.ms)),
                   number_text(median(r.shoal.ms)), number_text(minimum(r.shoal.ms)),
                   ratio_text(median(r.stock.ms), median(r.shoal.ms)),
                   grouped(static_cast<uint64_t>(r.shoal.tokens_attended)),
                   bytes_text(static_cast<uint64_t>(r.shoal.kv_bytes + r.shoal.label_bytes)),
                   r.stock_bytes == 0 ? "" : bytes_text(r.stock_bytes), bytes_text(r.shoal_bytes),
                   bytes_text(r.plan_bytes)});
    }
    text += table.text();
    for (const DepthResult& r : bench.depths()) text += depth_notes(r);
    if (replicated) text += "* a speed test only: the rows of a shorter text, repeated\n";
    const std::string changed = changed_settings(prepared.config);
    text += fmt::format("{} threads{}{}\n", prepared.engine.threads, changed.empty() ? "" : ", ",
                        changed);
    return text;
}

nlohmann::ordered_json bench_json(const Bench& bench, const Prepared& prepared) {
    nlohmann::ordered_json json = report_header("bench", prepared);
    json["prefill"] = nlohmann::ordered_json::array();
    for (const PrefillResult& r : bench.prefills()) {
        json["prefill"].push_back({{"tokens", r.tokens},
                                   {"stock_tokens_per_second", r.stock},
                                   {"shoal_tokens_per_second", r.shoal}});
    }
    json["depths"] = nlohmann::ordered_json::array();
    for (const DepthResult& r : bench.depths()) {
        json["depths"].push_back({{"depth", r.depth},
                                  {"replicated", r.replicated},
                                  {"stock", cost_json(r.stock)},
                                  {"shoal", cost_json(r.shoal)},
                                  {"dense_in_ram", r.dense.ms.empty() ? nlohmann::ordered_json()
                                                                      : cost_json(r.dense)},
                                  {"stock_context_bytes", r.stock_bytes},
                                  {"shoal_context_bytes", r.shoal_bytes},
                                  {"plan_bytes", r.plan_bytes},
                                  {"resident_bytes", r.resident_bytes}});
    }
    return json;
}

int bench_command(const BenchFlags& flags) {
    SHOAL_TOOL_TRY(refuse_context(flags.common, "bench"));
    const auto depths = parse_numbers("-d", flags.depths, 1);
    if (!depths) return report_error(depths.status());
    std::vector<uint32_t> prefills;
    if (!flags.prefill.empty()) {
        const auto numbers = parse_numbers("--prefill", flags.prefill, 1);
        if (!numbers) return report_error(numbers.status());
        prefills = *numbers;
    }
    for (const auto& [flag, value] : {std::pair<const char*, int64_t>{"-n", flags.tokens},
                                      {"--repeats", flags.repeats},
                                      {"--read-max", flags.read_max}}) {
        const auto checked = checked_number(flag, value, 1, 1 << 24);
        if (!checked) return report_error(checked.status());
    }
    const auto seconds = checked_number("--seconds-max", flags.seconds_max, 0, 1 << 20);
    if (!seconds) return report_error(seconds.status());
    const Result<std::string> text = read_text_file("-f", flags.file);
    if (!text) return report_error(text.status());
    const Result<Prepared> prepared = prepare(flags.common);
    if (!prepared) return report_error(prepared.status());
    SHOAL_TOOL_TRY(check_config(*prepared));
    Bench bench(flags, *prepared);
    const Status status = bench.run(*text, *depths, prefills);
    if (!status.is_ok() && !is_interrupted_status(status)) return report_error(status);
    SHOAL_TOOL_TRY(print_result(flags.common, bench_json(bench, *prepared),
                                bench_text(bench, *prepared)));
    return status.is_ok() ? kExitOk : report_error(status);
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
    auto flags = std::make_shared<BenchFlags>();
    CLI::App* command =
        app.add_subcommand("bench", "speed at depths, stock llama.cpp and Shoal in turns");
    add_model_flags(*command, flags->common.model);
    command->add_option("-f,--file", flags->file, "a text to read")->required();
    command->add_option("-d,--depth", flags->depths, "tokens before the measured ones")
        ->capture_default_str();
    command->add_option("--prefill", flags->prefill,
                        "lengths of prompt whose reading is timed, such as 512,4096");
    command->add_option("-n,--predict", flags->tokens, "tokens per repeat")->capture_default_str();
    command->add_option("--repeats", flags->repeats, "repeats")->capture_default_str();
    command->add_option("--read-max", flags->read_max,
                        "tokens really read; beyond that their rows are repeated (speed test)")
        ->capture_default_str();
    command->add_option("--seconds-max", flags->seconds_max,
                        "end a depth early once it has taken this long, after 4 tokens of each "
                        "side at least; 0: never")
        ->capture_default_str();
    command->add_flag("--no-stock", flags->no_stock, "measure Shoal alone");
    command->add_flag("--dense-in-ram", flags->dense_in_ram,
                      "then measure Shoal with everything attended and all rows in RAM");
    add_output_flags(*command, flags->common);
    add_metrics_flag(*command, flags->exports);
    add_config_flags(*command, flags->common.config);
    command->callback(
        [flags, &action] { action.run = [flags] { return bench_command(*flags); }; });
}

}  // namespace shoal::tool
