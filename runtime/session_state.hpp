// Everything a session owns. Session (the facade) makes it, Step works on it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/backend.hpp"
#include "offload/arena.hpp"
#include "offload/block_cache.hpp"
#include "offload/executor.hpp"
#include "runtime/groups.hpp"
#include "runtime/label_source.hpp"
#include "runtime/selector.hpp"
#include "runtime/store.hpp"
#include "runtime/trace.hpp"
#include "shoal/session.hpp"

namespace shoal {

// Memory of a session beside its stores, laid out once.
struct Workspace {
    offload::Region selector;  // selector_workspace_bytes()
    offload::Region prefill;   // kernels::prefill_workspace_bytes()
    offload::Region prefill_state;  // kernels::prefill_state_bytes(), with a disk
    offload::Region guess_queries;  // GuessQueries::float_count(), with a disk
    offload::Region guess;     // slots that a guess selects, with a disk
    offload::Region partials;  // partial states of the largest attend
    offload::Region lists;     // attended lists of every group, store and query
    offload::Region views;     // what each query of each store may see: QueryView::bytes() each
    offload::Region seen;      // what any query of a store sees: a SpanMask per span, by store
};

// Sizes that follow from configuration and model; computed by one function for plan and create.
struct Limits {
    uint32_t slot_count_max = 0;
    uint32_t queries_max = 0;          // of one store that still get sparse attention
    uint32_t views_max = 0;            // queries_max of every store
    uint32_t q_head_count_max = 0;     // of a group
    uint32_t kv_head_count_max = 0;
    uint32_t v_head_dim_max = 0;
    uint32_t thread_count = 1;
    uint32_t frame_count = 0;          // blocks in RAM, with a disk
    SummaryLimits summaries;
};

// Given the selector that a configuration asks for, returns the one to use.
using SelectorWrapper = std::function<Selector(Selector)>;

struct SessionState {
    Config config;
    ModelShape shape;
    SessionOptions options;
    Limits limits;
    Groups groups;
    std::unique_ptr<offload::OwnExecutor> own_executor;
    Executor executor;
    std::unique_ptr<offload::Budget> budget;
    std::unique_ptr<offload::Arena> arena;
    std::unique_ptr<offload::Tier> disk;        // with disk.dir
    std::unique_ptr<offload::BlockCache> cache; // likewise
    Workspace workspace;
    std::vector<size_t> list_offset;           // [group] into workspace.lists, in slots
    std::vector<uint32_t> list_rows_max;       // [group] slots a list of this group may hold
    std::vector<std::unique_ptr<Store>> stores;
    std::vector<std::vector<kernels::LabelFormat>> formats;  // [group], empty until ready
    std::unique_ptr<LabelSource> label_source;
    Selector selector;
    SelectorWrapper wrap_selector;             // or empty
    const kernels::Backend* backend = nullptr;
    uint64_t identity = 0;                      // of this session's blocks on disk
    Stats stats;
    Trace trace;
    std::vector<double> recall_sum;            // [layer]
    std::vector<uint64_t> recall_count;        // [layer]

    // The selector that config asks for; where its working memory is laid out.
    void set_selector();
    void log(LogLevel level, const std::string& text) const {
        if (options.log) options.log(level, text);
    }
    bool spills() const { return !config.disk.dir.empty(); }
    RowFormat stored_rows() const { return shoal::stored_rows(config, shape.rows); }
    // Safety set and selected rows of a group at most.
    static uint32_t list_rows(const Config& config, const Group& group, uint32_t slot_count_max);
};

// Asks `arena` for everything of a session: with a counting arena this is the plan.
Status lay_out(offload::Arena& arena, SessionState& state);
// The part that follows budget and safety, again after reconfigure().
Status lay_out_lists(offload::Arena& arena, SessionState& state);
uint64_t list_bytes(const SessionState& state);
// Blocks that must be in RAM for the largest piece of work, and all there are.
uint32_t frames_least(const SessionState& state);
uint64_t frames_most(const SessionState& state);
uint64_t frame_bytes(const SessionState& state);
Limits limits_of(const Config& config, const SessionOptions& options, const Groups& groups,
                 uint32_t thread_count);
SelectorLimits selector_limits(const Limits& limits);

// Fills in the plan of a session that was prepared, and how many blocks it has in RAM, with so much
// room on its disk.
Status make_plan(SessionState& state, uint64_t disk_available_bytes, MemoryPlan& plan);
Status check_fits(const SessionState& state, const MemoryPlan& plan);
// Refuses changes of what is stored.
Status check_reconfigure(const SessionState& state, const Config& config);
Stats collect_stats(const SessionState& state);

}  // namespace shoal
