// What a session did, for people and programs. Plain counters: reading them costs nothing.
#pragma once

#include <cstdint>
#include <string>

namespace shoal {

struct Stats {
    // Steps and queries.
    uint64_t steps = 0;
    uint64_t tokens_written = 0;
    // Pairs of a query and a group of heads: a layer, or with sharing per head one of its KV heads.
    uint64_t queries_sparse = 0;    // attended a selection
    uint64_t queries_dense = 0;     // attended everything visible
    uint64_t queries_exact = 0;     // of large batches (prefill)
    // Work of decode attention (sparse and dense, not prefill).
    uint64_t rows_attended = 0;     // tokens x KV heads read by attention
    uint64_t kv_bytes_read = 0;     // bytes of K and V those rows are
    uint64_t label_bytes_read = 0;  // labels and page bounds
    // Time, nanoseconds of the calling thread.
    uint64_t append_ns = 0;
    uint64_t score_ns = 0;
    uint64_t select_ns = 0;
    uint64_t attend_ns = 0;
    uint64_t exact_ns = 0;
    // Selection. Of queries_sparse, counted per group (a layer, or one of its KV heads):
    uint64_t selections = 0;        // made by a selector
    uint64_t selections_reused = 0; // an anchor layer's, attended again
    uint64_t rescans = 0;           // label scans repeated because the heads' lse had drifted
    uint64_t guess_misses = 0;      // top-k runs that had to read every score
    uint64_t spans_encoded = 0;
    uint64_t spans_ranged_again = 0;  // an overwrite fell outside its span's ranges
    uint64_t recall_samples = 0;
    double mass_recall_sum = 0;     // attention mass attended / mass of everything visible
    double mass_recall_min = 1;     // the worst sampled (layer, head mean)
    int32_t mass_recall_min_layer = -1;
    uint64_t rows_checked = 0;      // host.check_rows: rows of a group compared before attention
    // Degraded modes; each has a log line.
    uint64_t dense_without_statistics = 0;  // queries served dense: no channel statistics yet
    // Rows on disk (disk.dir). A block holds the rows of a few tokens of a group.
    uint64_t block_hits = 0;        // blocks needed (to attend, write, label) that RAM held
    uint64_t block_misses = 0;      // that had to be read then
    uint64_t blocks_prefetched = 0; // reads started before they were needed; of those:
    uint64_t blocks_prefetched_used = 0;
    uint64_t blocks_prefetched_late = 0;    // needed while they were under way
    uint64_t blocks_prefetched_wasted = 0;  // given up without having been needed
    uint64_t blocks_written = 0;
    uint64_t disk_reads = 0;        // of the device, neighbours merged
    uint64_t disk_read_bytes = 0;
    uint64_t disk_written_bytes = 0;
    uint64_t fetch_ns = 0;          // finding and reading blocks
    uint64_t exposed_wait_ns = 0;   // of that, waiting for reads
    uint64_t prefetch_ns = 0;       // of that, choosing what to read ahead
    uint64_t prefetch_guesses = 0;  // layers whose rows were guessed
    uint64_t prefetch_hints = 0;    // of those, for a query that the engine hinted
    uint64_t write_wait_ns = 0;     // waiting for a dirty block to be written
    // Degraded modes of the disk; each has a log line.
    uint64_t disk_retries = 0;
    uint64_t disk_checksum_mismatches = 0;  // reads that were not what was written
    uint64_t disk_deadlines_missed = 0;
    uint64_t block_write_failures = 0;      // blocks that stayed in RAM
    uint64_t prefetch_switched_off = 0;     // times that guessing was found not to pay
    uint64_t disk_paths_refused = 0;        // 1: threads read and write, since io_uring is refused,
                                            // or it does, and may not register memory (ulimit -l)
    // Memory now.
    uint64_t host_kv_bytes = 0;     // rows in RAM
    uint64_t disk_kv_bytes = 0;     // of the file
    uint64_t label_bytes = 0;       // labels and page bounds in RAM
    uint64_t slots_used = 0;

    double mass_recall_mean() const {
        return recall_samples == 0 ? 1.0 : mass_recall_sum / static_cast<double>(recall_samples);
    }
};

// One JSON object, keys as the fields above.
std::string stats_to_json(const Stats& stats);
// OpenMetrics text with its end mark: counters, gauges and seconds, all named shoal_*. For a
// program's own scrape endpoint, or a file that a collector reads. `version` of what runs it, for
// shoal_build_info; "" leaves that out.
std::string stats_to_openmetrics(const Stats& stats, const std::string& version = "");

}  // namespace shoal
