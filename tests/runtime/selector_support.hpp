// A store with random rows and a random history, and selectors of any kind over it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "offload/arena.hpp"
#include "runtime/label_source.hpp"
#include "runtime/query_view.hpp"
#include "runtime/selector.hpp"
#include "runtime/session_state.hpp"
#include "runtime/store.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal::testing {

struct StoreShape {
    SharingKind sharing = SharingKind::layer;
    uint32_t kv_heads = 3;
    uint32_t q_per_kv = 3;
    uint32_t head_dim = 64;
    DType dtype = DType::f16;
    uint32_t slots = 1000;  // that the store has room for

    std::string text() const {
        return std::string(sharing == SharingKind::layer ? "layer" : "head") + ", " +
               std::to_string(kv_heads) + " KV heads x " + std::to_string(q_per_kv) + ", " +
               std::to_string(head_dim) + " channels, " + dtype_name(dtype) + ", " +
               std::to_string(slots) + " slots";
    }
};

// What one query asks of a selector.
struct Query {
    std::vector<float> q;  // [q_heads, head_dim]
    std::vector<SlotRange> ranges;
    uint32_t rows = 1;
};

struct Selected {
    std::vector<uint32_t> slots;
    SelectHistory history;  // as the selection left it
};

class SelectorStore {
public:
    SelectorStore(const Config& config, const StoreShape& shape, uint64_t seed)
        : config_(config), shape_(shape), rows_(seed), random_(seed), written_(shape.slots) {
        config_.sharing.kind = shape.sharing;
        model_ = small_model(1, shape.kv_heads, shape.q_per_kv, shape.head_dim, shape.dtype);
        groups_ = Groups(model_, config_);
        SessionOptions options;
        options.slots_per_store = shape.slots;
        limits_ = limits_of(config_, options, groups_, 1);
        StoreOptions store_options;
        store_options.summaries = limits_.summaries;
        Result<std::unique_ptr<Store>> store =
            Store::create(arena_, groups_, shape.slots, store_options);
        EXPECT_TRUE(store) << store.status().message();
        store_ = std::move(*store);
        spoil_memory();
        store_->start_pages(kernels::cpu_backend(), limits_.summaries.page_slots);
        if (limits_.summaries.labels) make_formats();
        workspace_bytes_ =
            selector_workspace_bytes(config_.selector.kind, selector_limits(limits_));
        workspace_ = region(workspace_bytes_ + kCanaryBytes);
        std::memset(workspace_.data() + workspace_bytes_, kCanaryByte, kCanaryBytes);
        view_memory_ = region(QueryView::bytes(shape.slots));
        view_.use(view_memory_.data(), shape.slots);
    }

    const Groups& groups() const { return groups_; }
    uint32_t slot_end() const { return store_->order().slot_end(); }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }

    // Writes random rows; every 16th time rows without any difference.
    void write(std::vector<int64_t> slots) {
        const auto n = static_cast<uint32_t>(slots.size());
        std::vector<float> k = rows_.make(n, shape_.kv_heads, shape_.head_dim);
        if (below(16) == 0) std::fill(k.begin(), k.end(), 0.25F);
        write_rows(slots, k);
        for (const int64_t slot : slots) written_[static_cast<size_t>(slot)] = true;
    }
    void write(uint32_t begin, uint32_t end) { write(slots_from(begin, end)); }

    // A write that the store refuses: its slots count as never written, what they hold is NaN.
    void write_refused(uint32_t begin, uint32_t end) {
        const size_t size = size_t{end - begin} * shape_.kv_heads * shape_.head_dim;
        write_rows(slots_from(begin, end),
                   std::vector<float>(size, std::numeric_limits<float>::quiet_NaN()));
        for (uint32_t slot = begin; slot < end; ++slot) written_[slot] = false;
    }

    void truncate(uint32_t slot_count) {
        EXPECT_TRUE(store_->truncate(slot_count));
        std::fill(written_.begin() + slot_count, written_.end(), false);
    }

    // A query that sees what was written, but for about one slot in `hide` (0: sees all of it).
    Query query(uint32_t rows, uint32_t hide = 0, float loudness = 1.0F) {
        Query query;
        query.rows = rows;
        query.q = rows_.make(1, model_.q_head_count, shape_.head_dim);
        for (float& x : query.q) x *= loudness;
        for (uint32_t slot = 0; slot < slot_end(); ++slot) {
            if (!written_[slot] || (hide != 0 && below(hide) == 0)) continue;
            if (!query.ranges.empty() && query.ranges.back().end == slot) query.ranges.back().end++;
            else query.ranges.push_back({slot, slot + 1});
        }
        return query;
    }

    Selector make(const Executor& executor) {
        return make_selector(config_, kernels::cpu_backend(), executor, selector_limits(limits_),
                             workspace_.data());
    }

    // Slots that a selector may pick for this query, ascending.
    std::vector<uint32_t> selectable(const Query& query) {
        prepare(query);
        std::vector<uint32_t> slots;
        for (const SlotRange& range : query.ranges) {
            for (uint32_t slot = range.begin; slot < range.end; ++slot) {
                if (!std::binary_search(view_.safety().begin(), view_.safety().end(), slot)) {
                    slots.push_back(slot);
                }
            }
        }
        return slots;
    }

    Selected select(Selector& selector, uint32_t group_index, const Query& query,
                    const SelectHistory& history = {}) {
        constexpr uint32_t kCanary = 0xdeadbeef;
        constexpr size_t kCanaries = 64;
        prepare(query);
        Selected result;
        result.history = history;
        result.slots.assign(query.rows + kCanaries, kCanary);
        const Group& group = groups_.all()[group_index];
        SelectInput in;
        in.group = &group;
        in.labels = &store_->group(group_index).labels;
        in.pages = &store_->group(group_index).pages;
        in.masks = view_.masks();
        in.q = query.q.data() + size_t{group.q_head_first()} * shape_.head_dim;
        in.q_head_stride = shape_.head_dim;
        in.rows = query.rows;
        in.history = &result.history;
        Stats stats;
        SelectOutput out;
        out.slots = result.slots.data();
        out.stats = &stats;
        const uint32_t count = selector.select(in, out);
        EXPECT_LE(count, query.rows);
        for (size_t i = query.rows; i < result.slots.size(); ++i) {
            EXPECT_EQ(result.slots[i], kCanary) << "written past rows = " << query.rows;
        }
        const std::byte* end = workspace_.data() + workspace_bytes_;
        EXPECT_TRUE(std::all_of(end, end + kCanaryBytes, [](std::byte b) {
            return b == std::byte{kCanaryByte};
        })) << "written past the workspace";
        result.slots.resize(std::min(count, query.rows));
        return result;
    }

