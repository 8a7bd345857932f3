// Made-up machines: folders with the files of /proc and /sys/fs/cgroup that matter.
#include "offload/memory_limits.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace shoal::offload {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

class MemoryLimitsTest : public ::testing::Test {
protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        root_ = std::filesystem::path(::testing::TempDir()) /
                (std::string("shoal_limits_") + test->name());
        std::filesystem::remove_all(root_);
        write("proc/meminfo",
              "MemTotal:       33554432 kB\nMemFree:         1048576 kB\n"
              "MemAvailable:   16777216 kB\n");
    }
    void TearDown() override { std::filesystem::remove_all(root_); }

    void write(const std::string& path, const std::string& text) {
        std::filesystem::create_directories((root_ / path).parent_path());
        std::ofstream(root_ / path) << text;
    }
    void write_v2(const std::string& level, const std::string& max, uint64_t current,
                  uint64_t inactive_file = 0) {
        const std::string folder = "sys/fs/cgroup" + level + "/";
        write(folder + "memory.max", max + "\n");
        write(folder + "memory.current", std::to_string(current) + "\n");
        write(folder + "memory.stat",
              "anon 5\nfile 9\ninactive_file " + std::to_string(inactive_file) + "\n");
    }
    MemoryLimits read() const { return read_memory_limits(root_.string()); }

    std::filesystem::path root_;
};

TEST_F(MemoryLimitsTest, WithoutCgroupMemAvailableBounds) {
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.mem_total_bytes, 32 * kGiB);
    EXPECT_EQ(limits.mem_available_bytes, 16 * kGiB);
    EXPECT_EQ(limits.cgroup_limit_bytes, MemoryLimits::kUnlimited);
    EXPECT_EQ(limits.available_bytes, 16 * kGiB);
    EXPECT_EQ(limits.bound, MemoryBound::mem_available);
    EXPECT_EQ(limits.cpu_quota, 0);
    EXPECT_EQ(limits.available_text(), "16.0 GiB (MemAvailable, of 32.0 GiB in all)");
}

TEST_F(MemoryLimitsTest, FilesThatAreMapped) {
    EXPECT_EQ(read().mapped_bytes, 0U);
    write("proc/self/status", "Name:\tx\nRssAnon:\t       7 kB\nRssFile:\t 1048576 kB\n");
    EXPECT_EQ(read().mapped_bytes, kGiB);
}

TEST_F(MemoryLimitsTest, V2LimitLessUseLessReclaimableCacheBounds) {
    write("proc/self/cgroup", "0::/run/job\n");
    write_v2("/run/job", std::to_string(8 * kGiB), 3 * kGiB, kGiB);
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.available_bytes, 6 * kGiB);
    EXPECT_EQ(limits.bound, MemoryBound::cgroup);
    EXPECT_EQ(limits.cgroup_path, "/run/job");
    EXPECT_EQ(limits.available_text(), "6.0 GiB (cgroup limit 8.0 GiB, 2.0 GiB in use)");
}

TEST_F(MemoryLimitsTest, V2TightestLevelOfTheHierarchyCounts) {
    write("proc/self/cgroup", "0::/run/outer/middle/inner\n");
    write_v2("/run/outer/middle/inner", "max", kGiB);
    write_v2("/run/outer/middle", std::to_string(10 * kGiB), 2 * kGiB);
    write_v2("/run/outer", std::to_string(12 * kGiB), 9 * kGiB);  // siblings use most of it
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.available_bytes, 3 * kGiB);
    EXPECT_EQ(limits.cgroup_path, "/run/outer");
}

TEST_F(MemoryLimitsTest, V2ContainerSeesItsCgroupAsRoot) {
    write("proc/self/cgroup", "0::/run/not/mounted/here\n");
    write_v2("", std::to_string(4 * kGiB), kGiB);
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.available_bytes, 3 * kGiB);
    EXPECT_EQ(limits.cgroup_path, "/");
}

