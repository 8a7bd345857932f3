// Faults of disks, limits and rights, as a user of `shoal run` would meet them: the same tokens, or
// one clear line before anything is read; never a signal. Counted, by what came of each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>

#include "tests/offload/fault_row.hpp"
#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using offload::FaultRow;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int kCannotInject = 77;
constexpr uid_t kNobody = 65534;

void limit(int resource, rlim_t bytes) {
    const rlimit value = {bytes, bytes};
    if (setrlimit(static_cast<__rlimit_resource>(resource), &value) != 0) _exit(kCannotInject);
}

void become_nobody() {
    if (getuid() == 0 && setuid(kNobody) != 0) _exit(kCannotInject);
}

// What is mounted from here on goes away with the process.
void own_mounts() {
    if (unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
        _exit(kCannotInject);
    }
}

void mount_read_only(const std::string& dir) {
    own_mounts();
    const char* at = dir.c_str();
    if (mount(at, at, nullptr, MS_BIND, nullptr) == 0 &&
        mount(nullptr, at, nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) == 0) {
        return;
    }
    _exit(kCannotInject);
}

// A file system of 8 MiB.
void mount_small_disk(const std::string& dir, const std::string& image) {
    own_mounts();
    const std::string make = "truncate -s 8M '" + image + "' && mkfs.ext4 -q '" + image +
                             "' && mount -o loop '" + image + "' '" + dir + "'";
    if (std::system(("(" + make + ") >/dev/null 2>&1").c_str()) != 0) _exit(kCannotInject);
}

// As containers do it.
void refuse_io_uring() {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog program = {4, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        _exit(kCannotInject);
    }
}

class ToolDiskFaults : public testing::Test {
protected:
    void SetUp() override {
        if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
        std::string pattern = testing::TempDir() + "faults-XXXXXX";
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        dir_ = pattern;
        std::filesystem::permissions(dir_, std::filesystem::perms::all);
    }
    void TearDown() override {
        if (!dir_.empty()) std::filesystem::remove_all(dir_);
    }
    std::string folder(const std::string& name) const {
        std::filesystem::create_directory(dir_ + "/" + name);
        return dir_ + "/" + name;
    }
    static Invocation run(const std::string& disk, std::vector<std::string> more = {}) {
        Invocation invocation;
        invocation.arguments = {"run", "-m", model_path(), "-t", "1", "-n", "4", "--temp", "0",
                                "--json", "--kv-disk", disk};
        if (more.empty()) more = {"-c", "512", "-p", "The sea was calm and"};
        invocation.arguments.insert(invocation.arguments.end(), more.begin(), more.end());
        return invocation;
    }
    std::string dir_;
};

struct RefusedRun {
    const char* what;
    Invocation invocation;
    std::vector<std::string> parts;
};

