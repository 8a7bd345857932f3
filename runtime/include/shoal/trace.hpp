// What a step spends its time on, event by event: for a picture of single steps, where Stats gives
// sums. Off unless asked for (Session::trace).
#pragma once

#include <cstdint>

namespace shoal {

enum class TraceStage : uint8_t {
    step,    // begin_step to end_step; holds the others
    append,  // K and V of a layer into rows and labels
    score,   // labels of a group against the queries
    select,  // the best of the scores
    attend,  // attention over decided lists, sparse or dense
    exact,   // attention of many queries over everything (prefill)
    fetch,   // blocks from disk, for attend or exact, which go on after it
    ahead,   // what later layers will need, found while a fetch reads, and inside it
};
inline constexpr uint32_t kTraceStageCount = 8;
// Events that a session keeps at most until somebody reads them: 96 MiB.
inline constexpr uint32_t kTraceEventsMax = 1U << 22;
// "append"; "unknown" for a number that is none.
const char* trace_stage_name(TraceStage stage);

// One stretch of time of the calling thread, in nanoseconds of std::chrono::steady_clock.
struct TraceEvent {
    uint64_t begin_ns = 0;
    uint64_t end_ns = 0;
    uint32_t layer = 0;  // 0 for a step
    TraceStage stage = TraceStage::step;
};

}  // namespace shoal