TEST_F(MemoryLimitsTest, V1UnlimitedLeafLimitedParent) {
    write("proc/self/cgroup", "5:cpuset:/a\n4:hugetlb,memory:/a/b\n1:name=systemd:/x\n0::/\n");
    const std::string base = "sys/fs/cgroup/memory/a";
    write(base + "/b/memory.limit_in_bytes", "9223372036854771712\n");
    write(base + "/b/memory.usage_in_bytes", "1\n");
    write(base + "/memory.limit_in_bytes", std::to_string(2 * kGiB));
    write(base + "/memory.usage_in_bytes", std::to_string(kGiB));
    write(base + "/memory.stat", "inactive_file 7\ntotal_inactive_file 1024\n");
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.cgroup_limit_bytes, 2 * kGiB);
    EXPECT_EQ(limits.cgroup_used_bytes, kGiB - 1024);
    EXPECT_EQ(limits.available_bytes, kGiB + 1024);
}

TEST_F(MemoryLimitsTest, LimitBelowUseLeavesNothing) {
    write("proc/self/cgroup", "0::/\n");
    write_v2("", "100", 200);
    EXPECT_EQ(read().available_bytes, 0U);
}

TEST_F(MemoryLimitsTest, LooseCgroupDoesNotBound) {
    write("proc/self/cgroup", "0::/\n");
    write_v2("", std::to_string(30 * kGiB), kGiB);
    EXPECT_EQ(read().bound, MemoryBound::mem_available);
}

TEST_F(MemoryLimitsTest, CpuQuotaV1AndV2) {
    write("proc/self/cgroup", "3:cpu,cpuacct:/j\n0::/j\n");
    write("sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_quota_us", "-1\n");
    write("sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_period_us", "100000\n");
    EXPECT_EQ(read().cpu_quota, 0);
    write("sys/fs/cgroup/cpu,cpuacct/j/cpu.cfs_quota_us", "250000\n");
    EXPECT_DOUBLE_EQ(read().cpu_quota, 2.5);
    write("sys/fs/cgroup/j/cpu.max", "max 100000\n");
    EXPECT_DOUBLE_EQ(read().cpu_quota, 2.5);
    write("sys/fs/cgroup/j/cpu.max", "150000 100000\n");
    EXPECT_DOUBLE_EQ(read().cpu_quota, 1.5);
}

TEST_F(MemoryLimitsTest, BrokenAndMissingFilesDoNotLimit) {
    write("proc/self/cgroup", "garbage\n:\n0::/x\n");
    write("sys/fs/cgroup/x/memory.max", "\n");
    write("proc/meminfo", "MemTotal: 1024 kB\nMemAvailableX: 5 kB\nMemAvailable\n");
    const MemoryLimits limits = read();
    EXPECT_EQ(limits.available_bytes, 1024U * 1024U);
    EXPECT_EQ(limits.cgroup_limit_bytes, MemoryLimits::kUnlimited);
}

TEST(MemoryLimits, OfThisMachine) {
    const MemoryLimits limits = read_memory_limits();
    EXPECT_GT(limits.mem_total_bytes, 64U << 20);
    EXPECT_GT(limits.available_bytes, 0U);
    EXPECT_LE(limits.available_bytes, limits.mem_total_bytes);
    EXPECT_GT(limits.memlock_bytes, 0U);
}

TEST(MemoryLimits, BytesText) {
    EXPECT_EQ(bytes_text(0), "0 B");
    EXPECT_EQ(bytes_text(1023), "1023 B");
    EXPECT_EQ(bytes_text(1024), "1.0 KiB");
    EXPECT_EQ(bytes_text((uint64_t{1} << 20) - 1), "1.0 MiB");
    EXPECT_EQ(bytes_text(22978298675), "21.4 GiB");
    EXPECT_EQ(bytes_text(UINT64_MAX), "16384.0 PiB");
}

}  // namespace
}  // namespace shoal::offload
