// The events of a session until somebody reads them: a ring. Off, an add() is one comparison.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "shoal/trace.hpp"

namespace shoal {

class Trace {
public:
    // Forgets what was recorded. 0: off, and the memory is given back.
    void start(uint32_t event_capacity) {
        events_ = std::vector<TraceEvent>(event_capacity);
        first_ = 0;
        count_ = 0;
        dropped_ = 0;
    }
    bool is_on() const { return !events_.empty(); }

    void add(TraceStage stage, uint32_t layer, uint64_t begin_ns, uint64_t end_ns) {
        if (!is_on()) return;
        if (count_ == events_.size()) {
            dropped_++;
            return;
        }
        events_[(first_ + count_++) % events_.size()] = {begin_ns, end_ns, layer, stage};
    }

    // Moves events out, in the order in which they ended; returns how many.
    size_t read(std::span<TraceEvent> out) {
        const size_t count = std::min(out.size(), count_);
        for (size_t i = 0; i < count; ++i) out[i] = events_[(first_ + i) % events_.size()];
        count_ -= count;
        first_ = count_ == 0 ? 0 : (first_ + count) % events_.size();
        return count;
    }
    // Events that found no room since start().
    uint64_t dropped() const { return dropped_; }

private:
    std::vector<TraceEvent> events_;  // a ring
    size_t first_ = 0;
    size_t count_ = 0;
    uint64_t dropped_ = 0;
};

}  // namespace shoal
