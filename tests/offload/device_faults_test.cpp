// Devices that are slow, short, refusing or confused, through the disk tier over a made-up queue.
// Each fault is injected and counted. What a transfer may come to is exact, exact but degraded, or
// refused; never wrong bytes, never a hang, never memory let go too early.
#include "tests/offload/faults.hpp"

namespace shoal::offload {
namespace {

TEST(TierFaults, Row01ShortTransfersAreResumed) {
    FaultRow row{"1: short reads and writes"};
    for (uint64_t seed = 1; seed <= 500; ++seed) {
        FaultCase c(seed);
        c.device.plan.short_chance = 0.5;
        const auto tier = make_fake_tier(c.device, any_depth(seed));
        c.expect_exact(*tier, row);
        EXPECT_EQ(tier->counters().short_transfers, c.device.plan.injected.shorts);
        row.injected += c.device.plan.injected.shorts;
    }
    EXPECT_GT(row.injected, 500U);
}

TEST(TierFaults, Row02ErrorsThatPassAreRepeated) {
    FaultRow row{"2: EIO once, EINTR, EAGAIN"};
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        FaultCase c(seed);
        std::unique_ptr<Tier> tier;
        FaultyTier* faulty = nullptr;
        if (seed % 3 == 0) {
            // A write, and a read: by then one write has come by twice.
            const std::vector<Fault> plan = {{.at = seed % 15},
                                             {.at = c.writes().size() + 1 + seed % 15}};
            auto made = std::make_unique<FaultyTier>(make_fake_tier(c.device, any_depth(seed)),
                                                     plan, seed);
            faulty = made.get();
            tier = std::move(made);
        } else {
            c.device.plan.error_chance = 0.3;
            c.device.plan.error = seed % 3 == 1 ? EINTR : EAGAIN;
            tier = make_fake_tier(c.device, any_depth(seed));
        }
        c.expect_exact(*tier, row);
        const uint64_t injected = faulty != nullptr ? faulty->fired(FaultKind::fail)
                                                    : c.device.plan.injected.errors;
        EXPECT_EQ(tier->counters().retries, injected);
        row.injected += injected;
    }
    EXPECT_GT(row.injected, 300U);
}

TEST(TierFaults, Row03OnlyTheBadPlaceFails) {
    FaultRow row{"3: EIO for ever, one unit, some, all"};
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        FaultCase c(seed);
        const auto tier = make_fake_tier(c.device, any_depth(seed));
        ASSERT_TRUE(c.write(*tier));
        std::set<uint64_t>& bad = c.device.plan.bad_units;
        const uint64_t bad_count = seed % 3 == 0 ? kUnits : 1 + seed % 4;
        while (bad.size() < bad_count) bad.insert(bad_count == kUnits ? bad.size()
                                                                      : c.random()() % kUnits);
        const Status status = c.read(*tier);
        uint64_t failed = 0;
        for (size_t i = 0; i < c.reads().size(); ++i) {
            const Transfer& read = c.reads()[i];
            const auto first = bad.lower_bound(read.offset / kUnit);
            const bool is_bad = first != bad.end() && *first * kUnit < read.offset + read.bytes;
            EXPECT_EQ(read.error, is_bad ? EIO : 0) << "seed " << seed << " extent " << i;
            failed += is_bad ? 1 : 0;
        }
        EXPECT_EQ(status.code(), failed > 0 ? StatusCode::unavailable : StatusCode::ok);
        EXPECT_EQ(c.verified(), c.reads().size() - failed);
        EXPECT_EQ(tier->counters().failures, failed);
        bad.clear();
        EXPECT_TRUE(c.read(*tier));    // the tier goes on
        ++row.cases;
        row.injected += c.device.plan.injected.errors;
        row.exact += c.reads().size() - failed;
        row.refused += failed;
    }
    EXPECT_GT(row.refused, 300U);
}

