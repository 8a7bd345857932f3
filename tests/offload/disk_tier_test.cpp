// What the disk tier and the wrappers do beyond what every tier does: merging, order, registered
// memory, deadlines in real time; and that wrong use by ourselves stops at once.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/offload/fake_queue.hpp"

namespace shoal::offload {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Reads of these units into scattered memory, each unit to a place of its own.
void set_reads(Batch& batch, const std::vector<uint64_t>& units, const AlignedMemory& to) {
    for (size_t i = 0; i < units.size(); ++i) {
        batch.set(i, TransferKind::read, units[i], to.unit(2 * i));
    }
}

TEST(DiskTier, NeighboursBecomeOneOperationOfAMebibyteAtMost) {
    struct Example {
        uint64_t units;
        uint64_t gap_every;      // 0: none
        uint64_t operations;
    };
    for (const Example& example : {Example{1, 0, 1}, Example{3, 0, 1}, Example{255, 0, 1},
                                   Example{256, 0, 1}, Example{257, 0, 2}, Example{600, 0, 3},
                                   Example{64, 2, 32}, Example{64, 1, 64}}) {
        FakeDevice device(2048 * kUnit);
        const auto tier = make_fake_tier(device, 128);
        const AlignedMemory to(2 * example.units * kUnit);
        std::vector<uint64_t> units;
        uint64_t unit = 0;
        for (uint64_t i = 0; i < example.units; ++i) {
            units.push_back(unit++);
            if (example.gap_every > 0 && (i + 1) % example.gap_every == 0) ++unit;
        }
        std::shuffle(units.begin(), units.begin() + std::min<ptrdiff_t>(256, units.size()),
                     device.random);
        Batch reads(example.units);
        set_reads(reads, units, to);
        tier->start(reads.all());
        ASSERT_TRUE(tier->wait(reads.all()));
        EXPECT_EQ(tier->counters().device_reads, example.operations) << example.units;
    }
}

TEST(DiskTier, AdjoiningMemoryIsOnePieceAndALongTransferGoesAlone) {
    FakeDevice device(4096 * kUnit);
    device.memory.fill(3);
    const auto tier = make_fake_tier(device, 4);
    const AlignedMemory to(4096 * kUnit);
    Batch reads(3);
    reads.set(0, TransferKind::read, 1, to.unit(1), 2048);
    reads.set(1, TransferKind::read, 2049, to.unit(2049), 1);
    reads.set(2, TransferKind::read, 2050, to.unit(2050), 1);
    tier->start(reads.all());
    ASSERT_TRUE(tier->wait(reads.all()));
    EXPECT_EQ(tier->counters().device_reads, 2U);
    EXPECT_TRUE(same(to.unit(1), device.memory.unit(1), 2050 * kUnit));
}

TEST(DiskTier, EarlierStartedAndEarlierListedGoFirst) {
    FakeDevice device(4096 * kUnit);
    device.plan.latency_most_ns = device.plan.latency_least_ns;
    const auto tier = make_fake_tier(device, 8);
    const AlignedMemory to(8192 * kUnit);
    Batch layers(3 * 1000);
    std::vector<uint64_t> units;
    for (uint64_t i = 0; i < 3000; ++i) units.push_back((i % 1000) * 4 + 2 - i / 1000);
    set_reads(layers, units, to);
    tier->start(layers.part(0, 2000));
    tier->start(layers.part(2000, 1000));
    for (size_t layer = 0; layer < 3; ++layer) {
        ASSERT_TRUE(tier->wait(layers.part(layer * 1000, 1000)));
        size_t later_done = 0;
        for (size_t i = (layer + 1) * 1000; i < 3000; ++i) {
            later_done += layers[i].in_flight() ? 0 : 1;
        }
        EXPECT_LE(later_done, 600U) << "of the layers after " << layer;
    }
}

TEST(DiskTier, ReadsGoBeforeWritesButWritesGoOn) {
    FakeDevice device(4096 * kUnit);
    device.plan.latency_most_ns = device.plan.latency_least_ns;
    const auto tier = make_fake_tier(device, 16);
    const AlignedMemory memory(4096 * kUnit);
    Batch writes(1000);
    Batch reads(1000);
    for (size_t i = 0; i < 1000; ++i) {
        writes.set(i, TransferKind::write, 2 * i, memory.unit(2 * i));
        reads.set(i, TransferKind::read, 2 * i + 1, memory.unit(2 * i + 1));
    }
    tier->start(writes.all());
    tier->start(reads.all());
    ASSERT_TRUE(tier->wait(reads.all()));
    const size_t written = writes.count_in(TransferState::done);
    EXPECT_GT(written, 50U);
    EXPECT_LT(written, 300U);
    EXPECT_TRUE(tier->wait(writes.all()));
}

TEST(DiskTier, RegisteredMemoryAndOtherGiveTheSame) {
    if (spill_dir().empty() || !uring_works()) GTEST_SKIP() << "no io_uring or no direct I/O here";
    const AlignedMemory registered(64 * kUnit);
    const AlignedMemory other(64 * kUnit);
    registered.fill(9);
    DiskTierOptions options;
    options.path = IoPathKind::io_uring;
    const auto tier = make_disk_tier(64 * kUnit, options);
    tier->use_memory(registered.span());
    const std::string path = static_cast<DiskTier&>(*tier).path().text;
    EXPECT_NE(path.find("256.0 KiB registered)"), std::string::npos) << path;
    Batch transfers(64);
    for (const TransferKind kind : {TransferKind::write, TransferKind::read}) {
        for (size_t i = 0; i < 64; ++i) {
            const bool here = kind == TransferKind::write || i % 2 == 0;
            transfers.set(i, kind, (i * 5) % 64, (here ? registered : other).unit((i * 5) % 64));
        }
        for (size_t i = 0; i < 64; ++i) {    // one at a time: nothing to merge
            tier->start(transfers.part(i, 1));
            ASSERT_TRUE(tier->wait(transfers.part(i, 1)));
        }
    }
    for (size_t i = 1; i < 64; i += 2) {
        EXPECT_TRUE(same(other.unit((i * 5) % 64), registered.unit((i * 5) % 64), kUnit));
    }
    EXPECT_EQ(tier->counters().device_reads, 64U);
    EXPECT_GT(tier->counters().cpu_ns, 0U);
}

// Root may lock what it likes: in a child that is nobody.
TEST(DiskTier, LittleLockedMemoryLeavesBuffersUnregistered) {
    if (spill_dir().empty() || !uring_works()) GTEST_SKIP() << "no io_uring or no direct I/O here";
    const pid_t child = fork();
    if (child == 0) {
        Result<SpillFile> file = SpillFile::create(spill_dir(), 512 * kUnit);
        const struct rlimit limit = {65536, 65536};
        if (!file || setrlimit(RLIMIT_MEMLOCK, &limit) != 0) _exit(1);
        if (getuid() == 0 && setuid(65534) != 0) _exit(2);
        const AlignedMemory memory(512 * kUnit);
        memory.fill(1);
        std::vector<std::string> lines;
        DiskTierOptions options;
        options.path = IoPathKind::io_uring;
        options.log = [&](const std::string& line) { lines.push_back(line); };
        const auto tier = DiskTier::create(std::move(*file), options);
        if (!tier) _exit(3);
        (*tier)->use_memory(memory.span());
        if ((*tier)->path().text.find("no registered memory)") == std::string::npos) _exit(4);
        if ((*tier)->counters().paths_refused != 1 || lines.size() != 1) _exit(6);
        if (lines[0].find("2.0 MiB of RAM for rows on disk are not registered with io_uring "
                          "(Cannot allocate memory; the limit is ulimit -l)") != 0) {
            _exit(7);
        }
        uint64_t checksum = 0;
        Batch transfer(1);
        for (const TransferKind kind : {TransferKind::write, TransferKind::read}) {
            transfer.set(0, kind, 0, memory.data(), 512);
            transfer[0].checksum = &checksum;
            (*tier)->start(transfer.all());
            if (!(*tier)->wait(transfer.all())) _exit(5);
        }
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0) << "exit " << WEXITSTATUS(status);
}

// --- deadlines and wrappers, in real time --------------------------------------------------------

TEST(TierDeadline, AWaitEndsInTimeAndTheLateOneComesLater) {
    TierOptions options;
    options.deadline_ns = 30'000'000;
    FaultyTier tier(make_memory_tier(64 * kUnit, options),
                    {{.kind = FaultKind::hold, .offset = 3 * kUnit}}, 1);
    const AlignedMemory to(64 * kUnit);
    Batch reads(8);
    for (size_t i = 0; i < 8; ++i) reads.set(i, TransferKind::read, i, to.unit(i));
    const auto begin = std::chrono::steady_clock::now();
    tier.start(reads.all());
    Status status = tier.wait(reads.all());
    EXPECT_GE(seconds_since(begin), 0.03);
    EXPECT_EQ(status.code(), StatusCode::unavailable);
    EXPECT_EQ(status.message(), "read of 4,096 B at byte 12,288: no answer within 30 ms, 1 of 8 "
                                "transfers are in flight still");
    EXPECT_TRUE(reads[3].in_flight());
    EXPECT_EQ(tier.held_count(), 1U);
    EXPECT_EQ(tier.counters().deadlines_missed, 1U);
    EXPECT_FALSE(tier.wait(reads.all()));    // at once, and counted once
    EXPECT_EQ(tier.counters().deadlines_missed, 1U);
    EXPECT_TRUE(tier.wait(reads.part(0, 3)));
    std::thread later([&] { tier.release(); });
    later.join();
    EXPECT_TRUE(tier.wait(reads.all()));
    EXPECT_EQ(tier.fired(FaultKind::hold), 1U);
}

// A wait that nobody wakes looks again after a second. The clock is asked just before it sleeps; on
// a busy machine one round in time is enough, since without being woken none is.
TEST(TierDeadline, AThreadThatSleepsIsWoken) {
    std::atomic<int> asked{0};
    TierOptions options;
    options.clock = [&] { return static_cast<uint64_t>(++asked); };
    FaultyTier tier(make_memory_tier(2048 * kUnit, options),
                    {{.kind = FaultKind::hold, .times = 20000}}, 1);
    const AlignedMemory to(2048 * kUnit);
    Batch reads(2000);
    double least = 1e9;
    for (size_t round = 0; round < 10 && least > 0.9; ++round) {
        for (size_t i = 0; i < 2000; ++i) reads.set(i, TransferKind::read, i, to.unit(i));
        tier.start(reads.all());
        const int before = asked;
        std::thread later([&] {
            while (asked == before) std::this_thread::yield();
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            tier.release();
        });
        const auto begin = std::chrono::steady_clock::now();
        EXPECT_TRUE(tier.wait(reads.all()));
        least = std::min(least, seconds_since(begin));
        later.join();
    }
    EXPECT_LT(least, 0.9) << "found by the clock, not by being woken";
}

TEST(TierWrappers, LimitedToWhatWasSaid) {
    for (const uint32_t most : {1U, 5U, 64U}) {
        auto counting = std::make_unique<CountingTier>(
            std::make_unique<DelayedTier>(make_memory_tier(64 * kUnit), 1000));
        const CountingTier& inside = *counting;
        LimitingTier tier(std::move(counting), most);
        const AlignedMemory to(64 * kUnit);
        Batch reads(300);
        for (size_t i = 0; i < 300; ++i) reads.set(i, TransferKind::read, i % 64, to.unit(i % 64));
        tier.start(reads.all());
        ASSERT_TRUE(tier.wait(reads.all()));
        EXPECT_LE(inside.seen().in_flight_most, most);
        EXPECT_EQ(inside.seen().started, 300U);
        EXPECT_EQ(inside.seen().finished, 300U);
        EXPECT_EQ(inside.seen().failed, 0U);
    }
}

TEST(TierWrappers, DelayedAsSaidAndTogether) {
    DelayedTier tier(make_memory_tier(64 * kUnit), 20'000'000);
    const AlignedMemory to(64 * kUnit);
    Batch reads(64);
    for (size_t i = 0; i < 64; ++i) reads.set(i, TransferKind::read, i, to.unit(i));
    const auto begin = std::chrono::steady_clock::now();
    tier.start(reads.all());
    ASSERT_TRUE(tier.wait(reads.all()));
    EXPECT_GE(seconds_since(begin), 0.02);
    EXPECT_LT(seconds_since(begin), 64 * 0.02);
}

TEST(TierWrappers, HeldUntilOthersAreDone) {
    FaultyTier tier(make_memory_tier(8 * kUnit),
                    {{.kind = FaultKind::hold, .at = 0, .after = 3}}, 1);
    const AlignedMemory to(8 * kUnit);
    Batch reads(5);
    for (size_t i = 0; i < 5; ++i) reads.set(i, TransferKind::read, i, to.unit(i));
    for (size_t i = 0; i < 4; ++i) {
        tier.start(reads.part(i, 1));
        EXPECT_EQ(reads[0].in_flight(), i < 3) << i;
    }
    EXPECT_TRUE(tier.wait(reads.part(0, 4)));
}

// --- wrong use ---------------------------------------------------------------------------------

TEST(TierDeathTest, WrongUseStops) {
    const auto tier = make_memory_tier(8 * kUnit);
    const AlignedMemory memory(8 * kUnit);
    const auto start_one = [&](uint64_t offset, uint32_t bytes, std::byte* data) {
        Batch batch(1);
        batch[0].offset = offset;
        batch[0].bytes = bytes;
        batch[0].data = data;
        tier->start(batch.all());
    };
    EXPECT_DEATH(start_one(0, 0, memory.data()), "bytes > 0");
    EXPECT_DEATH(start_one(0, 100, memory.data()), "bytes & mask");
    EXPECT_DEATH(start_one(512, kUnit, memory.data()), "offset & mask");
    EXPECT_DEATH(start_one(0, kUnit, memory.data() + 8), "transfer.data");
    EXPECT_DEATH(start_one(0, kUnit, nullptr), "nullptr");
    EXPECT_DEATH(start_one(8 * kUnit, kUnit, memory.data()), "bytes_ - transfer.offset");
    EXPECT_DEATH(start_one(UINT64_MAX - kUnit + 1, kUnit, memory.data()), "offset <= bytes_");
    EXPECT_DEATH(start_one(7 * kUnit, 2 * kUnit, memory.data()), "bytes_ - transfer.offset");
    Batch idle(1);
    EXPECT_DEATH((void)tier->wait(idle.all()), "idle");
}

TEST(TierDeathTest, StartedTwiceStops) {
    FaultyTier tier(make_memory_tier(8 * kUnit), {{.kind = FaultKind::hold, .times = 100}}, 1);
    const AlignedMemory memory(8 * kUnit);
    Batch batch(1);
    batch.set(0, TransferKind::read, 0, memory.data());
    tier.start(batch.all());
    EXPECT_DEATH(tier.start(batch.all()), "in_flight");
    Transfer* const twice[] = {&batch[0], &batch[0]};
    tier.release();
    EXPECT_DEATH(tier.start(twice), "in_flight");
}

}  // namespace
}  // namespace shoal::offload
