// One store: the rows and labels of every group, and the order its slots were written in.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "offload/block_store.hpp"
#include "runtime/groups.hpp"
#include "runtime/label_index.hpp"
#include "runtime/page_index.hpp"
#include "runtime/row_check.hpp"
#include "runtime/selector.hpp"
#include "runtime/slot_order.hpp"

namespace shoal {

// What a store keeps for one group.
struct GroupStore {
    offload::BlockStore rows;
    std::span<SpanWritten> written;    // [span_count_max]
    LabelIndex labels;
    offload::Region label_region;      // spans
    offload::Region open_region;       // open span, then channel_scale_max
    PageIndex pages;
    offload::Region page_region;
    std::vector<SelectHistory> histories;  // by query of the store in a step
    RowCheck check;

    // Whether there is memory for them: decided when the session is made.
    bool keeps_labels() const { return label_region.bytes() != 0; }
    bool keeps_pages() const { return page_region.bytes() != 0; }

    bool has_row(uint32_t slot, bool k) const {
        const SpanWritten& span = written[slot / kernels::kSpanSlots];
        const uint64_t* bits = k ? span.k : span.v;
        return ((bits[slot % kernels::kSpanSlots / 64] >> (slot % 64)) & 1U) != 0;
    }
};

// What a store keeps of every key to select by. Labels: what they may take before their channels
// are known.
struct SummaryLimits {
    bool labels = false;
    uint32_t row_bits = 0;      // codes of one token and KV head; 0 = one per key dimension
    uint32_t channel_bits = 0;  // 2, 4, 8, 16; 0 = a mixture of 2 and 4
    uint32_t page_slots = 0;    // slots of a page of page bounds; 0 = no page bounds
};

struct StoreOptions {
    SummaryLimits summaries;
    uint32_t queries_max = 1;  // of a step that select
    bool check_rows = false;   // host.check_rows
    offload::BlockCache* cache = nullptr;  // of blocks that lie on disk; null: all rows in RAM
    uint64_t identity = 0;     // with a cache: of this store in this process
    std::string name;          // with a cache, for messages: "store 0"
};

// Spans whose rows are in RAM together, with a disk, when many are gone through.
inline constexpr uint32_t kSpansAtOnce = 8;

// Where the blocks of a group lie in a store's part of the file, in bytes: block b at offset +
// b * stride.
struct FilePlace {
    uint64_t offset = 0;
    uint64_t stride = 0;
};
struct FilePlaces {
    std::vector<FilePlace> of_group;  // [group]
    uint64_t bytes = 0;
};
// Blocks of groups that attend one selection lie in turns, token by token, so that one read gets a
// token's rows of all of them.
FilePlaces file_places(const Groups& groups, uint32_t slot_count_max);

class Store {
public:
    // Takes what a store of `slot_count_max` slots needs from `arena`; with a counting arena only
    // the bytes are added up and the result must not be used.
    static Result<std::unique_ptr<Store>> create(offload::Arena& arena, const Groups& groups,
                                                 uint32_t slot_count_max,
                                                 const StoreOptions& options);

    // Puts the slots [0, slot_end) of every group into RAM: once per step, before any write.
    Status ensure(uint32_t slot_end, const Executor& executor);
    // The same of one group alone.
    Status ensure_group(uint32_t group_index, uint32_t slot_end, const Executor& executor) {
        return groups_[group_index]->rows.ensure(slot_end, &executor);
    }
    // Puts memory for `bytes` of rows to come into RAM, if they stay there.
    Status prepare(uint64_t bytes, const Executor& executor) {
        return groups_.front()->rows.prepare(bytes, &executor);
    }
    // How many of `slots`, from the first on, one write() may take.
    static size_t write_slots(std::span<const int64_t> slots);
    // Makes sure that writing these slots, all ensured, changes no other store: after ensure().
    Status own(std::span<const int64_t> slots);
    // Writes K or V of some slots. The rows must be finite. Encodes labels when keys came. At
    // most write_slots() of them at a time.
    Status write(uint32_t group_index, const Group& group, kernels::RowPart part,
                 std::span<const int64_t> slots, const ConstTensor& rows,
                 const kernels::Backend& backend, const Executor& executor);
    // Becomes what `from` is, a store with as many slots: rows are shared until one of the two
    // writes them; labels, order and history are copied. On failure this store is empty.
    Status fork_from(Store& from, const Executor& executor);
    // Makes K or V of a group what it is in `from`, a store with as many slots. Memory for them is
    // ensured already. Labels follow the keys.
    Status copy_part(uint32_t group_index, kernels::RowPart part, const Store& from,
                     const Executor& executor);
    // Whether rows lie on disk.
    bool spills() const { return groups_.front()->rows.spills(); }
    // Starts the page bounds of every group that keeps some; before any key is written.
    void start_pages(const kernels::Backend& backend, uint32_t page_slots);
    // Starts labels of a group and encodes every span that already has keys.
    Status start_labels(uint32_t group_index, const kernels::Backend& backend,
                        std::span<const kernels::LabelFormat> formats, const Executor& executor);
    // On failure (rows that are needed cannot be read from disk) nothing was forgotten.
    Status truncate(uint32_t slot_count);
    void clear();

    SlotOrder& order() { return order_; }
    const SlotOrder& order() const { return order_; }
    GroupStore& group(uint32_t index) { return *groups_[index]; }
    const GroupStore& group(uint32_t index) const { return *groups_[index]; }
    // Whether the slots with a stamp, and no others, hold K and V in this group; else a sentence.
    std::string incomplete_reason(uint32_t group_index, const Group& group) const;
    // A visible slot that lacks K or V in this group, or slot_end when there is none.
    uint32_t first_missing(uint32_t group_index, std::span<const kernels::SpanMask> masks) const;

    // Of an empty store. Who holds its number holds that of another store from now on, and what
    // is written to disk in its place is not taken for what it wrote.
    void close();

    bool is_open = false;
    uint32_t generation = 0;

private:
    Store(offload::Region index, uint32_t slot_count_max, uint64_t identity);
    uint64_t identity_of(uint32_t group_index) const;
    // Puts the labels and page bounds of slots [0, slot_end) into RAM, of those that are started.
    static Status touch_summaries(GroupStore& group, uint32_t slot_end);
    // Labels and page bounds as in `from`, whose keys are here already. Memory for them is in RAM.
    static Status copy_summaries(GroupStore& to, const GroupStore& from, uint32_t slot_end,
                                 const Executor& executor);
    static Status label_all(GroupStore& group, uint32_t slot_end, const Executor& executor);
    static Status copy_rows(GroupStore& to, const GroupStore& from, kernels::RowPart part,
                            SlotRange spans, const Executor& executor);
    static Status hold_to_write(GroupStore& group, kernels::RowPart part,
                                std::span<const int64_t> slots);
    void forget_from(GroupStore& group, uint32_t slot_count);
    Status keys_changed(GroupStore& group, std::span<const int64_t> slots,
                        const Executor& executor);

    // Stamps, span bounds, then `written` of every group, then their checks if rows are checked.
    offload::Region index_;
    SlotOrder order_;
    const uint64_t identity_;
    std::vector<std::unique_ptr<GroupStore>> groups_;
};

}  // namespace shoal
