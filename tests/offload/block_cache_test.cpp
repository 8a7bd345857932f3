#include "offload/block_cache.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "offload/faulty_tier.hpp"
#include "offload/memory_tier.hpp"
#include "offload/tier_wrappers.hpp"
#include "tests/offload/fake_queue.hpp"

namespace shoal::offload {
namespace {

constexpr uint32_t kBlock = 4096;

// A cache over memory, with owners whose tables the test holds.
class BlockCacheTest : public ::testing::Test {
protected:
    struct Owner {
        BlockOwner owner;
        std::vector<std::byte*> table;
        std::vector<BlockEntry> entries;
    };

    void make(uint32_t frames, uint32_t blocks_each, uint32_t owner_count, uint32_t dirty_high,
              uint32_t dirty_low, std::unique_ptr<Tier> disk = nullptr) {
        const uint64_t disk_bytes = uint64_t{blocks_each} * owner_count * kBlock;
        void* memory = std::aligned_alloc(kBlock, disk_bytes);
        disk_memory_.reset(static_cast<std::byte*>(memory));
        std::memset(memory, 0xee, disk_bytes);
        disk_ = std::make_unique<MemoryTier>(std::span(disk_memory_.get(), disk_bytes), kBlock);
        if (delay_ns_ != 0) disk_ = std::make_unique<DelayedTier>(std::move(disk_), delay_ns_);
        if (disk != nullptr) disk_ = std::move(disk);
        BlockCache::Options options;
        options.frame_count = frames;
        options.frame_bytes = kBlock;
        options.dirty_high = dirty_high;
        options.dirty_low = dirty_low;
        options.warn = [this](const std::string& text) { warnings_.push_back(text); };
        auto cache = BlockCache::create(arena_, disk_.get(), options);
        ASSERT_TRUE(cache.is_ok());
        cache_ = std::move(*cache);
        for (uint32_t i = 0; i < owner_count; ++i) {
            auto made = std::make_unique<Owner>();
            made->table.resize(blocks_each);
            made->entries.resize(blocks_each);
            made->owner.table = made->table.data();
            made->owner.entries = made->entries.data();
            made->owner.file_offset = cache_->take_file_space(uint64_t{blocks_each} * kBlock);
            made->owner.identity = 1000 * (i + 1);
            made->owner.block_bytes = kBlock;
            made->owner.name = "owner " + std::to_string(i);
            owners_.push_back(std::move(made));
        }
    }
    void write(uint32_t o, uint32_t block, uint8_t value) {
        cache_->begin_wave();
        cache_->want(owners_[o]->owner, block);
        ASSERT_TRUE(cache_->acquire().is_ok());
        ASSERT_TRUE(cache_->make_dirty(owners_[o]->owner, block).is_ok());
        std::memset(owners_[o]->table[block], value, kBlock);
    }
    // The byte that a block is full of, or -1.
    int read(uint32_t o, uint32_t block) {
        cache_->begin_wave();
        cache_->want(owners_[o]->owner, block);
        const Status status = cache_->acquire();
        EXPECT_TRUE(status.is_ok()) << status.message();
        const std::byte* data = owners_[o]->table[block];
        for (uint32_t i = 1; i < kBlock; ++i) {
            if (data[i] != data[0]) return -1;
        }
        return static_cast<int>(data[0]);
    }

    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    Budget budget_{"host.kv_bytes", uint64_t{1} << 30};
    Arena arena_ = Arena::real(budget_, HugePages::off);
    std::unique_ptr<std::byte, Free> disk_memory_;
    uint64_t delay_ns_ = 0;  // of the disk, for make()
    std::unique_ptr<Tier> disk_;
    std::unique_ptr<BlockCache> cache_;
    std::vector<std::unique_ptr<Owner>> owners_;
    std::vector<std::string> warnings_;
};

TEST_F(BlockCacheTest, BlocksThatWereNeverWrittenReadAsZero) {
    make(4, 8, 1, 2, 1);
    for (uint32_t block = 0; block < 8; ++block) EXPECT_EQ(read(0, block), 0);
    EXPECT_EQ(cache_->counters().misses, 0U);
    EXPECT_EQ(disk_->counters().reads, 0U);
}

TEST_F(BlockCacheTest, WhatLeftRamComesBack) {
    make(4, 64, 2, 2, 1);
    for (uint32_t block = 0; block < 64; ++block) {
        write(block % 2, block, static_cast<uint8_t>(block + 1));
        cache_->write_behind();
    }
    for (uint32_t block = 0; block < 64; ++block) {
        EXPECT_EQ(read(block % 2, block), static_cast<int>(block + 1));
        EXPECT_EQ(read(1 - block % 2, block), 0);
    }
    EXPECT_GT(cache_->counters().misses, 50U);
    EXPECT_GT(cache_->counters().evictions, 60U);
}

TEST_F(BlockCacheTest, AWaveKeepsAllThatItAcquired) {
    make(8, 32, 1, 2, 1);
    for (uint32_t block = 0; block < 32; ++block) write(0, block, static_cast<uint8_t>(block));
    cache_->begin_wave();
    for (uint32_t block = 3; block < 11; ++block) {
        cache_->want(owners_[0]->owner, block);
        ASSERT_TRUE(cache_->acquire().is_ok());
    }
    for (uint32_t block = 3; block < 11; ++block) {
        ASSERT_NE(owners_[0]->table[block], nullptr);
        EXPECT_EQ(static_cast<uint32_t>(*owners_[0]->table[block]), block);
    }
    cache_->want(owners_[0]->owner, 12);
    const Status refused = cache_->acquire();
    EXPECT_EQ(refused.code(), StatusCode::out_of_memory);
    EXPECT_NE(refused.message().find("owner 0, block 12"), std::string::npos);
    EXPECT_NE(refused.message().find("host.kv_bytes"), std::string::npos);
    EXPECT_EQ(static_cast<uint32_t>(*owners_[0]->table[10]), 10U);
    EXPECT_EQ(read(0, 12), 12);  // the next wave has room again
}

TEST_F(BlockCacheTest, AWaveDoesNotPushOutWhatItWantsItself) {
    make(8, 32, 1, 2, 1);
    for (uint32_t block = 0; block < 32; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    for (uint32_t first = 0; first < 24; ++first) {
        cache_->reset_counters();
        cache_->begin_wave();
        // The new one first, those of the wave before after it.
        for (const uint32_t block : {7U, 0U, 1U, 2U, 3U, 4U, 5U, 6U}) {
            cache_->want(owners_[0]->owner, first + block);
        }
        ASSERT_TRUE(cache_->acquire().is_ok());
        if (first == 0) continue;
        EXPECT_EQ(cache_->counters().misses, 1U) << first;
        EXPECT_EQ(cache_->counters().hits, 7U) << first;
    }
}

TEST_F(BlockCacheTest, MoreThanThereAreFramesIsRefused) {
    make(4, 32, 1, 1, 1);
    cache_->begin_wave();
    for (uint32_t block = 0; block < 5; ++block) cache_->want(owners_[0]->owner, block);
    EXPECT_EQ(cache_->acquire().code(), StatusCode::out_of_memory);
    EXPECT_EQ(read(0, 1), 0);
}

TEST_F(BlockCacheTest, ADroppedBlockIsForgotten) {
    make(4, 16, 1, 2, 1);
    for (uint32_t block = 0; block < 16; ++block) write(0, block, 7);
    cache_->drop(owners_[0]->owner, 5, 16);
    EXPECT_EQ(read(0, 4), 7);
    for (uint32_t block = 5; block < 16; ++block) EXPECT_EQ(read(0, block), 0);
}

// A write that missed its deadline may reach its place at any time, also when the block was
// dropped: what is written there next must come after it.
TEST_F(BlockCacheTest, APlaceWithALateWriteIsWrittenWhenThatHasEnded) {
    FakeDevice device(8 * kBlock);
    make(8, 8, 1, 2, 1, make_fake_tier(device, 8, 50'000'000));
    write(0, 3, 0xaa);
    device.plan.hang_chance = 1;
    EXPECT_FALSE(cache_->flush().is_ok());
    device.plan.hang_chance = 0;
    cache_->drop(owners_[0]->owner, 3, 4);
    write(0, 3, 0xbb);
    EXPECT_FALSE(cache_->flush().is_ok());
    device.is_released = true;
    write(0, 5, 0xcc);
    (void)cache_->flush();  // the late one ends beside it
    EXPECT_TRUE(cache_->flush().is_ok());
    EXPECT_EQ(device.memory.data()[3 * kBlock], std::byte{0xbb});
    EXPECT_EQ(device.memory.data()[5 * kBlock], std::byte{0xcc});
    cache_.reset();
    disk_.reset();
}

// Of a wave with late reads those are tried again for which there are frames; what is tried again,
// late or bad, has its time, and the message names a block that did not come.
TEST_F(BlockCacheTest, WhatIsTriedAgainHasItsTime) {
    for (const uint32_t late_count : {1U, 2U, 4U}) {
        owners_.clear();
        cache_.reset();
        disk_.reset();
        FakeDevice device(64 * kBlock);
        std::vector<Fault> faults;
        for (uint32_t block = 0; block < late_count; ++block) {
            faults.push_back({.kind = FaultKind::hold, .at = 64 + 2 * block});  // after the writes
        }
        faults.push_back({.kind = FaultKind::flip_bits, .at = 64 + 9});
        auto faulty = std::make_unique<FaultyTier>(make_fake_tier(device, 8, 50'000'000),
                                                   std::move(faults), 1);
        FaultyTier* disk = faulty.get();
        make(12, 64, 1, 2, 1, std::move(faulty));
        for (uint32_t block = 0; block < 64; ++block) write(0, block, static_cast<uint8_t>(block));
        ASSERT_TRUE(cache_->flush().is_ok());
        ASSERT_EQ(disk_->counters().writes, 64U);
        cache_->begin_wave();
        for (uint32_t block = 0; block < 10; ++block) cache_->want(owners_[0]->owner, block);
        const Status status = cache_->acquire();
        EXPECT_EQ(disk->fired(FaultKind::hold), late_count);
        EXPECT_EQ(disk->fired(FaultKind::flip_bits), 1U);
        EXPECT_EQ(disk_->counters().deadlines_missed, late_count);
        EXPECT_EQ(disk_->counters().failures, 0U);
        // Two frames are left for those that are late.
        EXPECT_EQ(status.is_ok(), late_count <= 2) << status.message();
        if (!status) {
            EXPECT_EQ(status.message(),
                      "owner 0, block 4: disk did not answer in time (disk.deadline_ms), and there "
                      "is no room in RAM to read it again");
        }
        for (uint32_t block = 0; block < 10; ++block) {
            const bool lost = late_count > 2 && (block == 4 || block == 6);
            ASSERT_EQ(owners_[0]->table[block] == nullptr, lost) << block;
            if (lost) continue;
            EXPECT_EQ(static_cast<uint32_t>(*owners_[0]->table[block]), block);
        }
        disk->release();
        EXPECT_EQ(read(0, 4), 4);
        cache_.reset();
        disk_.reset();
    }
}

TEST_F(BlockCacheTest, AChangeOnDiskIsFound) {
    make(2, 8, 1, 1, 1);
    for (uint32_t block = 0; block < 8; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    // One bit; a block in the place of another.
    disk_memory_.get()[2 * kBlock + 77] ^= std::byte{4};
    std::memcpy(disk_memory_.get() + 3 * kBlock, disk_memory_.get() + 4 * kBlock, kBlock);
    for (const uint32_t block : {2U, 3U}) {
        cache_->begin_wave();
        cache_->want(owners_[0]->owner, block);
        const Status status = cache_->acquire();
        EXPECT_EQ(status.code(), StatusCode::corrupt);
        EXPECT_NE(status.message().find("owner 0, block " + std::to_string(block)),
                  std::string::npos)
            << status.message();
        EXPECT_EQ(owners_[0]->table[block], nullptr);
    }
    EXPECT_EQ(read(0, 5), 5);
    EXPECT_GE(disk_->counters().checksum_mismatches, 2U);
}

TEST_F(BlockCacheTest, PrefetchedBlocksAreCountedByWhatCameOfThem) {
    make(8, 32, 1, 1, 1);
    for (uint32_t block = 0; block < 32; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    cache_->begin_wave();
    for (uint32_t block = 0; block < 8; ++block) {
        cache_->want(owners_[0]->owner, 8 + block);
    }
    ASSERT_TRUE(cache_->acquire().is_ok());
    cache_->begin_wave();
    std::vector<BlockRef> ahead;
    for (uint32_t block = 0; block < 4; ++block) ahead.push_back({&owners_[0]->owner, block});
    cache_->prefetch(ahead);
    EXPECT_EQ(cache_->counters().prefetched, 4U);
    for (uint32_t block = 0; block < 2; ++block) EXPECT_EQ(read(0, block), static_cast<int>(block));
    EXPECT_EQ(cache_->counters().prefetched_used + cache_->counters().prefetched_late, 2U);
    for (uint32_t i = 0; i < 48; ++i) {
        EXPECT_EQ(read(0, 16 + i % 16), static_cast<int>(16 + i % 16));
    }
    EXPECT_EQ(cache_->counters().prefetched_wasted, 2U);
}

// A read that was started ahead may end after its owner, who kept the checksum, is gone.
TEST_F(BlockCacheTest, AReadOutlivesTheOwnerOfItsBlock) {
    delay_ns_ = 2'000'000;
    make(4, 16, 1, 1, 1);
    for (uint32_t block = 0; block < 16; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    const BlockRef ahead[2] = {{&owners_[0]->owner, 0}, {&owners_[0]->owner, 1}};
    cache_->begin_wave();
    cache_->prefetch(ahead);
    ASSERT_EQ(cache_->counters().prefetched, 2U);
    cache_->drop(owners_[0]->owner, 0, 16);
    owners_.clear();
    cache_.reset();
    EXPECT_EQ(disk_->counters().checksum_mismatches, 0U);
}

// What is done between the two parts of an acquire does not disturb them, and a part of the blocks
// can be waited for.
TEST_F(BlockCacheTest, AcquiringInParts) {
    make(12, 32, 1, 1, 1);
    for (uint32_t block = 0; block < 32; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    BlockOwner& owner = owners_[0]->owner;
    for (uint32_t first = 0; first + 8 <= 32; first += 8) {
        cache_->begin_wave();
        for (uint32_t i = 0; i < 6; ++i) cache_->want(owner, first + i);
        cache_->start_acquire();
        const BlockRef ahead[2] = {{&owner, (first + 8) % 32}, {&owner, (first + 9) % 32}};
        cache_->prefetch(ahead);
        for (const uint32_t count : {0U, 1U, 4U, 3U, 6U}) {
            ASSERT_TRUE(cache_->finish_acquire(count).is_ok());
            for (uint32_t i = 0; i < count; ++i) {
                ASSERT_NE(owner.table[first + i], nullptr);
                ASSERT_EQ(static_cast<uint32_t>(*owner.table[first + i]), first + i);
            }
        }
        ASSERT_TRUE(cache_->finish_acquire().is_ok());
    }
    EXPECT_GT(cache_->counters().prefetched_used + cache_->counters().prefetched_late, 0U);
}

// Layers that attend everything go through more blocks than there are frames, step after step: the
// least recently used one is always the next that is needed.
TEST_F(BlockCacheTest, ARoundLongerThanRamKeepsWhatFits) {
    make(64, 200, 1, 2, 1);
    for (uint32_t block = 0; block < 200; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    for (uint32_t round = 0; round < 20; ++round) {
        if (round == 4) cache_->reset_counters();
        for (uint32_t block = 0; block < 200; ++block) {
            ASSERT_EQ(read(0, block), static_cast<int>(block));
        }
    }
    // 63 of 200 at best.
    EXPECT_GT(cache_->counters().hits, 16U * 200 / 4);
}

TEST_F(BlockCacheTest, WhatEveryRoundUsesStays) {
    make(64, 400, 2, 2, 1);
    for (uint32_t block = 0; block < 800; ++block) write(block / 400, block % 400, 7);
    ASSERT_TRUE(cache_->flush().is_ok());
    std::mt19937 random(1);
    for (uint32_t round = 0; round < 60; ++round) {
        if (round == 20) cache_->reset_counters();
        for (uint32_t o = 0; o < 2; ++o) {
            // 20 that every round uses, and 60 of the others.
            std::vector<uint32_t> wanted;
            for (uint32_t block = 0; block < 400; ++block) {
                const bool always = block % 20 == 0;
                if (always || random() % 380 < 60) wanted.push_back(block);
            }
            for (const uint32_t block : wanted) ASSERT_EQ(read(o, block), 7);
        }
    }
    EXPECT_GT(cache_->counters().hits, 40U * 2 * 20 * 9 / 10);
}

// What is about to be used is not given up for what is read ahead, and goes when it was not used.
TEST_F(BlockCacheTest, WhatIsExpectedStaysForARound) {
    make(16, 64, 1, 2, 1);
    for (uint32_t block = 0; block < 64; ++block) write(0, block, static_cast<uint8_t>(block));
    ASSERT_TRUE(cache_->flush().is_ok());
    for (uint32_t block = 0; block < 16; ++block) (void)read(0, block);
    std::vector<BlockRef> ahead;
    for (uint32_t block = 0; block < 12; ++block) ahead.push_back({&owners_[0]->owner, block});
    cache_->prefetch(ahead);
    cache_->begin_wave();
    for (uint32_t block = 40; block < 44; ++block) ahead.push_back({&owners_[0]->owner, block});
    cache_->prefetch(ahead);
    cache_->reset_counters();
    for (uint32_t block = 0; block < 12; ++block) (void)read(0, block);
    EXPECT_EQ(cache_->counters().misses, 0U);
    for (uint32_t round = 0; round < 3; ++round) {
        for (uint32_t block = 20; block < 30; ++block) (void)read(0, block);
    }
    EXPECT_EQ(cache_->counters().prefetched_wasted, 4U);
}

TEST_F(BlockCacheTest, RandomWorkGivesWhatAnArrayGives) {
    constexpr uint32_t kOwners = 3;
    constexpr uint32_t kBlocks = 40;
    for (uint32_t seed = 1; seed <= 20; ++seed) {
        owners_.clear();
        cache_.reset();
        const uint32_t frames = 3 + seed % 11;
        make(frames, kBlocks, kOwners, 1 + seed % 3, 1);
        std::mt19937 random(seed);
        std::vector<int> model(kOwners * kBlocks, 0);
        for (uint32_t i = 0; i < 2000; ++i) {
            const uint32_t o = random() % kOwners;
            const uint32_t block = random() % kBlocks;
            switch (random() % 8) {
                case 0:
                case 1:
                case 2: {
                    const auto value = static_cast<uint8_t>(random());
                    write(o, block, value);
                    model[o * kBlocks + block] = value;
                    break;
                }
                case 3: cache_->write_behind(); break;
                case 4: {
                    const BlockRef ahead{&owners_[o]->owner, block};
                    cache_->prefetch({&ahead, 1});
                    break;
                }
                case 5:
                    if (random() % 8 != 0) break;
                    cache_->drop(owners_[o]->owner, block, kBlocks);
                    for (uint32_t b = block; b < kBlocks; ++b) model[o * kBlocks + b] = 0;
                    break;
                default:
                    ASSERT_EQ(read(o, block), model[o * kBlocks + block])
                        << "seed " << seed << ", operation " << i;
            }
        }
        ASSERT_TRUE(cache_->flush().is_ok());
        EXPECT_TRUE(warnings_.empty());
    }
}

}  // namespace
}  // namespace shoal::offload
