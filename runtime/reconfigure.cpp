// What may change between steps, and the figures a session reports.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/session_state.hpp"

namespace shoal {

namespace {

Status refuse(const char* key) {
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("{}: cannot change in a running session: it decides what is "
                                     "stored. Create a new session",
                                     key));
}

}  // namespace

Status check_reconfigure(const SessionState& state, const Config& config) {
    const Config& now = state.config;
    if (config.selector.label_bits != now.selector.label_bits) return refuse("selector.label_bits");
    if (config.selector.row_bits != now.selector.row_bits) return refuse("selector.row_bits");
    if (config.sharing.kind != now.sharing.kind) return refuse("sharing.kind");
    if (config.profile.path != now.profile.path) return refuse("profile.path");
    if (config.profile.tokens != now.profile.tokens) return refuse("profile.tokens");
    if (config.host.kv_bytes != now.host.kv_bytes) return refuse("host.kv_bytes");
    if (config.host.check_rows != now.host.check_rows) return refuse("host.check_rows");
    if (config.budget.sparse_queries_max > state.limits.queries_max) {
        return refuse("budget.sparse_queries_max");
    }
    if (config.selector.kind == SelectorKind::labels && !state.limits.labels.enabled) {
        return refuse("selector.kind");
    }
    return Status::ok();
}

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
