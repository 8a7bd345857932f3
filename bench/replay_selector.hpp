// A selector that answers with what a real model selected (bench/selection_trace.hpp), spread over
// a longer context, after doing the work of the one it stands for.
//
// A slot of the trace stands for the passage of `slots / recorded slots` slots that lies as deep in
// the longer context; of each passage that is selected, `rows / recorded rows` slots are, always
// the same ones of it, spread evenly and so never neighbours. What comes back from step to step,
// and after how many steps, is as recorded; two neighbours that were read together are not.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "bench/selection_trace.hpp"
#include "runtime/selector.hpp"

namespace shoal::bench {

// A trace, and the step of it that is being replayed. Layers beyond the trace's begin again at its
// first that is not a dense one.
class Replay {
public:
    Replay(const std::string& path, uint32_t slot_count, uint32_t dense_layers)
        : path_(path), trace_(read_trace(path)), dense_layers_(dense_layers),
          passage_(slot_count / trace_.slot_count) {
        if (passage_ == 0) trace_failed(path, "of more tokens than the context");
        if (trace_.layer_count <= dense_layers) trace_failed(path, "of dense layers alone");
    }

    uint32_t step_count() const { return trace_.step_count; }
    void go_to(uint32_t step) { step_ = std::min(step, trace_.step_count - 1); }

    // Writes `rows` slots, ascending; returns rows.
    uint32_t select(uint32_t layer, uint32_t rows, uint32_t* slots) const {
        const uint32_t others = trace_.layer_count - dense_layers_;
        const uint32_t from = layer < dense_layers_
                                  ? layer
                                  : dense_layers_ + (layer - dense_layers_) % others;
        const SelectionTrace::Set& set = trace_.set(step_, from);
        if (set.everything) trace_failed(path_, "a layer attends everything: DENSE_ROWS");
        const auto recorded = static_cast<uint32_t>(
            std::count_if(set.slots.begin(), set.slots.end(),
                          [](const TraceSlot& slot) { return slot.rank != 3; }));
        if (recorded == 0 || rows % recorded != 0 || rows / recorded > passage_) {
            trace_failed(path_, "its rows do not divide those of the session");
        }
        const uint32_t of_passage = rows / recorded;
        uint32_t count = 0;
        for (const TraceSlot& slot : set.slots) {
            if (slot.rank == 3) continue;
            const uint32_t first = slot.slot * 2654435761U % (passage_ / of_passage);
            for (uint32_t i = 0; i < of_passage; ++i) {
                slots[count++] = slot.slot * passage_ + first + i * (passage_ / of_passage);
            }
        }
        return count;
    }

private:
    std::string path_;
    SelectionTrace trace_;
    uint32_t dense_layers_ = 0;
    uint32_t passage_ = 0;
    uint32_t step_ = 0;
};

class ReplaySelector {
public:
    ReplaySelector(const Replay& replay, Selector selector)
        : replay_(replay), selector_(std::move(selector)) {}
    uint32_t select(const SelectInput& in, SelectOutput& out) {
        selector_.select(in, out);
        return replay_.select(in.group->layer, in.rows, out.slots);
    }

private:
    const Replay& replay_;
    Selector selector_;
};

}  // namespace shoal::bench
