#include <cmath>

#include <nlohmann/json.hpp>

#include "shoal/stats.hpp"

namespace shoal {

std::string stats_to_json(const Stats& stats) {
    // JSON has no NaN and no infinity; a figure that is neither is null.
    const auto finite = [](double value) {
        return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
    };
    nlohmann::ordered_json json;
    json["steps"] = stats.steps;
    json["tokens_written"] = stats.tokens_written;
    json["queries_sparse"] = stats.queries_sparse;
    json["queries_dense"] = stats.queries_dense;
    json["queries_exact"] = stats.queries_exact;
    json["rows_attended"] = stats.rows_attended;
    json["kv_bytes_read"] = stats.kv_bytes_read;
    json["label_bytes_read"] = stats.label_bytes_read;
    json["append_ns"] = stats.append_ns;
    json["score_ns"] = stats.score_ns;
    json["select_ns"] = stats.select_ns;
    json["attend_ns"] = stats.attend_ns;
    json["exact_ns"] = stats.exact_ns;
    json["selections"] = stats.selections;
    json["selections_reused"] = stats.selections_reused;
    json["rescans"] = stats.rescans;
    json["guess_misses"] = stats.guess_misses;
    json["spans_encoded"] = stats.spans_encoded;
    json["spans_ranged_again"] = stats.spans_ranged_again;
    json["recall_samples"] = stats.recall_samples;
    json["mass_recall_sum"] = finite(stats.mass_recall_sum);
    json["mass_recall_mean"] = finite(stats.mass_recall_mean());
    json["mass_recall_min"] = finite(stats.mass_recall_min);
    json["mass_recall_min_layer"] = stats.mass_recall_min_layer;
    json["rows_checked"] = stats.rows_checked;
    json["dense_without_statistics"] = stats.dense_without_statistics;
    json["block_hits"] = stats.block_hits;
    json["block_misses"] = stats.block_misses;
    json["blocks_prefetched"] = stats.blocks_prefetched;
    json["blocks_prefetched_used"] = stats.blocks_prefetched_used;
    json["blocks_prefetched_late"] = stats.blocks_prefetched_late;
    json["blocks_prefetched_wasted"] = stats.blocks_prefetched_wasted;
    json["blocks_written"] = stats.blocks_written;
    json["disk_reads"] = stats.disk_reads;
    json["disk_read_bytes"] = stats.disk_read_bytes;
    json["disk_written_bytes"] = stats.disk_written_bytes;
    json["fetch_ns"] = stats.fetch_ns;
    json["exposed_wait_ns"] = stats.exposed_wait_ns;
    json["prefetch_ns"] = stats.prefetch_ns;
    json["prefetch_guesses"] = stats.prefetch_guesses;
    json["prefetch_hints"] = stats.prefetch_hints;
    json["write_wait_ns"] = stats.write_wait_ns;
    json["disk_retries"] = stats.disk_retries;
    json["disk_checksum_mismatches"] = stats.disk_checksum_mismatches;
    json["disk_deadlines_missed"] = stats.disk_deadlines_missed;
    json["block_write_failures"] = stats.block_write_failures;
    json["prefetch_switched_off"] = stats.prefetch_switched_off;
    json["disk_paths_refused"] = stats.disk_paths_refused;
    json["host_kv_bytes"] = stats.host_kv_bytes;
    json["disk_kv_bytes"] = stats.disk_kv_bytes;
    json["label_bytes"] = stats.label_bytes;
    json["slots_used"] = stats.slots_used;
    return json.dump();
}

}  // namespace shoal
