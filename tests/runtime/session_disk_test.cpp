// Sessions whose rows lie on disk: the same answers, bit for bit, with little RAM.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "offload/memory_tier.hpp"
#include "runtime/session_maker.hpp"
#include "shoal/text.hpp"
#include "tests/offload/fault_row.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using ::testing::AllOf;
using ::testing::HasSubstr;

Config disk_config(const Config& config) {
    Config spilled = config;
    spilled.disk.dir = ::testing::TempDir();
    return spilled;
}

// A disk in memory whose bytes a test can change.
class OpenDisk {
public:
    DiskMaker maker() {
        return [this](const SessionState&, uint64_t bytes) {
            memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
            bytes_ = bytes;
            return Result<std::unique_ptr<offload::Tier>>(std::make_unique<offload::MemoryTier>(
                std::span(memory_.get(), bytes), 4096));
        };
    }
    void damage() {
        for (uint64_t at = 100; at < bytes_; at += 4096) memory_.get()[at] ^= std::byte{1};
    }

private:
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    uint64_t bytes_ = 0;
};

struct DiskCase {
    const char* name;
    SharingKind sharing = SharingKind::layer;
    SelectorKind selector = SelectorKind::labels;
    DType dtype = DType::f16;
    uint32_t kv_heads = 3;
    uint32_t head_dim = 64;
    uint32_t rows = 48;
};

class SessionOnDisk : public ::testing::TestWithParam<DiskCase> {
protected:
    static Config config() {
        Config made = testing::test_config(GetParam().rows);
        made.disk = {};
        made.selector.kind = GetParam().selector;
        made.sharing.kind = GetParam().sharing;
        if (made.sharing.kind == SharingKind::tidal) made.sharing.anchors = {0, 2};
        made.host.rows = testing::host_rows(GetParam().dtype);
        return made;
    }
    static ModelShape shape() {
        return small_model(4, GetParam().kv_heads, 2, GetParam().head_dim,
                           testing::engine_dtype(GetParam().dtype));
    }
};