private:
    static constexpr size_t kCanaryBytes = 2048;
    static constexpr uint8_t kCanaryByte = 0xa5;

    offload::Region region(uint64_t bytes) {
        Result<offload::Region> made = arena_.region(offload::MemoryTag::workspace, bytes);
        EXPECT_TRUE(made);
        return std::move(*made);
    }

    static std::vector<int64_t> slots_from(uint32_t begin, uint32_t end) {
        std::vector<int64_t> slots;
        for (uint32_t slot = begin; slot < end; ++slot) slots.push_back(slot);
        return slots;
    }

    // What was never written holds NaN, in rows, in labels and in page bounds.
    void spoil_memory() {
        EXPECT_TRUE(store_->ensure(shape_.slots, {}));
        for (uint32_t g = 0; g < groups_.count(); ++g) {
            GroupStore& group = store_->group(g);
            const kernels::KvView kv = group.rows.view();
            for (uint32_t slot = 0; slot < shape_.slots; ++slot) {
                std::memset(kv.piece(slot), 0xff, kv.format.piece_stride_bytes);
            }
            for (offload::Region* region :
                 {&group.label_region, &group.open_region, &group.page_region}) {
                if (region->bytes() == 0) continue;
                EXPECT_TRUE(region->touch_all());
                std::memset(region->data(), 0xff, region->bytes());
            }
        }
    }

    void make_formats() {
        LabelSource source(config_, model_, "");
        EXPECT_TRUE(source.load());
        const uint32_t n = config_.profile.tokens;
        const std::vector<float> k = rows_.make(n, shape_.kv_heads, shape_.head_dim);
        const std::vector<float> q = rows_.make(n, model_.q_head_count, shape_.head_dim);
        source.observe_keys(0, tensor_of(k, n, shape_.kv_heads, shape_.head_dim));
        source.observe_queries(0, tensor_of(q, n, model_.q_head_count, shape_.head_dim));
        EXPECT_TRUE(source.ready());
        for (const Group& group : groups_.all()) formats_.push_back(source.make_formats(group));
        for (uint32_t g = 0; g < groups_.count(); ++g) {
            EXPECT_TRUE(store_->start_labels(g, kernels::cpu_backend(), formats_[g], {}));
        }
    }

    void write_rows(const std::vector<int64_t>& slots, const std::vector<float>& k) {
        uint32_t end = slot_end();
        for (const int64_t slot : slots) end = std::max(end, static_cast<uint32_t>(slot) + 1);
        EXPECT_TRUE(store_->ensure(end, {}));
        for (const int64_t slot : slots) store_->order().write(static_cast<uint32_t>(slot));
        const bool finite = std::isfinite(k[0]);
        const ConstTensor rows = tensor_of(k, static_cast<uint32_t>(slots.size()),
                                           shape_.kv_heads, shape_.head_dim);
        for (uint32_t g = 0; g < groups_.count(); ++g) {
            for (const kernels::RowPart part : {kernels::RowPart::v, kernels::RowPart::k}) {
                EXPECT_EQ(finite, store_->write(g, groups_.all()[g], part, slots, rows,
                                                kernels::cpu_backend(), {}).is_ok());
            }
        }
    }

    void prepare(const Query& query) {
        view_.prepare(query.ranges, store_->order(), config_.safety);
    }

    Config config_;
    StoreShape shape_;
    RandomRows rows_;
    std::mt19937_64 random_;
    std::vector<bool> written_;
    offload::Budget budget_{"host.kv_bytes", uint64_t{1} << 30};
    offload::Arena arena_ = offload::Arena::real(budget_, offload::HugePages::off);
    ModelShape model_;
    Groups groups_;
    Limits limits_;
    std::vector<std::vector<kernels::LabelFormat>> formats_;
    std::unique_ptr<Store> store_;
    offload::Region workspace_;
    uint64_t workspace_bytes_ = 0;
    offload::Region view_memory_;
    QueryView view_;
};

}  // namespace shoal::testing