TEST(TierFaults, Row09ASlowDiskIsInTimeOrLate) {
    FaultRow row{"9: 10 ms to 5 s per request, deadline 1 s"};
    for (uint64_t seed = 1; seed <= 200; ++seed) {
        FaultCase c(seed);
        const uint64_t deadline_ns = 1000 * kMillisecond;
        const auto tier = make_fake_tier(c.device, 8, deadline_ns);
        ASSERT_TRUE(c.write(*tier));
        c.device.plan.latency_least_ns = 10 * kMillisecond;
        c.device.plan.latency_most_ns = (seed % 2 == 0 ? 60 : 5000) * kMillisecond;
        const uint64_t begin_ns = c.device.now_ns;
        const Status status = c.read(*tier);
        EXPECT_LE(c.device.now_ns - begin_ns, deadline_ns);
        EXPECT_EQ(status.code(), c.reads().count_in(TransferState::done) == c.reads().size()
                                     ? StatusCode::ok
                                     : StatusCode::unavailable);
        ++row.cases;
        ++row.injected;
        row.exact += c.verified();
        row.refused += c.reads().size() - c.reads().count_in(TransferState::done);
        EXPECT_EQ(tier->counters().deadlines_missed,
                  c.reads().size() - c.reads().count_in(TransferState::done));
    }
    EXPECT_GT(row.exact, 1000U);
    EXPECT_GT(row.refused, 1000U);
}

// What owns the memory of a transfer that was given up must be able to wait for its end.
TEST(TierFaults, WaitEndedOutlastsTheDeadline) {
    FaultCase c(1);
    c.device.plan.latency_least_ns = 3000 * kMillisecond;
    c.device.plan.latency_most_ns = 5000 * kMillisecond;
    const auto tier = make_fake_tier(c.device, 8, 1000 * kMillisecond);
    EXPECT_EQ(c.write(*tier).code(), StatusCode::unavailable);
    tier->wait_ended(c.writes().all());
    for (size_t i = 0; i < c.writes().size(); ++i) EXPECT_TRUE(c.writes()[i].ended());
    tier->wait_ended(c.writes().all());  // of those that have ended: at once
    EXPECT_GE(c.device.now_ns, 3000 * kMillisecond);
}

TEST(TierFaults, Row10ALateOneKeepsItsMemoryUntilItCompletes) {
    FaultRow row{"10: completes after the deadline, or never"};
    for (uint64_t seed = 1; seed <= 100; ++seed) {
        FaultCase c(seed);
        const auto tier = make_fake_tier(c.device, 16, 50 * kMillisecond);
        ASSERT_TRUE(c.write(*tier));
        c.device.plan.hang_chance = 0.3;
        const Status status = c.read(*tier);
        row.injected += c.device.plan.injected.hung;
        size_t in_flight = 0;
        for (size_t i = 0; i < c.reads().size(); ++i) {
            if (!c.reads()[i].in_flight()) continue;
            ++in_flight;
            EXPECT_TRUE(c.is_poison(i));
        }
        EXPECT_EQ(status.code(), in_flight > 0 ? StatusCode::unavailable : StatusCode::ok);
        EXPECT_EQ(tier->counters().deadlines_missed, in_flight);
        row.exact += c.verified();
        row.refused += in_flight;
        ++row.cases;
        if (seed % 2 == 0) continue;    // never: the tier goes away with them
        c.device.plan.hang_chance = 0;
        c.device.is_released = true;
        EXPECT_TRUE(tier->wait(c.reads().all()));
        EXPECT_EQ(c.verified(), c.reads().size());
    }
    EXPECT_GT(row.refused, 100U);
}

TEST(TierFaults, Row11StrayCompletionsAreIgnored) {
    FaultRow row{"11: duplicate, late, out of order, foreign"};
    for (uint64_t seed = 1; seed <= 200; ++seed) {
        FaultCase c(seed);
        c.device.plan.duplicate_chance = 0.4;
        c.device.plan.foreign_chance = 0.4;
        c.device.plan.short_chance = seed % 2 == 0 ? 0.3 : 0;
        c.device.plan.latency_most_ns = 10 * kMillisecond;
        const auto tier = make_fake_tier(c.device, any_depth(seed));
        c.expect_exact(*tier, row);
        const FakePlan::Injected& made = c.device.plan.injected;
        const uint64_t injected = made.duplicates + made.foreign;
        EXPECT_EQ(tier->counters().stray_completions, injected);
        row.injected += injected;
    }
    EXPECT_GT(row.injected, 1000U);
}