INSTANTIATE_TEST_SUITE_P(
    Policies, SessionOnDisk,
    ::testing::Values(DiskCase{"layer"}, DiskCase{"head", SharingKind::head},
                      DiskCase{"tidal", SharingKind::tidal},
                      DiskCase{"pages", SharingKind::layer, SelectorKind::page_bounds},
                      DiskCase{"hybrid", SharingKind::layer, SelectorKind::hybrid},
                      DiskCase{"dense", SharingKind::layer, SelectorKind::dense},
                      DiskCase{"f32", SharingKind::layer, SelectorKind::labels, DType::f32},
                      DiskCase{"token_of_one_block", SharingKind::layer, SelectorKind::labels,
                               DType::bf16, 8, 128},
                      DiskCase{"q8", SharingKind::layer, SelectorKind::labels, DType::q8, 8, 128},
                      DiskCase{"few_rows", SharingKind::layer, SelectorKind::labels, DType::f16, 3,
                               64, 3}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(SessionOnDisk, AnswersAsInRamBitForBit) {
    const ModelShape shape = SessionOnDisk::shape();
    const uint32_t slots = 3000;
    Driver ram(config(), shape, slots);
    Driver disk(disk_config(config()), shape, slots);
    const std::vector<uint32_t> steps = {1, 127, 300, 1, 2, 700, 129, 1, 512, 3};
    for (const uint32_t n : steps) ASSERT_EQ(ram.step(n), disk.step(n)) << n << " tokens";
    for (uint32_t i = 0; i < 40; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << i;
    for (const uint32_t kept : {1500U, 1409U, 1U}) {
        ram.truncate(kept);
        disk.truncate(kept);
        ASSERT_EQ(ram.step(1), disk.step(1)) << kept;
        ASSERT_EQ(ram.step(200), disk.step(200)) << kept;
        for (uint32_t i = 0; i < 5; ++i) ASSERT_EQ(ram.step(1), disk.step(1)) << kept;
    }
    const Stats stats = disk.session().stats();
    EXPECT_GT(stats.block_misses, 0U);
    EXPECT_GT(stats.blocks_written, 0U);
    EXPECT_GT(stats.disk_read_bytes, 0U);
    EXPECT_EQ(stats.disk_checksum_mismatches, 0U);
    EXPECT_EQ(stats.block_write_failures, 0U);
    EXPECT_LT(stats.host_kv_bytes, stats.disk_kv_bytes);
}

TEST_P(SessionOnDisk, TakesWhatThePlanSays) {
    const ModelShape shape = SessionOnDisk::shape();
    SessionOptions options;
    options.slots_per_store = 6000;
    const Config config = disk_config(SessionOnDisk::config());
    const Result<MemoryPlan> plan = Session::plan(config, shape, options);
    ASSERT_TRUE(plan) << plan.status().message();
    EXPECT_LT(plan->least_bytes, plan->total_bytes);
    for (const uint64_t bytes : {plan->least_bytes, plan->least_bytes + (1 << 20)}) {
        Config little = config;
        little.host.kv_bytes = bytes;
        const Result<MemoryPlan> least = Session::plan(little, shape, options);
        ASSERT_TRUE(least);
        EXPECT_LE(least->total_bytes, bytes);
        EXPECT_GT(least->total_bytes + (256 << 10), bytes);
        EXPECT_EQ(least->disk_bytes, plan->disk_bytes);
        EXPECT_TRUE(Session::create(little, shape, options));
    }
    Config less = config;
    less.host.kv_bytes = plan->least_bytes - 4096;
    const auto refused = Session::create(less, shape, options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::out_of_memory);
    EXPECT_THAT(refused.status().message(), HasSubstr(bytes_text(plan->least_bytes)));
    EXPECT_THAT(refused.status().message(), HasSubstr("host.kv_bytes"));
}

// Bytes of RAM that belong to no file.
uint64_t resident_bytes() {
    uint64_t size = 0;
    uint64_t resident = 0;
    uint64_t shared = 0;
    std::ifstream("/proc/self/statm") >> size >> resident >> shared;
    return (resident - shared) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// 64 MiB of rows, a tenth of them in RAM: filled, read in a pass of prefill, decoded.
TEST(SessionOnDiskMemory, PeaksWithinThePlan) {
#ifdef SHOAL_SANITIZED
    GTEST_SKIP() << "a sanitizer's own memory would be counted";
#endif
    const ModelShape shape = small_model(2, 8, 1, 128, DType::bf16);
    Config config = disk_config(testing::test_config());
    SessionOptions options;
    options.slots_per_store = 8192;
    options.queries_per_step_max = 1024;
    const Result<MemoryPlan> wanted = Session::plan(config, shape, options);
    ASSERT_TRUE(wanted) << wanted.status().message();
    config.host.kv_bytes = wanted->least_bytes + wanted->disk_bytes / 10;
    const Result<MemoryPlan> plan = Session::plan(config, shape, options);
    ASSERT_TRUE(plan) << plan.status().message();
    testing::RandomRows random(1);
    const std::vector<float> rows = random.make(1024, 8, 128);
    std::vector<int64_t> slots(1024);
    std::vector<float> out(rows.size());
    const uint64_t before = resident_bytes();
    uint64_t peak = 0;
    auto made = Session::create(config, shape, options);
    ASSERT_TRUE(made) << made.status().message();
    Session& session = **made;
    const StoreId store = *session.open();
    const ConstTensor some = testing::tensor_of(rows, 1024, 8, 128);
    for (uint32_t begin = 0; begin < 7 * 1024; begin += 1024) {
        std::iota(slots.begin(), slots.end(), begin);
        for (uint32_t l = 0; l < 2; ++l) {
            ASSERT_TRUE(session.put({l}, store, slots, some, some));
            peak = std::max(peak, resident_bytes());
        }
    }
    for (const uint32_t n : {1000U, 1U, 1U}) {
        const uint32_t offsets[2] = {0, n};
        const uint32_t first = session.stats().slots_used;
        StepInput input;
        input.stores = {&store, 1};
        input.token_offsets = offsets;
        ASSERT_TRUE(session.begin_step(input));
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (uint32_t i = 0; i < n; ++i) {
            ranges.push_back({0, first + i + 1});
            range_offsets.push_back(i + 1);
        }
        for (uint32_t l = 0; l < 2; ++l) {
            const ConstTensor now = testing::tensor_of(rows, n, 8, 128);
            ASSERT_TRUE(session.append({l}, now, now));
            ASSERT_TRUE(session.attend({l}, now, {offsets, range_offsets, ranges, 0},
                                       {out.data(), n, 8, 128, size_t{8} * 128 * 4, 128 * 4}));
            peak = std::max(peak, resident_bytes());
        }
        ASSERT_TRUE(session.end_step());
    }
    const double of_plan =
        static_cast<double>(peak - before) / static_cast<double>(plan->total_bytes);
    std::printf("  peak %s: %.3f of the plan, with %s of rows on disk\n",
                bytes_text(peak - before).c_str(), of_plan, bytes_text(plan->disk_bytes).c_str());
    EXPECT_LT(of_plan, 1.03);
    EXPECT_GT(of_plan, 0.5);
    EXPECT_GT(session.stats().block_misses, 0U);
}

// Rows 4 and 32 of the table of faults where a session meets them: refused before anything is
// taken, named, and another session goes on with the answers it would have given.
struct RefusedDisk {
    const char* row;
    std::string dir;
    uint64_t disk_bytes;         // disk.kv_bytes
    StatusCode code;
    std::vector<std::string> parts;
};

class SessionOnDiskRefuses : public ::testing::Test {
protected:
    static constexpr uint32_t kSlots = 1000;

    void SetUp() override {
        std::string pattern = ::testing::TempDir() + "refused-XXXXXX";
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        dir_ = pattern;
        config_ = testing::test_config();
        config_.disk.dir = dir_;
        options_.slots_per_store = kSlots;
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }
    static uint64_t descriptor_count() {
        return static_cast<uint64_t>(
            std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
    }
    // Of a session with this configuration, which leaves nothing behind.
    Status refusal(const Config& config, const ModelShape& shape, offload::FaultRow& row) const {
        const uint64_t before = descriptor_count();
        const auto made = Session::create(config, shape, options_);
        EXPECT_FALSE(made);
        EXPECT_EQ(descriptor_count(), before);
        ++row.cases;
        ++row.injected;
        row.refused += made ? 0 : 1;
        return made.status();
    }

    std::string dir_;
    Config config_;
    SessionOptions options_;
};

TEST_F(SessionOnDiskRefuses, PlacesThatAreNone) {
    std::ofstream(dir_ + "/file") << "x";
    ASSERT_EQ(mkfifo((dir_ + "/fifo").c_str(), 0600), 0);
    const std::vector<RefusedDisk> cases = {
        {"missing", dir_ + "/none", 0, StatusCode::invalid_argument, {"no such directory"}},
        {"a file", dir_ + "/file", 0, StatusCode::invalid_argument, {"is not a directory"}},
        {"a pipe", dir_ + "/fifo", 0, StatusCode::invalid_argument, {"is not a directory"}},
        {"no file system for files", "/proc", 0, StatusCode::invalid_argument, {"/proc"}},
        {"RAM", "/dev/shm", 0, StatusCode::unsupported, {"tmpfs", "no direct I/O"}},
        {"disk.kv_bytes", dir_, 4096, StatusCode::out_of_memory,
         {"disk.kv_bytes = 4.0 KiB: 1000 slots take "}},
    };
    Driver calm(config_, small_model(), kSlots);
    Driver alone(config_, small_model(), kSlots);
    offload::FaultRow row{"32: no place for a spill file, at create"};
    for (const RefusedDisk& c : cases) {
        if (c.dir == "/dev/shm" && !std::filesystem::exists(c.dir)) continue;
        Config config = config_;
        config.disk.dir = c.dir;
        config.disk.kv_bytes = c.disk_bytes;
        const Status refused = refusal(config, small_model(), row);
        EXPECT_EQ(refused.code(), c.code) << c.row << ": " << refused.message();
        EXPECT_THAT(refused.message(), HasSubstr(c.disk_bytes != 0 ? "disk.kv_bytes" : c.dir));
        for (const std::string& part : c.parts) {
            EXPECT_THAT(refused.message(), HasSubstr(part)) << c.row;
        }
        // A plan says the same, but for what is only too small: it says how small.
        const auto plan = Session::plan(config, small_model(), options_);
        if (c.disk_bytes != 0) {
            ASSERT_TRUE(plan) << plan.status().message();
            EXPECT_EQ(plan->disk_available_bytes, c.disk_bytes);
            EXPECT_LT(plan->slots_fit, kSlots);
        } else {
            EXPECT_EQ(plan.status().message(), refused.message());
        }
        ASSERT_EQ(calm.step(50), alone.step(50)) << c.row;
    }
}

TEST_F(SessionOnDiskRefuses, MoreThanIsFree) {
    struct statvfs space = {};
    ASSERT_EQ(statvfs(dir_.c_str(), &space), 0);
    const uint64_t free_bytes = uint64_t{space.f_bavail} * space.f_frsize;
    // 256 KiB a token: few tokens take much disk and little RAM.
    const ModelShape wide = small_model(2, 64, 1, 256, DType::f32);
    const uint64_t slots = 2 * free_bytes / (256 << 10);
    if (slots > (1U << 24)) GTEST_SKIP() << "too much room here to ask for more: " << free_bytes;
    options_.slots_per_store = static_cast<uint32_t>(slots);
    config_.selector.kind = SelectorKind::dense;
    offload::FaultRow row{"4: more than the disk has free, at create"};
    const Status refused = refusal(config_, wide, row);
    EXPECT_EQ(refused.code(), StatusCode::out_of_memory) << refused.message();
    EXPECT_THAT(refused.message(), AllOf(HasSubstr("a spill file of "), HasSubstr(" is wanted, "),
                                         HasSubstr(" B) are free")));
    const auto plan = Session::plan(config_, wide, options_);
    ASSERT_TRUE(plan) << plan.status().message();
    EXPECT_GT(plan->disk_bytes, plan->disk_available_bytes);
    EXPECT_LT(plan->slots_fit, slots);
    EXPECT_GT(plan->slots_fit, 0U);
    options_.slots_per_store = kSlots;
    EXPECT_TRUE(Session::create(config_, small_model(), options_));
}

// By default three quarters of what the machine has, less what the engine has mapped.
TEST_F(SessionOnDiskRefuses, NoRamThatTheWeightsTake) {
    const auto plan = [&](uint64_t mapped_bytes) {
        options_.mapped_bytes = mapped_bytes;
        const auto made = Session::plan(config_, small_model(), options_);
        return made ? *made : MemoryPlan{};
    };
    const MemoryPlan alone = plan(0);
    const MemoryPlan beside = plan(alone.machine_bytes / 2);
    EXPECT_LE(alone.available_bytes, alone.machine_bytes / 4 * 3);
    EXPECT_NEAR(static_cast<double>(beside.available_bytes) /
                    static_cast<double>(beside.machine_bytes),
                0.375, 0.02);
    EXPECT_EQ(plan(UINT64_MAX).available_bytes, 0U);
}

TEST_F(SessionOnDiskRefuses, NoDescriptorsAreLeft) {
    rlimit before = {};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    const int lowest = dup(0);
    close(lowest);
    offload::FaultRow row{"32: EMFILE, at create"};
    // The file, then the ring or what wakes it, are the first that cannot be had.
    for (int more = 0; more < 3; ++more) {
        const rlimit few = {static_cast<rlim_t>(lowest + more), before.rlim_max};
        ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
        const auto made = Session::create(config_, small_model(), options_);
        ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
        const int lowest_now = dup(0);
        close(lowest_now);
        ++row.cases;
        ++row.injected;
        if (made) {
            ++row.degraded;  // without a ring: threads
            EXPECT_EQ((*made)->stats().disk_paths_refused, 1U) << more;
            continue;
        }
        ++row.refused;
        EXPECT_EQ(lowest_now, lowest) << more;
        EXPECT_THAT(made.status().message(), HasSubstr("Too many open files"));
    }
    EXPECT_GT(row.refused, 0U);
    EXPECT_TRUE(Session::create(config_, small_model(), options_));
}

TEST(SessionOnDiskDamage, IsSaidAndTheSessionGoesOn) {
    const ModelShape shape = small_model(2, 3, 2);
    Config config = testing::test_config(200);
    config.disk.dir = ::testing::TempDir();
    SessionOptions options;
    options.slots_per_store = 4000;
    options.queries_per_step_max = 1024;
    OpenDisk disk;
    auto made = SessionMaker::create(testing::with_least_memory(config, shape, options), shape,
                                     options, disk.maker());
    ASSERT_TRUE(made) << made.status().message();
    Driver driver(std::move(*made), shape);
    for (uint32_t i = 0; i < 3; ++i) driver.step(1000);
    disk.damage();
    Session& session = driver.session();
    // By hand: the driver expects answers.
    const StoreId stores[1] = {driver.store()};
    const uint32_t offsets[2] = {0, 1};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    ASSERT_TRUE(session.begin_step(input));
    const std::vector<float> row(size_t{3} * 64, 0.5F);
    const std::vector<float> q(size_t{6} * 64, 0.5F);
    std::vector<float> out(size_t{6} * 64);
    const uint32_t range_offsets[2] = {0, 1};
    const SlotRange ranges[1] = {{0, 3001}};
    // The block that the token belongs to may be on disk already.
    Status attended = session.append({0}, testing::tensor_of(row, 1, 3, 64),
                                     testing::tensor_of(row, 1, 3, 64));
    if (attended) {
        attended = session.attend({0}, testing::tensor_of(q, 1, 6, 64),
                                  {offsets, range_offsets, ranges, 9999},
                                  {out.data(), 1, 6, 64, size_t{6} * 64 * 4, size_t{64} * 4});
    }
    ASSERT_FALSE(attended);
    EXPECT_EQ(attended.code(), StatusCode::corrupt);
    EXPECT_THAT(attended.message(), AllOf(HasSubstr("store 0, layer 0, "), HasSubstr("block ")));
    EXPECT_THAT(attended.message(), HasSubstr("is not what was written there"));
    EXPECT_GT(session.stats().disk_checksum_mismatches, 0U);
    // What was not on disk is still right, and new rows are.
    ASSERT_TRUE(session.clear(driver.store()));
    driver.truncate(0);
    const std::vector<std::vector<float>> outs = driver.step(600);
    EXPECT_EQ(outs.size(), 2U);
}

}  // namespace
}  // namespace shoal
