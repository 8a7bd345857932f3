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
    json["host_kv_bytes"] = stats.host_kv_bytes;
    json["label_bytes"] = stats.label_bytes;
    json["slots_used"] = stats.slots_used;
    return json.dump();
}

}  // namespace shoal
