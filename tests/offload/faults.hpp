// What the tests of faults of a tier share: one case, a device, what is written to it and what is
// read back.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tests/offload/fake_queue.hpp"
#include "tests/offload/fault_row.hpp"

namespace shoal::offload {

inline constexpr uint64_t kUnits = 64;
inline constexpr uint64_t kMillisecond = 1'000'000;
inline constexpr std::byte kPoison{0xCB};

// One case: a device, a tier over it, 32 writes and then reads of what was written, of 1 to 5 units
// each, scattered.
class FaultCase {
public:
    explicit FaultCase(uint64_t seed) : random_(seed) {
        device.plan.seed = seed;
        content_.fill(seed);
        uint64_t unit = 0;
        while (unit < kUnits && extents_.size() < 32) {
            const auto units = static_cast<uint32_t>(1 + random_() % 5);
            if (unit + units > kUnits) break;
            extents_.push_back({unit, units});
            unit += units + (random_() % 3 == 0 ? 1 : 0);
        }
        checksums_.resize(extents_.size());
        writes_ = std::make_unique<Batch>(extents_.size());
        reads_ = std::make_unique<Batch>(extents_.size());
        for (size_t i = 0; i < extents_.size(); ++i) {
            prepare(*writes_, i, TransferKind::write, content_);
            prepare(*reads_, i, TransferKind::read, to_);
        }
        std::memset(to_.data(), static_cast<int>(kPoison), to_.bytes());
    }

    Status write(Tier& tier) {
        tier.start(writes_->all());
        return tier.wait(writes_->all());
    }
    Status read(Tier& tier) {
        tier.start(reads_->all());
        return tier.wait(reads_->all());
    }
    // Every read that is done is what was written; the count of those.
    uint64_t verified() {
        uint64_t done = 0;
        for (size_t i = 0; i < reads_->size(); ++i) {
            Transfer& read = (*reads_)[i];
            if (read.state != TransferState::done) continue;
            EXPECT_TRUE(same(read.data, (*writes_)[i].data, read.bytes)) << "extent " << i;
            ++done;
        }
        return done;
    }
    bool is_poison(size_t index) {
        const Transfer& read = (*reads_)[index];
        return std::all_of(read.data, read.data + read.bytes,
                           [](std::byte byte) { return byte == kPoison; });
    }
    // Of a row that must be exact: 0 failures.
    void expect_exact(Tier& tier, FaultRow& row) {
        const Status written = write(tier);
        EXPECT_TRUE(written) << written.message();
        const Status was_read = read(tier);
        EXPECT_TRUE(was_read) << was_read.message();
        EXPECT_EQ(verified(), reads().size());
        EXPECT_EQ(tier.counters().failures, 0U);
        ++row.cases;
        row.exact += writes().size() + reads().size();
    }
    Batch& reads() { return *reads_; }
    Batch& writes() { return *writes_; }
    std::mt19937_64& random() { return random_; }

    FakeDevice device{kUnits * kUnit};

private:
    struct Extent {
        uint64_t unit;
        uint32_t units;
    };
    void prepare(Batch& batch, size_t i, TransferKind kind, const AlignedMemory& memory) {
        batch.set(i, kind, extents_[i].unit, memory.unit(extents_[i].unit), extents_[i].units);
        batch[i].identity = 77 + i;
        batch[i].checksum = &checksums_[i];
    }

    std::mt19937_64 random_;
    AlignedMemory content_{kUnits * kUnit};
    AlignedMemory to_{kUnits * kUnit};
    std::vector<Extent> extents_;
    std::vector<uint64_t> checksums_;
    std::unique_ptr<Batch> writes_;
    std::unique_ptr<Batch> reads_;
};

inline uint32_t any_depth(uint64_t seed) { return static_cast<uint32_t>(1 + seed % 9); }

}  // namespace shoal::offload
