// What every tier and every wrapper must do, whatever is inside.
#include <algorithm>
#include <numeric>
#include <ostream>

#include "tests/offload/tier_support.hpp"

namespace shoal::offload {
namespace {

constexpr uint64_t kUnits = 1027;

struct TierCase {
    const char* name;
    Base base;
    std::unique_ptr<Tier> (*wrap)(std::unique_ptr<Tier> inner);
};
std::ostream& operator<<(std::ostream& out, const TierCase& tier) { return out << tier.name; }

std::unique_ptr<Tier> bare(std::unique_ptr<Tier> inner) { return inner; }
std::unique_ptr<Tier> limited_to_one(std::unique_ptr<Tier> inner) {
    return std::make_unique<LimitingTier>(std::move(inner), 1);
}
std::unique_ptr<Tier> limited_to_100(std::unique_ptr<Tier> inner) {
    return std::make_unique<LimitingTier>(std::move(inner), 100);
}
std::unique_ptr<Tier> counted(std::unique_ptr<Tier> inner) {
    return std::make_unique<CountingTier>(std::move(inner));
}
std::unique_ptr<Tier> delayed(std::unique_ptr<Tier> inner) {
    return std::make_unique<DelayedTier>(std::move(inner), 100'000);
}
std::unique_ptr<Tier> faultless(std::unique_ptr<Tier> inner) {
    return std::make_unique<FaultyTier>(std::move(inner), std::vector<Fault>{}, 1);
}
std::unique_ptr<Tier> nested(std::unique_ptr<Tier> inner) {
    return counted(limited_to_100(delayed(faultless(std::move(inner)))));
}

class TierConformance : public ::testing::TestWithParam<TierCase> {
protected:
    void SetUp() override {
        if (!is_available(GetParam().base)) GTEST_SKIP() << "no direct I/O or no io_uring here";
        tier_ = GetParam().wrap(make_base(GetParam().base, kUnits * kUnit));
        content_.fill(7);
    }
    // Writes all of content_ to the tier, with checksums; identity: 1000 + unit.
    void write_all() {
        for (size_t i = 0; i < kUnits; ++i) {
            writes_.set(i, TransferKind::write, i, content_.unit(i));
            writes_[i].identity = 1000 + i;
            writes_[i].checksum = &checksums_[i];
        }
        tier_->start(writes_.all());
        const Status status = tier_->wait(writes_.all());
        ASSERT_TRUE(status) << status.message();
    }
    void set_read(Batch& batch, size_t index, uint64_t unit, std::byte* to) {
        batch.set(index, TransferKind::read, unit, to);
        batch[index].identity = 1000 + unit;
        batch[index].checksum = &checksums_[unit];
    }
    // Reads these units in this order, in one start(), and compares.
    void read_and_compare(const std::vector<uint64_t>& units) {
        const AlignedMemory to(units.size() * kUnit);
        Batch reads(units.size());
        for (size_t i = 0; i < units.size(); ++i) set_read(reads, i, units[i], to.unit(i));
        tier_->start(reads.all());
        const Status status = tier_->wait(reads.all());
        ASSERT_TRUE(status) << status.message();
        EXPECT_EQ(reads.count_in(TransferState::done), units.size());
        for (size_t i = 0; i < units.size(); ++i) {
            ASSERT_TRUE(same(to.unit(i), content_.unit(units[i]), kUnit)) << "unit " << units[i];
        }
    }

    AlignedMemory content_{kUnits * kUnit};
    std::vector<uint64_t> checksums_ = std::vector<uint64_t>(kUnits);
    Batch writes_{kUnits};
    std::unique_ptr<Tier> tier_;
};

INSTANTIATE_TEST_SUITE_P(
    Tiers, TierConformance,
    ::testing::ValuesIn(std::vector<TierCase>{{"memory", Base::memory, bare},
                                              {"uring", Base::uring, bare},
                                              {"threads", Base::threads, bare},
                                              {"memory_one", Base::memory, limited_to_one},
                                              {"uring_one", Base::uring, limited_to_one},
                                              {"memory_limited", Base::memory, limited_to_100},
                                              {"uring_limited", Base::uring, limited_to_100},
                                              {"threads_limited", Base::threads, limited_to_100},
                                              {"uring_counted", Base::uring, counted},
                                              {"memory_delayed", Base::memory, delayed},
                                              {"uring_delayed", Base::uring, delayed},
                                              {"uring_faultless", Base::uring, faultless},
                                              {"memory_nested", Base::memory, nested},
                                              {"uring_nested", Base::uring, nested},
                                              {"threads_nested", Base::threads, nested}}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_P(TierConformance, WhatWasWrittenIsReadWhateverTheSize) {
    const AlignedMemory to(kUnits * kUnit);
    for (const uint32_t units : {1U, 3U, 255U, 256U, 257U, 1027U}) {
        content_.fill(units);
        uint64_t checksum = 0;
        Batch write(1);
        write.set(0, TransferKind::write, kUnits - units, content_.data(), units);
        write[0].identity = units;
        write[0].checksum = &checksum;
        tier_->start(write.all());
        ASSERT_TRUE(tier_->wait(write.all()));
        Batch read(1);
        read.set(0, TransferKind::read, kUnits - units, to.data(), units);
        read[0].identity = units;
        read[0].checksum = &checksum;
        tier_->start(read.all());
        ASSERT_TRUE(tier_->wait(read.all()));
        EXPECT_TRUE(same(to.data(), content_.data(), uint64_t{units} * kUnit)) << units;
    }
}

TEST_P(TierConformance, AnyOrderOfIdsAndNeighbours) {
    write_all();
    std::vector<uint64_t> all(kUnits);
    std::iota(all.begin(), all.end(), 0);
    read_and_compare(all);
    read_and_compare({all.rbegin(), all.rend()});
    std::mt19937_64 random(3);
    std::shuffle(all.begin(), all.end(), random);
    read_and_compare(all);
    std::vector<uint64_t> gaps;
    for (uint64_t unit = 0; unit < kUnits; unit += 1 + random() % 3) gaps.push_back(unit);
    read_and_compare(gaps);
    read_and_compare({5, 5, 5, 4, 6, 5, 0, kUnits - 1});
    read_and_compare({kUnits - 1});
}

TEST_P(TierConformance, LayersOfOneStartAreWaitedForOneByOne) {
    write_all();
    constexpr size_t kLayers = 4;
    constexpr size_t kRows = 130;
    const AlignedMemory to(kLayers * kRows * kUnit);
    Batch reads(kLayers * kRows);
    for (size_t i = 0; i < reads.size(); ++i) set_read(reads, i, (i * 37) % kUnits, to.unit(i));
    tier_->start(reads.all());
    for (size_t layer = 0; layer < kLayers; ++layer) {
        const Status status = tier_->wait(reads.part(layer * kRows, kRows));
        ASSERT_TRUE(status) << status.message();
        for (size_t i = layer * kRows; i < (layer + 1) * kRows; ++i) {
            ASSERT_EQ(reads[i].state, TransferState::done);
            ASSERT_TRUE(same(to.unit(i), content_.unit((i * 37) % kUnits), kUnit));
        }
    }
}

TEST_P(TierConformance, AnotherIdentityIsCorruptAndNamed) {
    write_all();
    const AlignedMemory to(8 * kUnit);
    Batch reads(8);
    for (size_t i = 0; i < reads.size(); ++i) set_read(reads, i, 10 + i, to.unit(i));
    reads[1].identity = 1000 + 10;                // the block beside it
    reads[3].identity = uint64_t{1} << 40 | 1013; // another generation
    const uint64_t earlier = checksums_[15] + 1;  // what the place held before
    reads[5].checksum = const_cast<uint64_t*>(&earlier);
    tier_->start(reads.all());
    const Status status = tier_->wait(reads.all());
    EXPECT_EQ(status.code(), StatusCode::corrupt);
    EXPECT_NE(status.message().find("read of 4,096 B at byte 45,056"), std::string::npos)
        << status.message();
    EXPECT_NE(status.message().find("3 of 8"), std::string::npos) << status.message();
    for (size_t i = 0; i < reads.size(); ++i) {
        const bool bad = i == 1 || i == 3 || i == 5;
        EXPECT_EQ(reads[i].state, bad ? TransferState::failed : TransferState::done) << i;
        EXPECT_EQ(reads[i].error, bad ? EBADMSG : 0) << i;
        EXPECT_EQ(reads[i].retries, bad ? 1 : 0) << i;
    }
    EXPECT_EQ(tier_->counters().checksum_mismatches, 6U);
    EXPECT_EQ(tier_->counters().retries, 3U);
    EXPECT_EQ(tier_->counters().failures, 3U);
    EXPECT_EQ(tier_->wait(reads.part(0, 2)).code(), StatusCode::corrupt);  // and stays so
    EXPECT_TRUE(tier_->wait(reads.part(6, 2)));
}

TEST_P(TierConformance, TenThousandAtOnce) {
    write_all();
    constexpr size_t kReads = 10000;
    const AlignedMemory to(kReads * kUnit);
    Batch reads(kReads);
    std::mt19937_64 random(5);
    std::vector<uint64_t> units(kReads);
    for (size_t i = 0; i < kReads; ++i) {
        units[i] = random() % kUnits;
        set_read(reads, i, units[i], to.unit(i));
    }
    tier_->start(reads.all());
    const Status status = tier_->wait(reads.all());
    ASSERT_TRUE(status) << status.message();
    for (size_t i = 0; i < kReads; ++i) {
        ASSERT_TRUE(same(to.unit(i), content_.unit(units[i]), kUnit));
    }
    const TierCounters counters = tier_->counters();
    EXPECT_EQ(counters.reads, kReads);
    EXPECT_EQ(counters.writes, kUnits);
    EXPECT_EQ(counters.read_bytes, kReads * kUnit);
    EXPECT_EQ(counters.written_bytes, kUnits * kUnit);
    EXPECT_GT(counters.device_reads, 0U);
    EXPECT_LE(counters.device_reads, kReads);
    EXPECT_EQ(counters.failures + counters.retries + counters.stray_completions, 0U);
}

TEST_P(TierConformance, ReadsAndWritesMayBeMixed) {
    write_all();
    const AlignedMemory to(100 * kUnit);
    const AlignedMemory fresh(100 * kUnit);
    fresh.fill(11);
    Batch mixed(200);
    for (size_t i = 0; i < 100; ++i) {
        set_read(mixed, 2 * i, i, to.unit(i));
        mixed.set(2 * i + 1, TransferKind::write, 500 + i, fresh.unit(i));
        mixed[2 * i + 1].identity = 1500 + i;
        mixed[2 * i + 1].checksum = &checksums_[500 + i];
    }
    tier_->start(mixed.all());
    ASSERT_TRUE(tier_->wait(mixed.all()));
    EXPECT_TRUE(same(to.data(), content_.data(), 100 * kUnit));
    std::memcpy(content_.unit(500), fresh.data(), 100 * kUnit);
    std::vector<uint64_t> back(100);
    std::iota(back.begin(), back.end(), 500);
    read_and_compare(back);
}

TEST_P(TierConformance, CanceledOnesEndAndTheTierGoesOn) {
    write_all();
    for (const size_t keep : {size_t{0}, size_t{64}, size_t{999}}) {
        const AlignedMemory to(1000 * kUnit);
        Batch reads(1000);
        for (size_t i = 0; i < reads.size(); ++i) set_read(reads, i, i, to.unit(i));
        tier_->start(reads.all());
        tier_->cancel(reads.part(keep, reads.size() - keep));
        const Status status = tier_->wait(reads.all());
        const size_t canceled = reads.count_of_error(ECANCELED);
        EXPECT_EQ(reads.count_in(TransferState::done) + canceled, reads.size());
        EXPECT_EQ(status.code(), canceled > 0 ? StatusCode::unavailable : StatusCode::ok);
        for (size_t i = 0; i < reads.size(); ++i) {
            if (reads[i].state == TransferState::done) {
                ASSERT_TRUE(same(to.unit(i), content_.unit(i), kUnit));
            } else {
                ASSERT_GE(i, keep);
            }
        }
    }
    read_and_compare({1, 2, 3, 700});
}

TEST_P(TierConformance, DestroyedWithTransfersInFlight) {
    write_all();
    const AlignedMemory to(3000 * kUnit);
    Batch reads(3000);
    for (size_t i = 0; i < reads.size(); ++i) set_read(reads, i, (i * 7) % kUnits, to.unit(i));
    tier_->start(reads.all());
    tier_.reset();
    for (size_t i = 0; i < reads.size(); ++i) {
        ASSERT_FALSE(reads[i].in_flight());
        if (reads[i].state == TransferState::done) {
            ASSERT_TRUE(same(to.unit(i), content_.unit((i * 7) % kUnits), kUnit));
        } else {
            ASSERT_EQ(reads[i].error, ECANCELED);
        }
    }
}

TEST_P(TierConformance, StartedAgainAndAgain) {
    write_all();
    const AlignedMemory to(4 * kUnit);
    Batch reads(4);
    for (size_t round = 0; round < 300; ++round) {
        for (size_t i = 0; i < 4; ++i) set_read(reads, i, (round * 5 + i * i) % kUnits, to.unit(i));
        tier_->start(reads.all());
        ASSERT_TRUE(tier_->wait(reads.all()));
        ASSERT_TRUE(tier_->wait(reads.all()));    // nothing to wait for
        ASSERT_TRUE(same(to.unit(3), content_.unit((round * 5 + 9) % kUnits), kUnit));
    }
    EXPECT_TRUE(tier_->wait({}));
    tier_->start({});
    EXPECT_EQ(tier_->counters().reads, 1200U);
}

}  // namespace
}  // namespace shoal::offload
