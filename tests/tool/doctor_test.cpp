// shoal doctor: it sees what this process is given, and says no where Shoal cannot run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <iterator>

#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using testing::HasSubstr;

nlohmann::json finding(const nlohmann::json& report, const std::string& name) {
    for (const nlohmann::json& one : report["findings"]) {
        if (one["name"] == name) return one;
    }
    return {};
}

nlohmann::json doctor(std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.begin(), {"doctor", "--json"});
    const Outcome outcome = run_tool(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    return outcome.json();
}

TEST(ToolDoctor, OneLineForEverythingThatMatters) {
    const Outcome outcome = run_tool({"doctor"});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 13)
        << "a line each, and the verdict";
    const nlohmann::json report = doctor();
    EXPECT_EQ(report["can_run"], true);
    for (const char* name : {"processor", "cores", "pinning", "memory", "cgroup memory",
                             "huge pages", "locked memory", "disk I/O", "GPU", "llama.cpp",
                             "plugin", "configuration"}) {
        const nlohmann::json one = finding(report, name);
        ASSERT_TRUE(one.is_object()) << name;
        EXPECT_NE(one["found"], "") << name;
        EXPECT_NE(one["means"], "") << name;
        EXPECT_THAT(outcome.out, HasSubstr(std::string(" ") + name));
    }
    EXPECT_THAT(finding(report, "plugin")["found"].get<std::string>(),
                HasSubstr("libggml-shoal.so"));
}

// As a container's rules do it: the system call is refused, for this process and those it starts.
bool refuse_io_uring() {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program = {std::size(filter), filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(ToolDoctor, SaysHowTheDiskIsReadAndWhy) {
    const nlohmann::json here = finding(doctor(), "disk I/O");
    EXPECT_THAT(here["found"].get<std::string>(),
                testing::AnyOf(testing::MatchesRegex("io_uring \\(.+\\)"),
                               HasSubstr("for io_uring is refused (io_uring_setup: ")));
    const pid_t child = fork();
    if (child == 0) {
        if (!refuse_io_uring()) _exit(2);
        const nlohmann::json refused = finding(doctor(), "disk I/O");
        EXPECT_EQ(refused["verdict"], "warning");
        EXPECT_THAT(refused["found"].get<std::string>(),
                    testing::StartsWith("32 threads with preadv and pwritev, for io_uring is "
                                        "refused (io_uring_setup: Operation not permitted"));
        _exit(testing::Test::HasFailure() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

// The limits of this process are inherited by the tool: the findings must follow them.
TEST(ToolDoctor, SeesTheLimitsOfItsProcess) {
    cpu_set_t all;
    ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
    rlimit memlock = {};
    ASSERT_EQ(getrlimit(RLIMIT_MEMLOCK, &memlock), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    }
    const rlimit low = {std::min<rlim_t>(20480, memlock.rlim_max), memlock.rlim_max};
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &low), 0);
    const nlohmann::json report = doctor();
    sched_setaffinity(0, sizeof(all), &all);
    setrlimit(RLIMIT_MEMLOCK, &memlock);
    EXPECT_THAT(finding(report, "cores")["found"].get<std::string>(),
                testing::MatchesRegex("1 for this process, 1 hardware thread(, cgroup quota.*)?"));
    EXPECT_EQ(finding(report, "locked memory")["found"], "20.0 KiB");
}

TEST(ToolDoctor, FollowsTheConfiguration) {
    const nlohmann::json report =
        doctor({"--host.huge_pages", "false", "--host.kv_bytes", "900TiB"});
    EXPECT_EQ(finding(report, "huge pages")["verdict"], "ok");
    EXPECT_EQ(finding(report, "memory")["verdict"], "warning");
    EXPECT_THAT(finding(report, "configuration")["found"].get<std::string>(),
                testing::StartsWith("2 of "));
    const nlohmann::json small = finding(doctor({"--host.kv_bytes", "32MiB"}), "memory");
    EXPECT_EQ(small["verdict"], "ok") << "enough for a short context of a small model";
    EXPECT_THAT(small["means"].get<std::string>(),
                testing::StartsWith("of it the KV cache may take 32.0 MiB"));
}

TEST(ToolDoctor, FailsWhereShoalCannotRun) {
    const std::string file = temporary_file("bad.toml", "[budget]\nrows = 0\n");
    const Outcome bad = run_tool({.arguments = {"doctor", "--json"},
                                  .environment = {"SHOAL_CONFIG=" + file}});
    EXPECT_EQ(bad.exit_code, 1);
    EXPECT_EQ(bad.json()["can_run"], false);
    EXPECT_EQ(finding(bad.json(), "configuration")["verdict"], "failure");
    EXPECT_EQ(finding(bad.json(), "plugin")["verdict"], "failure") << "it reads the same file";
    EXPECT_THAT(finding(bad.json(), "plugin")["found"].get<std::string>(),
                HasSubstr("budget.rows = 0"));

    const Outcome little = run_tool({"doctor", "--host.kv_bytes", "4KiB"});
    EXPECT_EQ(little.exit_code, 1);
    EXPECT_THAT(little.out, HasSubstr("failure  memory"));
    EXPECT_THAT(little.out, HasSubstr("4.0 KiB is not enough for any context: the smallest takes"));
    EXPECT_THAT(little.out, HasSubstr("(host.kv_bytes)"));
    EXPECT_THAT(little.out, testing::EndsWith("Shoal cannot run here\n"));
}

TEST(ToolDoctor, FailsWithoutThePlugin) {
    const std::string folder = temporary_file("folder", "") + ".d";
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(SHOAL_TEST_TOOL, folder + "/shoal");
    const Outcome outcome =
        run_tool({.arguments = {"doctor", "--json"}, .program = folder + "/shoal"});
    std::filesystem::remove_all(folder);
    EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
    EXPECT_EQ(finding(outcome.json(), "plugin")["verdict"], "failure");
    EXPECT_THAT(finding(outcome.json(), "plugin")["found"].get<std::string>(),
                HasSubstr("not beside the program"));
}

// A management library that tells of one device; see tests/fakes/nvml.cpp.
TEST(ToolDoctor, NamesTheGpuAndItsDriver) {
    const Outcome outcome = run_tool({.arguments = {"doctor", "--json"},
                                      .environment = {"LD_LIBRARY_PATH=" SHOAL_TEST_FAKES}});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(finding(outcome.json(), "GPU")["found"],
              "Testbed 9000 (80.0 GiB), driver 999.11.22");
}

}  // namespace
}  // namespace shoal::tool_test
