// Random growth, sharing, release and reuse of stores that share an Arena, against plain vectors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "offload/block_store.hpp"
#include "offload/executor.hpp"

namespace shoal::offload {
namespace {

// A store, and what each of its addressable slots must hold: one byte value all over its piece.
struct Checked {
    BlockStore store;
    std::vector<uint8_t> bytes;  // [slot_count()]
};

class StoresRig {
public:
    StoresRig(uint64_t seed, const Executor* executor) : random_(seed), executor_(executor) {}

    void use(uint32_t rounds) {
        for (uint32_t i = 0; i < rounds && !::testing::Test::HasFailure(); ++i) {
            SCOPED_TRACE("round " + std::to_string(i));
            const uint32_t which = below(14);
            if (stores_.empty() || (which == 0 && stores_.size() < 6)) create();
            else if (which < 6) grow();
            else if (which < 8) write();
            else if (which < 10) release(below(2) == 0 ? 8 : UINT32_MAX);
            else if (which == 10) release_everything();
            else if (which > 11) share();
            else destroy();
            check_bytes_taken();
        }
        for (Checked& checked : stores_) check(checked);
        stores_.clear();
        EXPECT_EQ(arena_.committed_bytes(), 0U);
        EXPECT_EQ(budget_.used_bytes(), 0U);
    }

    uint64_t shared() const { return shared_; }

private:
    uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
    Checked& any() { return stores_[below(static_cast<uint32_t>(stores_.size()))]; }

    // What a table may put into RAM ahead of need.
    static constexpr uint64_t kTableGrowth = 64 << 10;

    void create() {
        static constexpr uint32_t kDims[] = {32, 64, 80, 128};
        kernels::PieceFormat format;
        format.k_dtype = format.v_dtype = static_cast<DType>(below(3));
        format.kv_head_count = 1 + below(5);
        format.k_head_dim = kDims[below(4)];
        format.v_head_dim = kDims[below(4)];
        uint32_t slots = 1 + below(3000);
        if (!stores_.empty() && below(2) == 0) {  // one that rows can be shared with
            format = stores_.back().store.layout().format;
            slots = stores_.back().store.slot_count_max();
        }
        Result<BlockStore> made = BlockStore::create(arena_, make_block_layout(format), slots);
        ASSERT_TRUE(made) << made.status().message();
        stores_.push_back({std::move(*made), {}});
    }

    void grow() {
        Checked& checked = any();
        const uint32_t max = checked.store.slot_count_max();
        const auto now = static_cast<uint32_t>(checked.bytes.size());
        const uint32_t more = below(2) == 0 ? 1 + below(3) : below(max);
        ASSERT_TRUE(checked.store.ensure(std::min(max, now + more), executor_));
        ASSERT_GE(checked.store.slot_count(), std::min(max, now + more));
        checked.bytes.resize(checked.store.slot_count(), 0);  // rows of new blocks are zero
        check(checked);
        write();
    }

    void write() {
        Checked& checked = any();
        if (checked.bytes.empty()) return;
        const uint32_t begin = below(static_cast<uint32_t>(checked.bytes.size()));
        const auto end =
            std::min(begin + 1 + below(200), static_cast<uint32_t>(checked.bytes.size()));
        std::vector<int64_t> slots(end - begin);
        std::iota(slots.begin(), slots.end(), int64_t{begin});
        if (below(3) == 0) std::shuffle(slots.begin(), slots.end(), random_);
        ASSERT_TRUE(checked.store.own(slots));
        const kernels::KvView view = checked.store.view();
        for (uint32_t slot = begin; slot < end; ++slot) {
            checked.bytes[slot] = static_cast<uint8_t>(1 + below(255));
            std::memset(view.piece(slot), checked.bytes[slot], view.format.piece_stride_bytes);
        }
        for (Checked& each : stores_) check(each);
    }

    void share() {
        Checked& from = any();
        for (Checked& to : stores_) {
            const BlockLayout& layout = to.store.layout();
            const kernels::PieceFormat& format = from.store.layout().format;
            if (&to == &from || to.store.slot_count_max() != from.store.slot_count_max() ||
                layout.format.v_offset_bytes != format.v_offset_bytes ||
                layout.format.row_stride_bytes != format.row_stride_bytes ||
                layout.format.piece_stride_bytes != format.piece_stride_bytes) {
                continue;
            }
            const uint64_t before = arena_.committed_bytes();
            ASSERT_TRUE(to.store.share_from(from.store));
            EXPECT_LE(arena_.committed_bytes(), before + kTableGrowth) << "rows were copied";
            to.bytes = from.bytes;
            ++shared_;
            return write();
        }
    }

