#include "runtime/tool/generate.hpp"

#include <chrono>
#include <cstdio>

#include <fmt/format.h>

#include "offload/memory_limits.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/sampling.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

using Clock = std::chrono::steady_clock;
using offload::bytes_text;

double per(uint64_t before, uint64_t after, uint64_t count) {
    return count == 0 ? 0 : static_cast<double>(after - before) / static_cast<double>(count);
}

// Share of the blocks that were needed and found in RAM, kept or read ahead in time.
double hit_rate(const Stats& before, const Stats& after) {
    const uint64_t read = after.block_misses - before.block_misses + after.blocks_prefetched_late -
                          before.blocks_prefetched_late;
    const uint64_t found = after.block_hits - before.block_hits + after.blocks_prefetched_used -
                           before.blocks_prefetched_used;
    return read + found == 0 ? 1.0
                             : static_cast<double>(found) / static_cast<double>(read + found);
}

}  // namespace

Status read_prompt(Engine& engine, std::span<const llama_token> tokens, const std::string& label,
                   PrefillTiming& timing) {
    ProgressBar bar(label, "tokens", tokens.size());
    const auto start = Clock::now();
    const Status status = engine.prefill(tokens, [&](uint64_t done) {
        timing.tokens = done;
        timing.seconds = std::chrono::duration<double>(Clock::now() - start).count();
        bar.update(done);
    });
    return status;
}

DecodeCost shoal_cost(const ModelFile& model, const Stats& before, const Stats& after,
                      std::vector<double> ms) {
    const uint64_t count = ms.size();
    DecodeCost cost;
    cost.ms = std::move(ms);
    cost.kv_bytes = per(before.kv_bytes_read, after.kv_bytes_read, count);
    cost.label_bytes = per(before.label_bytes_read, after.label_bytes_read, count);
    cost.tokens_attended = per(before.rows_attended, after.rows_attended, count * model.lanes());
    const double to_ms = 1e-6;
    cost.stages = {.append = to_ms * per(before.append_ns, after.append_ns, count),
                   .score = to_ms * per(before.score_ns, after.score_ns, count),
                   .select = to_ms * per(before.select_ns, after.select_ns, count),
                   .attend = to_ms * per(before.attend_ns, after.attend_ns, count)};
    cost.disk = {.read_bytes = per(before.disk_read_bytes, after.disk_read_bytes, count),
                 .wait_ms = to_ms * per(before.exposed_wait_ns, after.exposed_wait_ns, count),
                 .hit_rate = hit_rate(before, after)};
    cost.rescans = per(before.rescans, after.rescans, count);
    cost.guess_misses = per(before.guess_misses, after.guess_misses, count);
    return cost;
}

DecodeCost stock_cost(const ModelFile& model, double mean_depth, std::vector<double> ms) {
    DecodeCost cost;
    cost.ms = std::move(ms);
    cost.kv_bytes = mean_depth * static_cast<double>(model.kv_bytes_per_token());
    cost.tokens_attended = mean_depth;
    return cost;
}

std::string live_text(uint32_t depth, double ms, const ModelFile& model, const Stats& before,
                      const Stats& now, uint64_t tokens) {
    const uint64_t count = std::max<uint64_t>(tokens, 1);
    const uint64_t read = now.kv_bytes_read + now.label_bytes_read - before.kv_bytes_read -
                          before.label_bytes_read;
    std::string text = fmt::format(
        "depth {}  {:.1f} ms/token  {} attended  {}/token  KV {}  labels {}",
        grouped(depth), ms,
        grouped((now.rows_attended - before.rows_attended) / (count * model.lanes())),
        bytes_text(read / count), bytes_text(now.host_kv_bytes), bytes_text(now.label_bytes));
    if (now.disk_kv_bytes == 0) return text;
    const uint64_t wait_ns = now.exposed_wait_ns - before.exposed_wait_ns;
    return text + fmt::format("  disk {}/token, {:.0f} % in RAM, waits {:.1f} ms",
                              bytes_text((now.disk_read_bytes - before.disk_read_bytes) / count),
                              100 * hit_rate(before, now),
                              1e-6 * static_cast<double>(wait_ns) / static_cast<double>(count));
}

Generation generate(Engine& engine, llama_sampler* sampler, const GenerateOptions& options) {
    Generation result;
    const Stats before = engine.plugin().stats();
    std::vector<double> ms;
    {
        LiveLine line;
        while (result.tokens.size() < options.tokens_max) {
            if (interrupted()) {
                result.status = interrupted_status();
                break;
            }
            const llama_token token = result.tokens.empty() && !options.logits.empty()
                                          ? sample_from(sampler, options.logits)
                                          : llama_sampler_sample(sampler, engine.context(), -1);
            if (llama_vocab_is_eog(engine.vocab(), token) && !options.ignore_eos) {
                result.end_of_text = true;
                break;
            }
            const std::string piece = engine.piece(token);
            result.tokens.push_back(token);
            result.text += piece;
            if (options.stream) {
                std::fwrite(piece.data(), 1, piece.size(), stdout);
                std::fflush(stdout);
            }
            if (result.tokens.size() == options.tokens_max) break;
            const Result<double> took = engine.decode(token);
            if (!took) {
                result.status = took.status();
                break;
            }
            ms.push_back(*took);
            if (line.due()) {
                line.show(live_text(engine.depth(), median(ms), engine.options().model, before,
                                    engine.plugin().stats(), ms.size()));
            }
        }
    }
    result.cost = shoal_cost(engine.options().model, before, engine.plugin().stats(),
                             std::move(ms));
    return result;
}

nlohmann::ordered_json cost_json(const DecodeCost& cost) {
    nlohmann::ordered_json json;
    json["tokens"] = cost.ms.size();
    json["ms_per_token_median"] = median(cost.ms);
    json["ms_per_token_min"] = minimum(cost.ms);
    json["kv_bytes_per_token"] = cost.kv_bytes;
    json["label_bytes_per_token"] = cost.label_bytes;
    json["tokens_attended"] = cost.tokens_attended;
    json["append_ms_per_token"] = cost.stages.append;
    json["score_ms_per_token"] = cost.stages.score;
    json["select_ms_per_token"] = cost.stages.select;
    json["attend_ms_per_token"] = cost.stages.attend;
    json["disk_bytes_per_token"] = cost.disk.read_bytes;
    json["disk_wait_ms_per_token"] = cost.disk.wait_ms;
    json["block_hit_rate"] = cost.disk.hit_rate;
    json["rescans_per_token"] = cost.rescans;
    json["guess_misses_per_token"] = cost.guess_misses;
    return json;
}

}  // namespace shoal::tool
