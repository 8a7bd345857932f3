// What the tests of reading ahead share: an engine whose calls a test makes one by one, and a disk
// whose time a test moves.
#pragma once

#include <deque>
#include <functional>

#include "offload/tier.hpp"
#include "runtime/session_maker.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal::testing {

// A disk in memory that reads one block after the other. Its time is a number, moved by whoever
// waits for it and by pass(). Outlives the session on it.
class PacedDisk {
public:
    explicit PacedDisk(uint64_t read_ns) : read_ns_(read_ns) {}

    DiskMaker maker() {
        return [this](const SessionState&, uint64_t bytes) {
            auto tier = std::make_unique<PacedTier>(*this, bytes);
            tier_ = tier.get();
            return Result<std::unique_ptr<offload::Tier>>(std::move(tier));
        };
    }
    // Somebody computes meanwhile.
    void pass(uint64_t ns) {
        now_ns_ += ns;
        tier_->finish_due();
    }
    uint64_t now_ns() const { return now_ns_; }

private:
    class PacedTier final : public offload::Tier {
    public:
        PacedTier(PacedDisk& disk, uint64_t bytes)
            : Tier(bytes, 4096,
                   {offload::TierOptions::kNoDeadline, [&disk] { return disk.now_ns_; }}),
              disk_(disk),
              memory_(bytes) {}
        ~PacedTier() override {
            while (!reads_.empty()) do_poll(UINT64_MAX);
        }
        void finish_due() {
            while (!reads_.empty() && reads_.front().due_ns <= disk_.now_ns_) {
                offload::Transfer& read = *reads_.front().transfer;
                reads_.pop_front();
                std::memcpy(read.data, memory_.data() + read.offset, read.bytes);
                finish(read, 0);
            }
        }

    private:
        struct Read {
            offload::Transfer* transfer;
            uint64_t due_ns;
        };
        void do_start(std::span<offload::Transfer* const> transfers) override {
            for (offload::Transfer* transfer : transfers) {
                if (transfer->kind == offload::TransferKind::read) {
                    last_due_ns_ = std::max(last_due_ns_, disk_.now_ns_) + disk_.read_ns_;
                    reads_.push_back({transfer, last_due_ns_});
                    continue;
                }
                std::memcpy(memory_.data() + transfer->offset, transfer->data, transfer->bytes);
                finish(*transfer, 0);
            }
        }
        bool do_poll(uint64_t deadline_ns) override {
            if (reads_.empty()) return false;
            disk_.now_ns_ =
                std::max(disk_.now_ns_, std::min(reads_.front().due_ns, deadline_ns));
            finish_due();
            return true;
        }

        PacedDisk& disk_;
        std::vector<std::byte> memory_;
        std::deque<Read> reads_;
        uint64_t last_due_ns_ = 0;
    };

    const uint64_t read_ns_;
    uint64_t now_ns_ = 1;
    PacedTier* tier_ = nullptr;
};

// Steps of one token, in pieces; rows and queries are random, answers are not looked at.
class PiecewiseEngine {
public:
    PiecewiseEngine(std::unique_ptr<Session> session, const ModelShape& shape)
        : shape_(shape), rows_(1), session_(std::move(session)), queries_(shape.layers.size()) {}

    Session& session() { return *session_; }
    StoreId open() {
        const StoreId id = *session_->open();
        slot_ends_.resize(std::max<size_t>(slot_ends_.size(), id.index + 1));
        slot_ends_[id.index] = 0;
        return id;
    }
    uint32_t slot_end(StoreId store) const { return slot_ends_[store.index]; }