    void release(uint32_t slots_max) {
        Checked& checked = any();
        const auto now = static_cast<uint32_t>(checked.bytes.size());
        const uint32_t keep = now - below(std::min(slots_max, now) + 1);
        checked.store.release_from(keep);
        ASSERT_GE(checked.store.slot_count(), keep);
        ASSERT_LE(checked.store.slot_count(), now);
        checked.bytes.resize(checked.store.slot_count());
        for (Checked& each : stores_) check(each);
    }

    void release_everything() {
        Checked& checked = any();
        checked.store.release_from(0);
        ASSERT_EQ(checked.store.slot_count(), 0U);
        checked.bytes.clear();
        for (Checked& each : stores_) check(each);
    }

    void destroy() {
        one_is_gone_ = true;
        std::swap(any(), stores_.back());
        stores_.pop_back();
        for (Checked& each : stores_) check(each);
    }

    // The first and the last byte of every piece: blocks that overlapped would show.
    void check(Checked& checked) {
        const kernels::KvView view = checked.store.view();
        for (uint32_t slot = 0; slot < checked.bytes.size(); ++slot) {
            const std::byte* piece = view.piece(slot);
            const std::byte want{checked.bytes[slot]};
            ASSERT_EQ(piece[0], want) << "slot " << slot;
            ASSERT_EQ(piece[view.format.piece_stride_bytes - 1], want) << "slot " << slot;
        }
    }

    void check_bytes_taken() {
        uint64_t reserved = 0;
        for (const Checked& checked : stores_) reserved += checked.store.reserved_bytes();
        ASSERT_EQ(arena_.reserved_bytes(), reserved);
        ASSERT_EQ(budget_.used_bytes(), reserved);
        if (stores_.empty()) one_is_gone_ = false;
        // Runs of a store that is gone stay for others to use while any of them lies behind.
        if (!one_is_gone_) {
            ASSERT_LE(arena_.committed_bytes(), reserved);
        }
    }

    std::mt19937_64 random_;
    const Executor* executor_;
    Budget budget_{"host.kv_bytes", uint64_t{1} << 30};
    Arena arena_ = Arena::real(budget_, HugePages::advise);
    std::vector<Checked> stores_;
    bool one_is_gone_ = false;
    uint64_t shared_ = 0;
};

TEST(BlockStoreProperty, AnyUseKeepsEveryRow) {
    Result<std::unique_ptr<OwnExecutor>> own = OwnExecutor::create({.threads = 2, .pin = false});
    ASSERT_TRUE(own);
    const Executor executor = (*own)->executor();
    uint64_t shared = 0;
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        StoresRig rig(seed, seed % 2 == 0 ? &executor : nullptr);
        rig.use(60);
        if (HasFailure()) return;
        shared += rig.shared();
    }
    EXPECT_GT(shared, 40U);
}

// The same requests to a counting Arena and to a real one take the same bytes.
TEST(ArenaProperty, CountingAndRealAgreeOnAnyRequests) {
    for (uint64_t seed = 1; seed <= 100; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        std::mt19937_64 random(seed);
        Arena counter = Arena::counting();
        Budget budget("host.kv_bytes", uint64_t{4} << 30);
        Arena real = Arena::real(budget, HugePages::advise);
        std::vector<Region> regions;
        for (int i = 0; i < 20; ++i) {
            const auto tag = static_cast<MemoryTag>(random() % kMemoryTagCount);
            const uint64_t bytes = random() % (uint64_t{1} << (random() % 27));
            ASSERT_TRUE(counter.region(tag, bytes));
            Result<Region> region = real.region(tag, bytes);
            ASSERT_TRUE(region) << region.status().message();
            ASSERT_GE(region->bytes(), bytes);
            regions.push_back(std::move(*region));
            ASSERT_EQ(counter.reserved_bytes(tag), real.reserved_bytes(tag));
            ASSERT_EQ(budget.used_bytes(tag), real.reserved_bytes(tag));
        }
        ASSERT_EQ(counter.reserved_bytes(), real.reserved_bytes());
        // Growth and release of any region keep the sum of what is in RAM.
        for (int i = 0; i < 40; ++i) {
            Region& region = regions[random() % regions.size()];
            if (region.bytes() == 0) continue;
            const uint64_t bytes = random() % (std::min(region.bytes(), uint64_t{1} << 20) + 1);
            if (random() % 2 == 0) {
                ASSERT_TRUE(region.touch_until(bytes));
                ASSERT_GE(region.committed_bytes(), bytes);
            } else {
                region.release_from(bytes);
            }
            uint64_t committed = 0;
            for (const Region& each : regions) committed += each.committed_bytes();
            ASSERT_EQ(real.committed_bytes(), committed);
        }
    }
}

}  // namespace
}  // namespace shoal::offload
