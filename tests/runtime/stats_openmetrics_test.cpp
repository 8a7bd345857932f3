// Counters as OpenMetrics text: read by a strict parser, and nothing of Stats left out.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "shoal/stats.hpp"
#include "tests/runtime/open_metrics.hpp"

namespace shoal {
namespace {

using testing::OpenMetrics;

TEST(OpenMetricsReader, IsStrict) {
    const std::string good = "# TYPE a counter\n# HELP a Text.\na_total 1\n# EOF\n";
    EXPECT_EQ(OpenMetrics().read(good), "");
    EXPECT_EQ(OpenMetrics().read("# TYPE a gauge\na{b=\"c\"} 1.5e-7\na{b=\"d\"} NaN\n# EOF\n"), "");
    for (const char* bad :
         {"# TYPE a counter\na_total 1\n", "# TYPE a counter\na 1\n# EOF\n",
          "# TYPE a counter\na_total -1\n# EOF\n", "# TYPE a counter\na_total NaN\n# EOF\n",
          "# TYPE a gauge\na 1\na 1\n# EOF\n", "a 1\n# EOF\n",
          "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n", "# TYPE a gauge\na  1\n# EOF\n",
          "# TYPE a gauge\na 1\n# TYPE a gauge\n# EOF\n", "# TYPE a gauge\n\na 1\n# EOF\n",
          "# TYPE a gauge\na 1\n# HELP a Late.\n# EOF\n", "# TYPE a gauge\na 1\n# EOF\n# EOF\n",
          "# TYPE a gauge\na{b=\"c} 1\n# EOF\n", "# TYPE a gauge\nb 1\n# EOF\n"}) {
        EXPECT_NE(OpenMetrics().read(bad), "") << bad;
    }
}

// Every counter another number, from 11 on.
Stats numbered() {
    static_assert(sizeof(Stats) == 51 * sizeof(uint64_t), "a new figure belongs here too");
    Stats stats;
    uint64_t next = 11;
    for (uint64_t* field :
         {&stats.steps, &stats.tokens_written, &stats.queries_sparse, &stats.queries_dense,
          &stats.queries_exact, &stats.rows_attended, &stats.kv_bytes_read,
          &stats.label_bytes_read, &stats.append_ns, &stats.score_ns, &stats.select_ns,
          &stats.attend_ns, &stats.exact_ns, &stats.rescans, &stats.guess_misses,
          &stats.spans_encoded, &stats.spans_ranged_again, &stats.recall_samples,
          &stats.dense_without_statistics, &stats.host_kv_bytes, &stats.label_bytes,
          &stats.slots_used, &stats.rows_checked, &stats.selections, &stats.selections_reused,
          &stats.block_hits, &stats.block_misses, &stats.blocks_prefetched,
          &stats.blocks_prefetched_used, &stats.blocks_prefetched_late,
          &stats.blocks_prefetched_wasted, &stats.blocks_written, &stats.disk_reads,
          &stats.disk_read_bytes, &stats.disk_written_bytes, &stats.fetch_ns,
          &stats.exposed_wait_ns, &stats.write_wait_ns, &stats.disk_retries,
          &stats.disk_checksum_mismatches, &stats.disk_deadlines_missed,
          &stats.block_write_failures, &stats.disk_kv_bytes, &stats.prefetch_ns,
          &stats.prefetch_guesses, &stats.prefetch_hints, &stats.prefetch_switched_off,
          &stats.disk_paths_refused}) {
        *field = next++;
    }
    return stats;
}

TEST(StatsOpenMetrics, HoldsEveryFigure) {
    Stats stats = numbered();
    stats.attend_ns = 3'000'000'001;
    stats.mass_recall_sum = 7;  // of 28 samples
    stats.mass_recall_min = 0.125;
    const std::string text = stats_to_openmetrics(stats, "1.2.3");
    OpenMetrics read;
    ASSERT_EQ(read.read(text), "") << text;
    const std::map<std::string, double> expected = {
        {"shoal_build_info{version=\"1.2.3\"}", 1},
        {"shoal_steps_total", 11},
        {"shoal_tokens_total", 12},
        {"shoal_queries_total{attention=\"sparse\"}", 13},
        {"shoal_queries_total{attention=\"dense\"}", 14},
        {"shoal_queries_total{attention=\"exact\"}", 15},
        {"shoal_rows_attended_total", 16},
        {"shoal_kv_read_bytes_total", 17},
        {"shoal_label_read_bytes_total", 18},
        {"shoal_stage_seconds_total{stage=\"append\"}", 19e-9},
        {"shoal_stage_seconds_total{stage=\"score\"}", 20e-9},
        {"shoal_stage_seconds_total{stage=\"select\"}", 21e-9},
        {"shoal_stage_seconds_total{stage=\"attend\"}", 3.000000001},
        {"shoal_stage_seconds_total{stage=\"exact\"}", 23e-9},
        {"shoal_label_rescans_total", 24},
        {"shoal_topk_guess_misses_total", 25},
        {"shoal_spans_encoded_total", 26},
        {"shoal_spans_ranged_again_total", 27},
        {"shoal_recall_samples_total", 28},
        {"shoal_attention_mass_ratio", 0.25},
        {"shoal_attention_mass_least_ratio", 0.125},
        {"shoal_dense_without_statistics_total", 29},
        {"shoal_host_kv_bytes", 30},
        {"shoal_label_bytes", 31},
        {"shoal_slots_used", 32},
        {"shoal_rows_checked_total", 33},
        {"shoal_selections_total", 34},
        {"shoal_selections_reused_total", 35},
        {"shoal_block_hits_total", 36},
        {"shoal_block_misses_total", 37},
        {"shoal_blocks_prefetched_total", 38},
        {"shoal_prefetch_outcomes_total{outcome=\"used\"}", 39},
        {"shoal_prefetch_outcomes_total{outcome=\"late\"}", 40},
        {"shoal_prefetch_outcomes_total{outcome=\"wasted\"}", 41},
        {"shoal_blocks_written_total", 42},
        {"shoal_disk_reads_total", 43},
        {"shoal_disk_read_bytes_total", 44},
        {"shoal_disk_written_bytes_total", 45},
        {"shoal_disk_seconds_total{part=\"fetch\"}", 46e-9},
        {"shoal_disk_seconds_total{part=\"read_wait\"}", 47e-9},
        {"shoal_disk_seconds_total{part=\"write_wait\"}", 48e-9},
        {"shoal_disk_retries_total", 49},
        {"shoal_disk_checksum_mismatches_total", 50},
        {"shoal_disk_deadlines_missed_total", 51},
        {"shoal_block_write_failures_total", 52},
        {"shoal_disk_kv_bytes", 53},
        {"shoal_disk_seconds_total{part=\"read_ahead\"}", 54e-9},
        {"shoal_prefetch_guesses_total", 55},
        {"shoal_prefetch_hints_total", 56},
        {"shoal_prefetch_switched_off_total", 57},
        {"shoal_disk_paths_refused_total", 58}};
    EXPECT_EQ(read.samples, expected);
}

TEST(StatsOpenMetrics, NothingDoneIsWellFormedToo) {
    OpenMetrics read;
    ASSERT_EQ(read.read(stats_to_openmetrics(Stats{})), "");
    EXPECT_EQ(read.samples.count("shoal_build_info{version=\"\"}"), 0U);
    EXPECT_EQ(read.samples["shoal_steps_total"], 0);
    EXPECT_EQ(read.samples.count("shoal_attention_mass_ratio"), 0U) << "of no sample";
    Stats broken;
    broken.recall_samples = 1;
    broken.mass_recall_min = std::numeric_limits<double>::infinity();
    OpenMetrics odd;
    ASSERT_EQ(odd.read(stats_to_openmetrics(broken)), "");
    EXPECT_TRUE(std::isnan(odd.samples["shoal_attention_mass_least_ratio"]));
    Stats most;
    most.kv_bytes_read = UINT64_MAX;
    EXPECT_NE(stats_to_openmetrics(most).find("shoal_kv_read_bytes_total 18446744073709551615\n"),
              std::string::npos);
}

}  // namespace
}  // namespace shoal
