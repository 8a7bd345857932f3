// Bytes that are not what was written, and writes that find no space, over any tier.
// Each fault is injected and counted. What a transfer may come to is exact, exact but degraded, or
// refused; never wrong bytes, never a hang, never memory let go too early.
#include "tests/offload/faults.hpp"

namespace shoal::offload {
namespace {

TEST(TierFaults, Row04NoSpaceIsNotTriedAgain) {
    FaultRow row{"4: ENOSPC, EDQUOT, EFBIG at each write"};
    for (uint64_t seed = 1; seed <= 200; ++seed) {
        FaultCase c(seed);
        const int error = seed % 3 == 0 ? ENOSPC : seed % 3 == 1 ? EDQUOT : EFBIG;
        const size_t victim = seed % c.writes().size();
        FaultyTier tier(make_fake_tier(c.device, any_depth(seed)), {{.at = victim, .error = error}},
                        seed);
        EXPECT_EQ(c.write(tier).code(), StatusCode::unavailable);
        for (size_t i = 0; i < c.writes().size(); ++i) {
            EXPECT_EQ(c.writes()[i].error, i == victim ? error : 0);
        }
        EXPECT_EQ(tier.counters().retries, 0U);
        EXPECT_EQ(tier.fired(FaultKind::fail), 1U);
        EXPECT_FALSE(c.read(tier));    // what was not written is not taken for it
        EXPECT_EQ(c.verified(), c.reads().size() - 1);
        ++row.cases;
        ++row.injected;
        row.exact += c.reads().size() - 1;
        ++row.refused;
    }
}

TEST(TierFaults, Row05FlippedBitsAreFound) {
    FaultRow row{"5: 1 to 8 bits flipped, once or for ever"};
    const std::unique_ptr<AlignedMemory> memory = std::make_unique<AlignedMemory>(4 * kUnit);
    const AlignedMemory to(4 * kUnit);
    memory->fill(1);
    for (uint64_t seed = 1; seed <= 2000; ++seed) {
        const bool once = seed % 2 == 0;
        FaultyTier tier(std::make_unique<MemoryTier>(memory->span(), kUnit),
                        {{.kind = FaultKind::flip_bits,
                          .times = once ? 1U : 2U,
                          .bits = static_cast<uint32_t>(1 + seed % 8)}},
                        seed);
        Batch read(1);
        read.set(0, TransferKind::read, seed % 4, to.unit(seed % 4));
        read[0].identity = seed;
        Batch original(1);
        original.set(0, TransferKind::write, seed % 4, memory->unit(seed % 4));
        original[0].identity = seed;
        uint64_t checksum = transfer_checksum(original[0]);
        read[0].checksum = &checksum;
        tier.start(read.all());
        const Status status = tier.wait(read.all());
        EXPECT_EQ(status.code(), once ? StatusCode::ok : StatusCode::corrupt) << seed;
        EXPECT_EQ(tier.fired(FaultKind::flip_bits), once ? 1U : 2U);
        EXPECT_EQ(tier.counters().checksum_mismatches, once ? 1U : 2U);
        if (once) {
            EXPECT_TRUE(same(to.unit(seed % 4), memory->unit(seed % 4), kUnit));
        }
        ++row.cases;
        row.injected += once ? 1 : 2;
        (once ? row.exact : row.refused) += 1;
    }
}

TEST(TierFaults, Row05FlippedOnTheWayToTheTier) {
    FaultRow row{"5: bits flipped in what was written"};
    for (uint64_t seed = 1; seed <= 100; ++seed) {
        FaultCase c(seed);
        const size_t victim = seed % c.writes().size();
        FaultyTier tier(make_fake_tier(c.device, any_depth(seed)),
                        {{.kind = FaultKind::flip_bits, .at = victim, .bits = 1}}, seed);
        EXPECT_TRUE(c.write(tier));
        EXPECT_EQ(c.read(tier).code(), StatusCode::corrupt);
        EXPECT_EQ(c.reads()[victim].error, EBADMSG);
        EXPECT_EQ(c.verified(), c.reads().size() - 1);
        ++row.cases;
        row.injected += tier.fired(FaultKind::flip_bits);
        row.exact += c.reads().size() - 1;
        ++row.refused;
    }
    EXPECT_EQ(row.injected, 100U);
}

TEST(TierFaults, Row06AnAlteredIndexIsFound) {
    FaultRow row{"6: checksum or identity altered"};
    for (uint64_t seed = 1; seed <= 500; ++seed) {
        FaultCase c(seed);
        const auto tier = make_fake_tier(c.device, any_depth(seed));
        ASSERT_TRUE(c.write(*tier));
        const size_t victim = seed % c.reads().size();
        const uint64_t bit = uint64_t{1} << (c.random()() % 64);
        if (seed % 2 == 0) c.reads()[victim].identity ^= bit;
        else *c.reads()[victim].checksum ^= bit;
        EXPECT_EQ(c.read(*tier).code(), StatusCode::corrupt);
        EXPECT_EQ(c.reads()[victim].error, EBADMSG);
        EXPECT_EQ(c.verified(), c.reads().size() - 1);
        ++row.cases;
        ++row.injected;
        row.exact += c.reads().size() - 1;
        ++row.refused;
    }
}

TEST(TierFaults, Row07MisdirectedSwappedAndLostAreFound) {
    FaultRow row{"7: misdirected, swapped, stale, of another"};
    for (uint64_t seed = 1; seed <= 500; ++seed) {
        AlignedMemory content(8 * kUnit);
        AlignedMemory to(8 * kUnit);
        content.fill(seed);
        std::vector<uint64_t> checksums(8);
        const uint64_t a = seed % 8;
        const uint64_t b = (a + 1 + seed / 8 % 7) % 8;
        std::vector<Fault> plan;
        const uint64_t second_round = 8;
        switch (seed % 3) {
            case 0:    // two writes swapped
                plan = {{.kind = FaultKind::misdirect, .at = a, .other_offset = b * kUnit},
                        {.kind = FaultKind::misdirect, .at = b, .other_offset = a * kUnit}};
                break;
            case 1:    // reads of another place
                plan = {{.kind = FaultKind::misdirect, .at = second_round + a,
                         .other_offset = b * kUnit},
                        {.kind = FaultKind::misdirect, .at = second_round + 8,
                         .other_offset = b * kUnit}};
                break;
            default:   // a write that was said to be done
                plan = {{.kind = FaultKind::lose, .at = a}};
        }
        FaultyTier tier(make_memory_tier(8 * kUnit), plan, seed);
        Batch writes(8);
        Batch reads(8);
        for (size_t i = 0; i < 8; ++i) {
            writes.set(i, TransferKind::write, i, content.unit(i));
            reads.set(i, TransferKind::read, i, to.unit(i));
            writes[i].identity = reads[i].identity = seed << 8 | i;
            writes[i].checksum = reads[i].checksum = &checksums[i];
        }
        tier.start(writes.all());
        ASSERT_TRUE(tier.wait(writes.all()));
        tier.start(reads.all());
        EXPECT_EQ(tier.wait(reads.all()).code(), StatusCode::corrupt) << seed;
        for (size_t i = 0; i < 8; ++i) {
            const bool bad = i == a || (seed % 3 == 0 && i == b);
            EXPECT_EQ(reads[i].error, bad ? EBADMSG : 0) << seed << " " << i;
            row.refused += bad ? 1 : 0;
            row.exact += bad ? 0 : 1;
        }
        const uint64_t fired = tier.fired(FaultKind::misdirect) + tier.fired(FaultKind::lose);
        EXPECT_EQ(fired, plan.size());
        ++row.cases;
        row.injected += fired;
    }
}

}  // namespace
}  // namespace shoal::offload
