// The exposition format: https://prometheus.io/docs/specs/om/open_metrics_spec/
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "shoal/stats.hpp"

namespace shoal {

namespace {

class Exposition {
public:
    void counter(std::string_view name, std::string_view help, uint64_t value) {
        family(name, "counter", "", help);
        text_ += fmt::format("{}_total {}\n", name, value);
    }
    void bytes_counter(std::string_view name, std::string_view help, uint64_t value) {
        family(name, "counter", "bytes", help);
        text_ += fmt::format("{}_total {}\n", name, value);
    }
    void gauge(std::string_view name, std::string_view unit, std::string_view help,
               uint64_t value) {
        family(name, "gauge", unit, help);
        text_ += fmt::format("{} {}\n", name, value);
    }
    void ratio(std::string_view name, std::string_view help, double value) {
        family(name, "gauge", "ratio", help);
        text_ += std::isfinite(value) ? fmt::format("{} {}\n", name, value)
                                      : fmt::format("{} NaN\n", name);
    }
    void family(std::string_view name, std::string_view type, std::string_view unit,
                std::string_view help) {
        text_ += fmt::format("# TYPE {} {}\n", name, type);
        if (!unit.empty()) text_ += fmt::format("# UNIT {} {}\n", name, unit);
        text_ += fmt::format("# HELP {} {}\n", name, help);
    }
    void sample(std::string_view name, std::string_view label, std::string_view value,
                const std::string& number) {
        text_ += fmt::format("{}{{{}=\"{}\"}} {}\n", name, label, value, number);
    }
    std::string finish() { return std::move(text_) + "# EOF\n"; }

private:
    std::string text_;
};

std::string seconds(uint64_t ns) { return fmt::format("{:.9f}", static_cast<double>(ns) * 1e-9); }

void add_queries(const Stats& stats, Exposition& out) {
    constexpr std::string_view kName = "shoal_queries";
    out.family(kName, "counter", "", "Query and layer pairs, by how they attended.");
    const std::string total = std::string(kName) + "_total";
    out.sample(total, "attention", "sparse", std::to_string(stats.queries_sparse));
    out.sample(total, "attention", "dense", std::to_string(stats.queries_dense));
    out.sample(total, "attention", "exact", std::to_string(stats.queries_exact));
}

void add_times(const Stats& stats, Exposition& out) {
    constexpr std::string_view kName = "shoal_stage_seconds";
    out.family(kName, "counter", "seconds", "Time of the calling thread, by stage of a step.");
    const std::string total = std::string(kName) + "_total";
    out.sample(total, "stage", "append", seconds(stats.append_ns));
    out.sample(total, "stage", "score", seconds(stats.score_ns));
    out.sample(total, "stage", "select", seconds(stats.select_ns));
    out.sample(total, "stage", "attend", seconds(stats.attend_ns));
    out.sample(total, "stage", "exact", seconds(stats.exact_ns));
}

void add_disk(const Stats& stats, Exposition& out) {
    out.counter("shoal_block_hits", "Blocks that attention found in RAM.", stats.block_hits);
    out.counter("shoal_block_misses", "Blocks that it had to read from disk.",
                stats.block_misses);
    out.counter("shoal_blocks_written", "Blocks written to disk.", stats.blocks_written);
    out.counter("shoal_blocks_prefetched", "Blocks whose read began before they were needed.",
                stats.blocks_prefetched);
    constexpr std::string_view kName = "shoal_prefetch_outcomes";
    out.family(kName, "counter", "", "Blocks read ahead, by what came of it.");
    const std::string total = std::string(kName) + "_total";
    out.sample(total, "outcome", "used", std::to_string(stats.blocks_prefetched_used));
    out.sample(total, "outcome", "late", std::to_string(stats.blocks_prefetched_late));
    out.sample(total, "outcome", "wasted", std::to_string(stats.blocks_prefetched_wasted));
    out.counter("shoal_prefetch_guesses", "Layers whose rows were guessed, to be read ahead.",
                stats.prefetch_guesses);
    out.counter("shoal_prefetch_hints", "Of those, for a query that the engine hinted.",
                stats.prefetch_hints);
    out.counter("shoal_prefetch_switched_off", "Times that guessing was found not to pay.",
                stats.prefetch_switched_off);
    out.counter("shoal_disk_reads", "Reads of the device.", stats.disk_reads);
    out.bytes_counter("shoal_disk_read_bytes", "Read from disk.", stats.disk_read_bytes);
    out.bytes_counter("shoal_disk_written_bytes", "Written to disk.", stats.disk_written_bytes);
    constexpr std::string_view kTimes = "shoal_disk_seconds";
    out.family(kTimes, "counter", "seconds",
               "Time of steps: fetching blocks; of that, choosing what to read ahead, and waiting "
               "for reads and for writes.");
    const std::string times = std::string(kTimes) + "_total";
    out.sample(times, "part", "fetch", seconds(stats.fetch_ns));
    out.sample(times, "part", "read_ahead", seconds(stats.prefetch_ns));
    out.sample(times, "part", "read_wait", seconds(stats.exposed_wait_ns));
    out.sample(times, "part", "write_wait", seconds(stats.write_wait_ns));
    out.counter("shoal_disk_retries", "Reads and writes repeated.", stats.disk_retries);
    out.counter("shoal_disk_checksum_mismatches", "Reads that were not what was written.",
                stats.disk_checksum_mismatches);
    out.counter("shoal_disk_deadlines_missed", "Reads and writes that took too long.",
                stats.disk_deadlines_missed);
    out.counter("shoal_block_write_failures", "Blocks that disk refused.",
                stats.block_write_failures);
    out.counter("shoal_disk_paths_refused",
                "1: io_uring is refused, threads do its work; or registering memory with it is.",
                stats.disk_paths_refused);
    out.gauge("shoal_disk_kv_bytes", "bytes", "Size of the file of rows.", stats.disk_kv_bytes);
}

}  // namespace

std::string stats_to_openmetrics(const Stats& stats, const std::string& version) {
    Exposition out;
    if (!version.empty()) {
        out.family("shoal_build", "info", "", "Version of Shoal.");
        out.sample("shoal_build_info", "version", version, "1");
    }
    out.counter("shoal_steps", "Forward passes.", stats.steps);
    out.counter("shoal_tokens", "Tokens written to the KV cache.", stats.tokens_written);
    add_queries(stats, out);
    out.counter("shoal_rows_attended", "Rows that decode attention read.", stats.rows_attended);
    out.bytes_counter("shoal_kv_read_bytes", "K and V that decode attention read.",
                      stats.kv_bytes_read);
    out.bytes_counter("shoal_label_read_bytes", "Labels that selection read.",
                      stats.label_bytes_read);
    add_times(stats, out);
    if (stats.disk_kv_bytes != 0) add_disk(stats, out);
    out.counter("shoal_selections", "Selections made, by groups of heads.", stats.selections);
    out.counter("shoal_selections_reused", "Selections of an anchor layer attended again.",
                stats.selections_reused);
    out.counter("shoal_label_rescans", "Label scans repeated because a normaliser had drifted.",
                stats.rescans);
    out.counter("shoal_topk_guess_misses", "Top-k runs that read every score.",
                stats.guess_misses);
    out.counter("shoal_spans_encoded", "Spans whose labels were encoded.", stats.spans_encoded);
    out.counter("shoal_spans_ranged_again", "Spans with an overwrite outside their ranges.",
                stats.spans_ranged_again);
    out.counter("shoal_rows_checked", "Rows compared before attention (host.check_rows).",
                stats.rows_checked);
    out.counter("shoal_recall_samples", "Selections compared with exact attention.",
                stats.recall_samples);
    if (stats.recall_samples > 0) {
        out.ratio("shoal_attention_mass_ratio", "Attention mass found, mean of the samples.",
                  stats.mass_recall_mean());
        out.ratio("shoal_attention_mass_least_ratio", "Attention mass found, worst sample.",
                  stats.mass_recall_min);
    }
    out.counter("shoal_dense_without_statistics",
                "Queries served dense: no channel statistics yet.",
                stats.dense_without_statistics);
    out.gauge("shoal_host_kv_bytes", "bytes", "Rows in RAM.", stats.host_kv_bytes);
    out.gauge("shoal_label_bytes", "bytes", "Labels in RAM.", stats.label_bytes);
    out.gauge("shoal_slots_used", "", "Tokens held.", stats.slots_used);
    return out.finish();
}

}  // namespace shoal
