// One bad or late transfer among many: each is retried on its own, and has its own time for it.
#include <array>

#include "tests/offload/faults.hpp"

namespace shoal::offload {
namespace {

constexpr uint64_t kDeadline = 1000 * kMillisecond;

// Reads of one unit each, through faults, of a device that answers within 100 us.
class TierRetry : public ::testing::Test {
protected:
    static constexpr size_t kReads = 1200;  // several of the parts that wait() works in

    void make(std::vector<Fault> faults) {
        device_.memory.fill(5);
        for (size_t i = 0; i < kReads; ++i) {
            reads_.set(i, TransferKind::read, i, to_.unit(i));
            reads_[i].identity = i;
            Transfer original;
            original.data = device_.memory.unit(i);
            original.bytes = kUnit;
            original.identity = i;
            checksums_[i] = transfer_checksum(original);
            reads_[i].checksum = &checksums_[i];
        }
        tier_ = std::make_unique<FaultyTier>(make_fake_tier(device_, 64, kDeadline),
                                             std::move(faults), 1);
    }
    void expect_all_but(const std::vector<size_t>& late) {
        for (size_t i = 0; i < kReads; ++i) {
            const bool is_late = std::find(late.begin(), late.end(), i) != late.end();
            ASSERT_EQ(reads_[i].state, is_late ? TransferState::in_flight : TransferState::done)
                << i;
            if (is_late) continue;
            ASSERT_TRUE(same(to_.unit(i), device_.memory.unit(i), kUnit)) << i;
        }
    }

    AlignedMemory to_{kReads * kUnit};
    FakeDevice device_{kReads * kUnit};
    std::array<uint64_t, kReads> checksums_{};
    Batch reads_{kReads};
    std::unique_ptr<FaultyTier> tier_;
};

TEST_F(TierRetry, ALateOneTakesNoRetryFromTheOthers) {
    for (const size_t late : {size_t{0}, size_t{300}, size_t{700}, kReads - 1}) {
        std::vector<Fault> faults = {{.kind = FaultKind::hold, .offset = late * kUnit}};
        for (const size_t bad : {size_t{10}, size_t{301}, size_t{600}, size_t{1100}}) {
            faults.push_back({.kind = bad % 2 == 0 ? FaultKind::flip_bits : FaultKind::fail,
                              .offset = bad * kUnit});
        }
        make(std::move(faults));
        const uint64_t begin_ns = device_.now_ns;
        tier_->start(reads_.all());
        const Status status = tier_->wait(reads_.all());
        EXPECT_EQ(status.code(), StatusCode::unavailable);
        EXPECT_NE(status.message().find("no answer within 1000 ms, 1 of 1200"), std::string::npos)
            << status.message();
        EXPECT_GE(device_.now_ns - begin_ns, kDeadline);
        EXPECT_LT(device_.now_ns - begin_ns, kDeadline + 100 * kMillisecond);
        expect_all_but({late});
        EXPECT_EQ(tier_->counters().retries, 4U);
        EXPECT_EQ(tier_->counters().failures, 0U);
        EXPECT_EQ(tier_->counters().deadlines_missed, 1U);
        tier_->release();
        EXPECT_TRUE(tier_->wait(reads_.all()));
        expect_all_but({});
    }
}

TEST_F(TierRetry, BadForEverIsFinalAfterOneRetryBesideALateOne) {
    make({{.kind = FaultKind::hold, .offset = 5 * kUnit},
          {.kind = FaultKind::flip_bits, .offset = 900 * kUnit, .times = 3},
          {.kind = FaultKind::fail, .offset = 901 * kUnit, .times = 3}});
    tier_->start(reads_.all());
    EXPECT_EQ(tier_->wait(reads_.all()).code(), StatusCode::corrupt);
    EXPECT_EQ(reads_[900].error, EBADMSG);
    EXPECT_EQ(reads_[901].error, EIO);
    EXPECT_EQ(tier_->counters().retries, 2U);
    EXPECT_EQ(tier_->counters().failures, 2U);
    EXPECT_EQ(tier_->fired(FaultKind::flip_bits), 2U);
    EXPECT_EQ(tier_->fired(FaultKind::fail), 2U);
}

// One that was started long ago, waited for or not, is late alone.
TEST_F(TierRetry, AnOverdueOneTakesNoTimeFromTheOthers) {
    for (const bool was_waited_for : {false, true}) {
        make({{.kind = FaultKind::hold, .offset = 7 * kUnit}});
        tier_->start(reads_.part(7, 1));
        if (was_waited_for) {
            EXPECT_FALSE(tier_->wait(reads_.part(7, 1)));
        }
        device_.now_ns += 3 * kDeadline;
        const uint64_t begin_ns = device_.now_ns;
        tier_->start(reads_.part(0, 7));
        tier_->start(reads_.part(8, kReads - 8));
        EXPECT_EQ(tier_->wait(reads_.all()).code(), StatusCode::unavailable);
        EXPECT_LT(device_.now_ns - begin_ns, 100 * kMillisecond);
        expect_all_but({7});
        EXPECT_EQ(tier_->counters().deadlines_missed, 1U);
        tier_->release();
        EXPECT_TRUE(tier_->wait(reads_.all()));
        EXPECT_EQ(tier_->counters().deadlines_missed, 1U);
    }
}

// What comes late and is bad, while others are tried again, has its retry too.
TEST_F(TierRetry, LateAndThenBadIsRetried) {
    make({{.kind = FaultKind::hold, .offset = 3 * kUnit, .after = 1},  // until read 0 was retried
          {.kind = FaultKind::fail, .offset = 0}});
    checksums_[3] ^= 1;
    Transfer* const both[] = {&reads_[3], &reads_[0]};
    tier_->start(both);
    EXPECT_EQ(tier_->wait(both).code(), StatusCode::corrupt);
    EXPECT_EQ(tier_->counters().deadlines_missed, 1U);
    EXPECT_EQ(reads_[0].state, TransferState::done);
    EXPECT_EQ(reads_[3].error, EBADMSG);
    EXPECT_EQ(reads_[3].retries, 1);
    EXPECT_EQ(tier_->counters().checksum_mismatches, 2U);
}

}  // namespace
}  // namespace shoal::offload