TEST(TierFaults, Row12AFullQueueIsTriedAgain) {
    FaultRow row{"12: queue full"};
    for (uint64_t seed = 1; seed <= 30; ++seed) {
        FaultCase c(seed);
        c.device.plan.capacity = static_cast<uint32_t>(1 + seed % 3);
        const auto tier = make_fake_tier(c.device, 16);
        c.expect_exact(*tier, row);
        row.injected += c.device.plan.injected.refused;
    }
    EXPECT_GT(row.injected, 30U);
}

TEST(TierFaults, Row12IoUringRefusedGivesThreads) {
    if (spill_dir().empty()) GTEST_SKIP() << "no direct I/O here";
    FaultRow row{"12: io_uring refused: EPERM, ENOSYS, ENOMEM"};
    for (const int error : {EPERM, ENOSYS, ENOMEM}) {
        for (uint64_t seed = 1; seed <= 10; ++seed) {
            FaultCase c(seed);
            std::vector<std::string> lines;
            uint64_t asked = 0;
            DiskTierOptions options;
            options.threads = 4;
            options.log = [&](const std::string& line) { lines.push_back(line); };
            options.ring_setup = [&](unsigned, io_uring*, io_uring_params*) {
                ++asked;
                return -error;
            };
            Result<SpillFile> file = SpillFile::create(spill_dir(), kUnits * kUnit);
            ASSERT_TRUE(file) << file.status().message();
            auto tier = DiskTier::create(std::move(*file), options);
            ASSERT_TRUE(tier) << tier.status().message();
            EXPECT_FALSE((*tier)->path().is_uring);
            EXPECT_EQ((*tier)->path().text, "4 threads with preadv and pwritev");
            EXPECT_NE((*tier)->path().refusal.find("io_uring_setup: "), std::string::npos);
            ASSERT_EQ(lines.size(), 1U);
            EXPECT_NE(lines[0].find("io_uring is refused here"), std::string::npos) << lines[0];
            EXPECT_EQ(asked, 1U);
            EXPECT_EQ((*tier)->counters().paths_refused, 1U);
            row.injected += asked;
            c.expect_exact(**tier, row);
        }
    }
    DiskTierOptions only_uring;
    only_uring.path = IoPathKind::io_uring;
    only_uring.ring_setup = [](unsigned, io_uring*, io_uring_params*) { return -EPERM; };
    Result<SpillFile> file = SpillFile::create(spill_dir(), kUnit);
    ASSERT_TRUE(file);
    const auto refused = DiskTier::create(std::move(*file), only_uring);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::unavailable);
    EXPECT_NE(refused.status().message().find("kernel.io_uring_disabled"), std::string::npos);
}

TEST(TierFaults, Row18CancelAtAnyPoint) {
    FaultRow row{"18: canceled at a random point"};
    for (uint64_t seed = 1; seed <= 2000; ++seed) {
        FaultCase c(seed);
        const auto tier = make_fake_tier(c.device, any_depth(seed));
        ASSERT_TRUE(c.write(*tier));
        c.device.plan.short_chance = 0.2;
        tier->start(c.reads().all());
        const size_t waited = c.random()() % (c.reads().size() + 1);
        EXPECT_TRUE(tier->wait(c.reads().part(0, waited)));
        const size_t from = c.random()() % c.reads().size();
        tier->cancel(c.reads().part(from, c.reads().size() - from));
        const Status status = tier->wait(c.reads().all());
        const size_t canceled = c.reads().count_of_error(ECANCELED);
        EXPECT_EQ(status.code(), canceled > 0 ? StatusCode::unavailable : StatusCode::ok);
        EXPECT_EQ(c.verified() + canceled, c.reads().size());
        EXPECT_EQ(tier->counters().canceled, canceled);
        for (size_t i = 0; i < c.reads().size(); ++i) {
            if (c.reads()[i].error == ECANCELED) {
                EXPECT_GE(i, from);
                EXPECT_TRUE(c.is_poison(i));    // no device had it
            }
        }
        ++row.cases;
        row.injected += canceled > 0 ? 1 : 0;
        row.exact += c.reads().size() - canceled;
        row.refused += canceled;
    }
    EXPECT_GT(row.injected, 200U);
}

}  // namespace
}  // namespace shoal::offload