    // `n` tokens more, without attention.
    void put(StoreId store, uint32_t n) {
        std::vector<int64_t> slots(n);
        for (int64_t& slot : slots) slot = slot_ends_[store.index]++;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            const std::vector<float> rows = random_rows(l, n);
            const ConstTensor tensor = rows_tensor(l, rows, n);
            ASSERT_TRUE(session_->put({l}, store, slots, tensor, tensor));
        }
    }
    void truncate(StoreId store, uint32_t slot_count) {
        ASSERT_TRUE(session_->truncate(store, slot_count));
        slot_ends_[store.index] = slot_count;
    }
    // Tells it what a store holds that was changed without it.
    void set_slot_end(StoreId store, uint32_t slot_end) { slot_ends_[store.index] = slot_end; }

    // A token of which not every layer was served is written again by the next step.
    void begin(StoreId store) {
        const uint32_t offsets[2] = {0, 1};
        const int64_t slots[1] = {slot_ends_[store.index]};
        StepInput input;
        input.stores = {&store, 1};
        input.token_offsets = offsets;
        input.slots = slots;
        ASSERT_TRUE(session_->begin_step(input));
        store_ = store;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            queries_[l] = rows_.make(1, shape_.q_head_count, shape_.layers[l].k_head_dim);
        }
    }
    void append(uint32_t layer) {
        const std::vector<float> rows = random_rows(layer, 1);
        const ConstTensor tensor = rows_tensor(layer, rows, 1);
        ASSERT_TRUE(session_->append({layer}, tensor, tensor));
    }
    // Of slots [0, visible_end).
    Status attend(uint32_t layer, uint32_t visible_end) {
        const uint32_t dim = shape_.layers[layer].v_head_dim;
        const uint32_t heads = shape_.q_head_count;
        out_.resize(size_t{heads} * dim);
        const uint32_t offsets[2] = {0, 1};
        const SlotRange ranges[1] = {{0, visible_end}};
        return session_->attend(
            {layer}, tensor_of(queries_[layer], 1, heads, shape_.layers[layer].k_head_dim),
            {offsets, offsets, ranges, ++version_},
            {out_.data(), 1, heads, dim, size_t{heads} * dim * 4, size_t{dim} * 4});
    }
    void serve(uint32_t layer) {
        append(layer);
        const Status attended = attend(layer, slot_end(store_) + 1);
        ASSERT_TRUE(attended) << attended.message();
        if (layer + 1 == shape_.layers.size()) ++slot_ends_[store_.index];
    }
    // The layer's query, plus `error` in every number.
    void hint(uint32_t layer, float error) {
        std::vector<float> q = queries_[layer];
        for (float& x : q) x += error;
        const Status hinted = session_->hint_query(
            {layer}, tensor_of(q, 1, shape_.q_head_count, shape_.layers[layer].k_head_dim));
        ASSERT_TRUE(hinted) << hinted.message();
    }
    void end() { ASSERT_TRUE(session_->end_step()); }
    void step(StoreId store) {
        begin(store);
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) serve(l);
        end();
    }

private:
    std::vector<float> random_rows(uint32_t layer, uint32_t n) {
        return rows_.make(n, shape_.layers[layer].kv_head_count, shape_.layers[layer].k_head_dim);
    }
    ConstTensor rows_tensor(uint32_t layer, const std::vector<float>& rows, uint32_t n) const {
        return tensor_of(rows, n, shape_.layers[layer].kv_head_count,
                         shape_.layers[layer].k_head_dim);
    }

    ModelShape shape_;
    RandomRows rows_;
    std::unique_ptr<Session> session_;
    std::vector<std::vector<float>> queries_;  // [layer] of the open step
    std::vector<uint32_t> slot_ends_;          // [store]
    std::vector<float> out_;
    StoreId store_;
    uint64_t version_ = 0;
};

// Rows that are read when attention needs them, selected by page bounds: nothing is to be learnt.
inline Config paged_disk_config(PrefetchKind kind) {
    Config config = test_config(64);
    config.disk.dir = ::testing::TempDir();
    config.selector.kind = SelectorKind::page_bounds;
    config.prefetch.kind = kind;
    return config;
}

}  // namespace shoal::testing
