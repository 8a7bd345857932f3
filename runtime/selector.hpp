// The selector seam: which slots, besides the safety set, a group attends for one query.
//
// A selector is any type with
//     uint32_t select(const SelectInput& in, SelectOutput& out)
// that writes at most in.rows selectable slots, ascending, and nothing behind slots[rows] or its
// workspace. It is erased once, at create or reconfigure. It keeps nothing between calls: its
// answer follows from the store, the query and `history`, bit for bit on any executor.
// history.threshold never changes the answer; lse and spans may. `recent` returns no slot, every
// other kind min(rows, selectable). tests/runtime/selector_conformance_test.cpp holds
// every kind to this.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/groups.hpp"
#include "runtime/label_index.hpp"
#include "runtime/page_index.hpp"
#include "runtime/trace.hpp"
#include "shoal/config.hpp"
#include "shoal/stats.hpp"

namespace shoal {

// What earlier selections of a (store, group) left behind for the next one. A step with several
// queries of one store (sequences that share a cache) has one for each: the first query goes on
// from what the first query of the last step left, and so on.
struct SelectHistory {
    std::vector<float> lse;          // [q_head_count] log2 of the sum of 2^score, last step
    std::vector<float> bound_lse;    // the same of page bounds
    std::vector<uint32_t> spans;     // those that most of the last selection lay in, ascending
    float threshold = -1.0F / 0.0F;  // score of the worst slot chosen last
    float rows_factor = 1;           // of budget.rows, under budget.adaptive
    bool known = false;
    void forget() { known = false; }
    // What it holds is of a group with as many heads; nothing, the first time.
    void prepare(uint32_t q_head_count);
    // So that prepare() and selecting allocate nothing.
    void reserve(uint32_t q_head_count);
};

struct SelectInput {
    const Group* group = nullptr;
    const LabelIndex* labels = nullptr;
    const PageIndex* pages = nullptr;
    std::span<const kernels::SpanMask> masks;  // of the query's view
    const float* q = nullptr;   // [q_head_count of the group, k_head_dim]
    size_t q_head_stride = 0;   // floats
    uint32_t rows = 0;          // 1 ..
    SelectHistory* history = nullptr;
};

struct SelectOutput {
    uint32_t* slots = nullptr;  // [rows]
    Stats* stats = nullptr;     // rescans, guess misses, bytes of summaries read, times
    Trace* trace = nullptr;     // or null: events of the same times
};

template <typename T>
concept SelectorPolicy = requires(T selector, const SelectInput& in, SelectOutput& out) {
    { selector.select(in, out) } -> std::same_as<uint32_t>;
};

// A selector of any kind, owned.
class Selector {
public:
    Selector() = default;
    template <SelectorPolicy T>
    explicit Selector(std::unique_ptr<T> policy)
        : self_(policy.release(), [](void* self) { delete static_cast<T*>(self); }),
          select_([](void* self, const SelectInput& in, SelectOutput& out) {
              return static_cast<T*>(self)->select(in, out);
          }) {}

    uint32_t select(const SelectInput& in, SelectOutput& out) {
        return select_(self_.get(), in, out);
    }

private:
    std::unique_ptr<void, void (*)(void*)> self_{nullptr, nullptr};
    uint32_t (*select_)(void*, const SelectInput&, SelectOutput&) = nullptr;
};

// What a kind of selector needs of every key.
constexpr bool uses_labels(SelectorKind kind) {
    return kind == SelectorKind::labels || kind == SelectorKind::hybrid;
}
constexpr bool uses_pages(SelectorKind kind) {
    return kind == SelectorKind::page_bounds || kind == SelectorKind::hybrid;
}

struct SelectorLimits {
    uint32_t slot_count_max = 0;
    uint32_t q_head_count_max = 0;
    uint32_t kv_head_count_max = 0;
    uint32_t page_slots = 0;  // 0: no page bounds
};

// Bytes of working memory that a selector of this kind needs, and the selector itself.
// `workspace`: 64 B aligned, that many bytes; it must outlive the selector.
uint64_t selector_workspace_bytes(SelectorKind kind, const SelectorLimits& limits);
Selector make_selector(const Config& config, const kernels::Backend& backend,
                       const Executor& executor, const SelectorLimits& limits,
                       std::byte* workspace);

}  // namespace shoal
