// What may change between steps, and the figures a session reports.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/session_state.hpp"

namespace shoal {

namespace {

Status refuse(const char* key) {
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("{}: cannot change in a running session. Create a new one",
                                     key));
}

// The same groups, and those that would select hold what they select by.
Status check_groups(const SessionState& state, const Config& config) {
    const Groups groups(state.shape, config);
    if (groups.count() != state.groups.count()) {
        return refuse(config.sharing.kind != state.config.sharing.kind ? "sharing.kind"
                                                                       : "sharing.heads");
    }
    for (const Group& group : groups.all()) {
        const GroupStore& kept = state.stores[0]->group(group.index);
        const bool lacks = (uses_labels(config.selector.kind) && !kept.keeps_labels()) ||
                           (uses_pages(config.selector.kind) && !kept.keeps_pages());
        if (!group.keeps_summaries() || !lacks) continue;
        return Status::error(
            StatusCode::invalid_argument,
            fmt::format("layer {} would select, but keeps nothing to select by in this session: "
                        "it was made to reuse an anchor's selection. Leave sharing.kind, "
                        "sharing.anchors and budget.dense_layers as they were, or create a new "
                        "session",
                        group.layer));
    }
    return Status::ok();
}

}  // namespace

Status check_reconfigure(const SessionState& state, const Config& config) {
    const Config& now = state.config;
    if (config.selector.label_bits != now.selector.label_bits) return refuse("selector.label_bits");
    if (config.selector.row_bits != now.selector.row_bits) return refuse("selector.row_bits");
    if (config.profile.path != now.profile.path) return refuse("profile.path");
    if (config.profile.tokens != now.profile.tokens) return refuse("profile.tokens");
    if (config.host.kv_bytes != now.host.kv_bytes) return refuse("host.kv_bytes");
    if (config.host.rows != now.host.rows) return refuse("host.rows");
    if (config.host.threads != now.host.threads) return refuse("host.threads");
    if (config.host.pin != now.host.pin) return refuse("host.pin");
    if (config.host.huge_pages != now.host.huge_pages) return refuse("host.huge_pages");
    if (config.host.check_rows != now.host.check_rows) return refuse("host.check_rows");
    if (config.disk.dir != now.disk.dir) return refuse("disk.dir");
    if (config.disk.kv_bytes != now.disk.kv_bytes) return refuse("disk.kv_bytes");
    if (config.disk.deadline_ms != now.disk.deadline_ms) return refuse("disk.deadline_ms");
    if (config.budget.sparse_queries_max > state.limits.queries_max) {
        return refuse("budget.sparse_queries_max");
    }
    const SummaryLimits& kept = state.limits.summaries;
    if (kept.page_slots != 0 && config.selector.page != kept.page_slots) {
        return refuse("selector.page");
    }
    if (uses_labels(config.selector.kind) && !kept.labels) return refuse("selector.kind");
    if (uses_pages(config.selector.kind) && kept.page_slots == 0) return refuse("selector.kind");
    return check_groups(state, config);
}

namespace {

void add_disk_stats(const SessionState& state, Stats& stats) {
    const offload::BlockCacheCounters& blocks = state.cache->counters();
    stats.block_hits = blocks.hits;
    stats.block_misses = blocks.misses;
    stats.blocks_prefetched = blocks.prefetched;
    stats.blocks_prefetched_used = blocks.prefetched_used;
    stats.blocks_prefetched_late = blocks.prefetched_late;
    stats.blocks_prefetched_wasted = blocks.prefetched_wasted;
    stats.blocks_written = blocks.blocks_written;
    stats.block_write_failures = blocks.write_failures;
    stats.exposed_wait_ns = blocks.wait_ns;
    stats.write_wait_ns = blocks.write_wait_ns;
    stats.host_kv_bytes = state.cache->resident_bytes();
    for (const auto& store : state.stores) {
        for (uint32_t g = 0; g < state.groups.count(); ++g) {
            stats.host_kv_bytes += store->group(g).rows.scale_bytes_in_ram();
        }
    }
    stats.disk_kv_bytes = state.cache->file_bytes();
    const offload::TierCounters disk = state.disk->counters();
    stats.disk_read_bytes = disk.read_bytes;
    stats.disk_written_bytes = disk.written_bytes;
    stats.disk_reads = disk.device_reads;
    stats.disk_retries = disk.retries;
    stats.disk_checksum_mismatches = disk.checksum_mismatches;
    stats.disk_deadlines_missed = disk.deadlines_missed;
    stats.disk_paths_refused = disk.paths_refused;
}

}  // namespace

Stats collect_stats(const SessionState& state) {
    Stats stats = state.stats;
    for (size_t l = 0; l < state.recall_count.size(); ++l) {
        if (state.recall_count[l] == 0) continue;
        stats.recall_samples += state.recall_count[l];
        stats.mass_recall_sum += state.recall_sum[l];
        const double mean = state.recall_sum[l] / static_cast<double>(state.recall_count[l]);
        if (mean <= stats.mass_recall_min) {
            stats.mass_recall_min = mean;
            stats.mass_recall_min_layer = static_cast<int32_t>(l);
        }
    }
    stats.host_kv_bytes = state.arena->committed_bytes(offload::MemoryTag::kv);
    stats.label_bytes = state.arena->committed_bytes(offload::MemoryTag::labels);
    if (state.cache != nullptr) add_disk_stats(state, stats);
    for (const auto& store : state.stores) {
        stats.slots_used += store->order().slot_end();
        for (uint32_t g = 0; g < state.groups.count(); ++g) {
            const LabelCounters& labels = store->group(g).labels.counters();
            stats.spans_encoded += labels.spans_encoded;
            stats.spans_ranged_again += labels.spans_ranged_again;
        }
    }
    return stats;
}

}  // namespace shoal