TEST_F(ToolDiskFaults, RefusedInOneLineBeforeTheModelIsRead) {
    const std::string closed = folder("closed");
    std::filesystem::permissions(closed, std::filesystem::perms(0555));
    std::ofstream(dir_ + "/file") << "x";
    const std::string small = folder("small");
    const std::string image = dir_ + "/image";
    const std::vector<std::string> large = {"-c", "32768", "-p", "x"};
    std::vector<RefusedRun> cases = {
        {"4: a full disk", run(small, large), {"-c 32768: needs 720.0 MiB (754,974,720 B) under "
                                               "disk.dir; ", " are free there"}},
        {"4: RLIMIT_FSIZE", run(dir_, large), {"needs 720.0 MiB (754,974,720 B) under disk.dir; "
                                               "1.0 MiB (1,048,576 B)"}},
        {"4: disk.kv_bytes", run(dir_, {"-c", "32768", "-p", "x", "--disk.kv_bytes", "1MiB"}),
         {"1.0 MiB (1,048,576 B) are free there, or allowed by disk.kv_bytes"}},
        {"14: too little RAM", run(dir_, {"-c", "32768", "-p", "x", "--kv-ram", "1MiB"}),
         {"-c 32768: needs ", " for the KV cache; host.kv_bytes allows 1.0 MiB"}},
        {"23: a misspelt key", run(dir_, {"-p", "x", "--disk.dri", "/tmp"}),
         {"--disk.dri: unknown key ([disk] has: dir, "}},
        {"32: missing", run(dir_ + "/none"), {"/none\": no such directory"}},
        {"32: a file", run(dir_ + "/file"), {"is not a directory"}},
        {"32: not writable", run(closed), {"is not writable for this user"}},
        {"32: read-only", run(dir_), {"is on a read-only file system"}},
        {"32: RAM under another name", run("/dev/shm"), {"keeps files in RAM (tmpfs)"}},
    };
    cases[0].invocation.before_start = [&] { mount_small_disk(small, image); };
    cases[1].invocation.before_start = [] { limit(RLIMIT_FSIZE, 1 << 20); };
    cases[7].invocation.before_start = become_nobody;
    cases[8].invocation.before_start = [&] { mount_read_only(dir_); };
    FaultRow row{"4, 14, 23, 32: refused by shoal run"};
    for (const RefusedRun& c : cases) {
        const Outcome outcome = run_tool(c.invocation);
        if (outcome.exit_code == kCannotInject) {
            std::printf("  row %s: no right to inject it here\n", c.what);
            continue;
        }
        ++row.cases;
        ++row.injected;
        EXPECT_EQ(outcome.exit_code, 2) << c.what << ": " << outcome.err;
        EXPECT_EQ(outcome.out, "") << c.what;
        EXPECT_THAT(outcome.err, StartsWith("shoal: ")) << c.what;
        for (const std::string& part : c.parts) EXPECT_THAT(outcome.err, HasSubstr(part)) << c.what;
        row.refused += outcome.exit_code == 2 ? 1 : 0;
    }
    EXPECT_GE(row.injected, 7U);
    EXPECT_EQ(row.refused, row.injected);
    std::filesystem::permissions(closed, std::filesystem::perms::all);
}

TEST_F(ToolDiskFaults, SameTokensWhereAMachineAllowsLess) {
    const Outcome calm = run_tool(run(dir_));
    ASSERT_EQ(calm.exit_code, 0) << calm.err;
    FaultRow row{"12, 13: less than usual, shoal run goes on"};
    // nothing where it cannot be injected
    const auto expect_same = [&](const char* what, const Invocation& invocation) {
        std::optional<Outcome> outcome = run_tool(invocation);
        if (outcome->exit_code == kCannotInject || outcome->exit_code == 127) {
            std::printf("  row %s: no right to inject it here\n", what);
            outcome.reset();
            return outcome;
        }
        ++row.cases;
        ++row.injected;
        EXPECT_EQ(outcome->exit_code, 0) << what << ": " << outcome->err;
        EXPECT_EQ(outcome->json()["tokens"], calm.json()["tokens"]) << what;
        return outcome;
    };
    Invocation locked = run(dir_);
    locked.before_start = [] {
        limit(RLIMIT_MEMLOCK, 64 << 10);
        become_nobody();
    };
    if (const auto unregistered = expect_same("13: memlock 64 KiB, not root", locked)) {
        EXPECT_EQ(unregistered->json()["stats"]["disk_paths_refused"], 1);
        ++row.degraded;
    }

    Invocation no_ring = run(dir_);
    no_ring.arguments.emplace_back("-v");
    no_ring.before_start = refuse_io_uring;
    if (const auto threads = expect_same("12: io_uring refused", no_ring)) {
        EXPECT_EQ(threads->json()["stats"]["disk_paths_refused"], 1);
        EXPECT_THAT(threads->err, HasSubstr("io_uring is refused here (io_uring_setup: "));
        ++row.degraded;
    }
    EXPECT_GE(row.injected, 1U);
    EXPECT_EQ(row.exact + row.degraded, row.injected);
}

}  // namespace
}  // namespace shoal::tool_test
