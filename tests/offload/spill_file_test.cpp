// The spill file: what it is, and every way in which a directory can be no place for one.
#include "offload/spill_file.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/offload/tier_support.hpp"

namespace shoal::offload {
namespace {

class SpillFileTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (spill_dir().empty()) GTEST_SKIP() << "no direct I/O here";
        std::string pattern = spill_dir() + "/spill-test-XXXXXX";
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        dir_ = pattern;
    }
    void TearDown() override {
        if (!dir_.empty()) std::filesystem::remove_all(dir_);
    }
    size_t entries() const {
        return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(dir_), {}));
    }
    // The refusal, which names the key and the directory and leaves nothing behind.
    static std::string refusal(const std::string& dir, uint64_t bytes, StatusCode code) {
        const Result<SpillFile> file = SpillFile::create(dir, bytes);
        EXPECT_FALSE(file);
        if (file) return "";
        EXPECT_EQ(file.status().code(), code) << file.status().message();
        const std::string message = file.status().message();
        EXPECT_EQ(message.find("disk.dir = \"" + dir + "\": "), 0U) << message;
        return message;
    }
    static bool has(const std::string& text, const std::string& part) {
        return text.find(part) != std::string::npos;
    }
    std::string dir_;
};

TEST_F(SpillFileTest, HasNoNameIsPrivateAndAllocated) {
    const mode_t before = umask(0);
    const Result<SpillFile> file = SpillFile::create(dir_, 10'000'000);
    umask(before);
    ASSERT_TRUE(file) << file.status().message();
    EXPECT_EQ(entries(), 0U);
    struct stat info {};
    ASSERT_EQ(fstat(file->descriptor(), &info), 0);
    EXPECT_EQ(info.st_nlink, 0U);
    EXPECT_EQ(info.st_mode, static_cast<mode_t>(S_IFREG | 0600));
    EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, file->bytes());
    EXPECT_GE(file->alignment(), 4096U);
    EXPECT_GE(file->bytes(), 10'000'000U);
    EXPECT_LT(file->bytes(), 10'000'000U + file->alignment());
    EXPECT_EQ(file->bytes() % file->alignment(), 0U);
    EXPECT_NE(fcntl(file->descriptor(), F_GETFL) & O_DIRECT, 0);
    EXPECT_NE(fcntl(file->descriptor(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(SpillFileTest, SpaceComesBackAndDescriptorsToo) {
    struct statvfs before {};
    struct statvfs after {};
    ASSERT_EQ(statvfs(dir_.c_str(), &before), 0);
    const int lowest = dup(0);
    close(lowest);
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(SpillFile::create(dir_, uint64_t{1} << 30));
    const int lowest_after = dup(0);
    close(lowest_after);
    EXPECT_EQ(lowest, lowest_after);
    ASSERT_EQ(statvfs(dir_.c_str(), &after), 0);
    // Others write to this disk as well: twenty times 1 GiB would show all the same.
    EXPECT_LT(static_cast<int64_t>(before.f_bavail - after.f_bavail) *
                  static_cast<int64_t>(before.f_frsize),
              int64_t{10} << 30);
}

TEST_F(SpillFileTest, NoDirectory) {
    EXPECT_TRUE(has(refusal("", kUnit, StatusCode::invalid_argument), "must name a directory"));
    EXPECT_TRUE(has(refusal(dir_ + "/none", kUnit, StatusCode::invalid_argument),
                    "no such directory"));
    std::ofstream(dir_ + "/file") << "x";
    EXPECT_TRUE(has(refusal(dir_ + "/file", kUnit, StatusCode::invalid_argument),
                    "is not a directory"));
    ASSERT_EQ(mkfifo((dir_ + "/fifo").c_str(), 0600), 0);
    EXPECT_TRUE(has(refusal(dir_ + "/fifo", kUnit, StatusCode::invalid_argument),
                    "is not a directory"));
}

TEST_F(SpillFileTest, SymlinksInTheDirectoryAreNotTouched) {
    std::ofstream(dir_ + "/victim") << "precious";
    for (int i = 0; i < 50; ++i) {
        std::filesystem::create_symlink(dir_ + "/victim",
                                        dir_ + "/.shoal-" + std::to_string(getpid()) + "-" +
                                            std::to_string(i));
    }
    ASSERT_TRUE(SpillFile::create(dir_, kUnit));
    EXPECT_EQ(entries(), 51U);
    std::string text;
    std::ifstream(dir_ + "/victim") >> text;
    EXPECT_EQ(text, "precious");
    // A directory that is reached by a symlink is the user's choice.
    std::filesystem::create_directory(dir_ + "/real");
    std::filesystem::create_directory_symlink(dir_ + "/real", dir_ + "/link");
    EXPECT_TRUE(SpillFile::create(dir_ + "/link", kUnit));
}

TEST_F(SpillFileTest, TooLittleSpaceNamesBothFigures) {
    const std::string message = refusal(dir_, uint64_t{1} << 50, StatusCode::out_of_memory);
    EXPECT_TRUE(has(message, "1.0 PiB (1,125,899,906,842,624 B) is wanted")) << message;
    EXPECT_TRUE(has(message, " B) are free")) << message;
    EXPECT_TRUE(has(refusal(dir_, UINT64_MAX, StatusCode::out_of_memory), "is wanted"));
    EXPECT_TRUE(has(refusal(dir_, INT64_MAX, StatusCode::out_of_memory), "is wanted"));
    EXPECT_EQ(entries(), 0U);
}

TEST_F(SpillFileTest, RoomIsWhatIsFreeAndTakesNothing) {
    struct statvfs space {};
    ASSERT_EQ(statvfs(dir_.c_str(), &space), 0);
    const Result<uint64_t> room = SpillFile::room(dir_);
    ASSERT_TRUE(room) << room.status().message();
    // Others write to this disk as well.
    EXPECT_NEAR(static_cast<double>(*room),
                static_cast<double>(uint64_t{space.f_bavail} * space.f_frsize), 4e9);
    EXPECT_EQ(entries(), 0U);
    EXPECT_EQ(SpillFile::room(dir_ + "/none").status().message(),
              SpillFile::create(dir_ + "/none", kUnit).status().message());
}

TEST_F(SpillFileTest, MemoryIsNoDisk) {
    struct statfs info {};
    const std::string shm = "/dev/shm";
    if (statfs(shm.c_str(), &info) != 0 || info.f_type != TMPFS_MAGIC) {
        GTEST_SKIP() << "no tmpfs here";
    }
    const std::string message = refusal(shm, kUnit, StatusCode::unsupported);
    EXPECT_TRUE(has(message, "tmpfs")) << message;
    EXPECT_TRUE(has(message, "no direct I/O")) << message;
}

// What follows happens in a child: limits and users of a process cannot be taken back.
int in_child(const std::function<bool()>& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body() ? 0 : 1);
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

TEST_F(SpillFileTest, FileSizeLimitIsRefusedAndDoesNotKill) {
    const int status = in_child([&] {
        const struct rlimit limit = {1 << 20, 1 << 20};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
        const Result<SpillFile> file = SpillFile::create(dir_, uint64_t{8} << 20);
        if (file || file.status().code() != StatusCode::out_of_memory) return false;
        const std::string message = file.status().message();
        sigset_t pending;
        sigpending(&pending);
        return has(message, "8.0 MiB (8,388,608 B) is wanted") && has(message, "RLIMIT_FSIZE") &&
               has(message, "end at 1.0 MiB") && sigismember(&pending, SIGXFSZ) == 0 &&
               SpillFile::create(dir_, uint64_t{1} << 20).is_ok();
    });
    EXPECT_EQ(status, 0);
}

TEST_F(SpillFileTest, NotWritableForThisUser) {
    std::filesystem::create_directory(dir_ + "/locked");
    std::filesystem::permissions(dir_, std::filesystem::perms(0711));
    std::filesystem::permissions(dir_ + "/locked", std::filesystem::perms(0555));
    const int status = in_child([&] {
        // Whatever lies above may be closed to this user.
        if (chdir(dir_.c_str()) != 0 || (getuid() == 0 && setuid(65534) != 0)) return false;
        const Result<SpillFile> file = SpillFile::create("locked", kUnit);
        return !file && file.status().code() == StatusCode::invalid_argument &&
               has(file.status().message(), "is not writable");
    });
    EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace shoal::offload
