// Files of saved sequences under everything that happens to files: flipped bytes, cuts, wrong
// paths, full disks, a process that is killed.
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>

#include "tests/runtime/saved_support.hpp"

namespace shoal::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Status load_status(const std::string& path) { return PlainSequence::load(path).status(); }

// Exit code of a child that runs `body`; -signal when one ended it.
template <typename Body>
int in_child(Body&& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body());
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

class SavedFile : public ::testing::Test {
protected:
    void save(PlainSequence& sequence) {
        const Status saved = sequence.save(path_);
        ASSERT_TRUE(saved) << saved.message();
    }
    TestFolder folder_;
    std::string path_ = folder_.file("sequence");
};

TEST_F(SavedFile, ComesBackAsItWas) {
    PlainSequence sequence(tiny_shape(3), 1000, 1);
    sequence.profile = "a profile";
    sequence.notes.positions.assign(1000, 5);
    sequence.notes.logits.assign(300000, 0.5F);  // two chunks
    save(sequence);
    const Result<PlainSequence> loaded = PlainSequence::load(path_);
    ASSERT_TRUE(loaded) << loaded.status().message();
    EXPECT_TRUE(loaded->same_as(sequence));
    EXPECT_EQ(loaded->notes.positions, sequence.notes.positions);
    EXPECT_EQ(loaded->notes.logits, sequence.notes.logits);
    EXPECT_EQ(loaded->notes.slots, sequence.order);
    EXPECT_EQ(folder_.file_count(), 1U);
    struct stat info = {};
    ASSERT_EQ(stat(path_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
    EXPECT_EQ(info.st_size % kSavedPageBytes, 0);
}

TEST_F(SavedFile, SmallAndLargeChunksOfAwkwardSizes) {
    // 1,024 heads of 256 in f32: a row of K fills a chunk, one of V does not.
    ModelShape wide;
    wide.layers = {{LayerKind::full, 1024, 256, 48, 0}, {LayerKind::none, 0, 0, 0, 0}};
    wide.q_head_count = 1024;
    wide.rows = {DType::f32, DType::f16};
    PlainSequence two(wide, 2, 1);
    save(two);
    Result<PlainSequence> loaded = PlainSequence::load(path_);
    ASSERT_TRUE(loaded) << loaded.status().message();
    EXPECT_TRUE(loaded->same_as(two));
    for (const uint32_t tokens : {1U, 3U, 127U, 128U, 129U, 16383U, 16384U, 16385U}) {
        PlainSequence sequence(tiny_shape(2), tokens, tokens);
        save(sequence);
        loaded = PlainSequence::load(path_);
        ASSERT_TRUE(loaded) << loaded.status().message();
        EXPECT_TRUE(loaded->same_as(sequence)) << tokens;
    }
    wide.layers[0].kv_head_count = 2048;
    wide.q_head_count = 2048;
    PlainSequence wider(wide, 1, 1);
    EXPECT_THAT(wider.save(path_).message(),
                HasSubstr("layers[0].kv_head_count = 2048: must be 1 .. 1024"));
}

void flip_bit(const std::string& path, size_t at, uint32_t bit) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(at));
    const char flipped = static_cast<char>(file.get() ^ (1 << bit));
    file.seekp(static_cast<std::streamoff>(at));
    file.put(flipped);
}

TEST_F(SavedFile, EveryFlippedByteIsRefused) {
    PlainSequence sequence(tiny_shape(), 3, 1);
    save(sequence);
    const std::string good = read_file(path_);
    ASSERT_EQ(good.size(), 5U * kSavedPageBytes);  // front, order, token ids, K, V
    // All of the front; of the chunks a sample, as each try goes to the disk and back.
    for (size_t at = 0; at < good.size(); at += at < kSavedPageBytes ? 1 : 53) {
        flip_bit(path_, at, static_cast<uint32_t>(at % 8));
        const Status status = load_status(path_);
        flip_bit(path_, at, static_cast<uint32_t>(at % 8));
        ASSERT_FALSE(status) << "byte " << at;
        ASSERT_TRUE(status.code() == StatusCode::corrupt ||
                    status.code() == StatusCode::unsupported)
            << "byte " << at << ": " << status.message();
        ASSERT_THAT(status.message(), HasSubstr(path_)) << "byte " << at;
    }
    EXPECT_EQ(read_file(path_), good);
    EXPECT_TRUE(load_status(path_));
}

TEST_F(SavedFile, EveryCutIsRefused) {
    PlainSequence sequence(tiny_shape(), 3, 1);
    save(sequence);
    const std::string good = read_file(path_);
    for (size_t bytes = good.size(); bytes-- > 0;) {
        ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(bytes)), 0);
        ASSERT_EQ(load_status(path_).code(), StatusCode::corrupt) << bytes << " bytes";
    }
    write_file(path_, good + std::string(kSavedPageBytes, '\0'));
    EXPECT_EQ(load_status(path_).code(), StatusCode::corrupt);
}

TEST_F(SavedFile, ChunksOfAnotherFileAreRefused) {
    PlainSequence sequence(tiny_shape(), 3, 1);
    save(sequence);
    const std::string first = read_file(path_);
    PlainSequence another(tiny_shape(), 3, 2);
    save(another);
    std::string mixed = read_file(path_);
    const size_t last = mixed.size() - kSavedPageBytes;
    mixed.replace(last, kSavedPageBytes, first.substr(last));
    write_file(path_, mixed);
    EXPECT_THAT(load_status(path_).message(), HasSubstr("chunk 3 of 4"));
    // The same bytes at another place.
    mixed = first;
    mixed.replace(last, kSavedPageBytes, first.substr(last - kSavedPageBytes, kSavedPageBytes));
    write_file(path_, mixed);
    EXPECT_THAT(load_status(path_).message(), HasSubstr("chunk 3 of 4"));
}

TEST_F(SavedFile, AnotherVersionIsRefusedByName) {
    PlainSequence sequence(tiny_shape(), 3, 1);
    save(sequence);
    std::string bytes = read_file(path_);
    bytes[8] = 2;
    write_file(path_, bytes);
    EXPECT_EQ(load_status(path_).code(), StatusCode::unsupported);
    EXPECT_THAT(load_status(path_).message(),
                HasSubstr("version = 2: this build reads version 1"));
    write_file(path_, "{\"format\": \"shoal-profile\"}");
    EXPECT_THAT(load_status(path_).message(), HasSubstr("no saved sequence"));
}

TEST_F(SavedFile, PathsThatAreNoFilesAreRefused) {
    PlainSequence sequence(tiny_shape(), 3, 1);
    save(sequence);
    const std::string link = folder_.file("link");
    const std::string pipe = folder_.file("pipe");
    ASSERT_EQ(symlink(path_.c_str(), link.c_str()), 0);
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    struct Case {
        std::string path;
        const char* load;
        const char* save;
    };
    for (const Case& c : {Case{link, "symbolic link", "symbolic link"},
                          Case{pipe, "not a regular file", "not a regular file"},
                          Case{folder_.path(), "not a regular file", "not a regular file"},
                          Case{"/dev/null", "not a regular file", "not a regular file"},
                          Case{folder_.file("none/f"), "No such file", "No such file"},
                          Case{path_ + "/f", "Not a directory", "Not a directory"},
                          Case{"", "must not be empty", "must not be empty"}}) {
        EXPECT_THAT(load_status(c.path).message(), HasSubstr(c.load)) << c.path;
        EXPECT_THAT(sequence.save(c.path).message(), HasSubstr(c.save)) << c.path;
    }
    EXPECT_THAT(load_status(folder_.file("none")).message(), HasSubstr("No such file"));
    EXPECT_EQ(load_status(folder_.file("none")).code(), StatusCode::not_found);
    EXPECT_TRUE(std::filesystem::is_symlink(link));
    EXPECT_TRUE(load_status(path_));
    EXPECT_EQ(folder_.file_count(), 3U);
}

TEST_F(SavedFile, ALimitOnFileSizesLeavesTheOldFile) {
    PlainSequence old(tiny_shape(), 3, 1);
    save(old);
    PlainSequence large(tiny_shape(4), 5000, 2);
    const int code = in_child([&] {
        const struct rlimit limit = {256 << 10, 256 << 10};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
        const Status saved = large.save(path_);
        return !saved && saved.message().find("RLIMIT_FSIZE") != std::string::npos ? 0 : 1;
    });
    EXPECT_EQ(code, 0);
    EXPECT_TRUE(PlainSequence::load(path_)->same_as(old));
    EXPECT_EQ(folder_.file_count(), 1U);
}

TEST_F(SavedFile, AFullFileSystemLeavesTheOldFile) {
    PlainSequence old(tiny_shape(), 3, 1);
    PlainSequence large(tiny_shape(4), 5000, 2);
    constexpr int kNoMount = 77;
    const int code = in_child([&] {
        if (unshare(CLONE_NEWNS) != 0 ||
            mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=512k") != 0) {
            return kNoMount;
        }
        if (!old.save(path_)) return 2;
        const Status saved = large.save(path_);
        if (saved.code() != StatusCode::out_of_memory) return 3;
        if (saved.message().find("are free in its file system") == std::string::npos) return 4;
        if (folder_.file_count() != 1) return 5;
        return PlainSequence::load(path_)->same_as(old) ? 0 : 6;
    });
    if (code == kNoMount) GTEST_SKIP() << "no right to mount a file system of its own";
    EXPECT_EQ(code, 0);
}

// A process killed anywhere leaves the old sequence or the new one.
TEST_F(SavedFile, AKilledSaveLeavesTheOldFileOrTheNew) {
    PlainSequence old(tiny_shape(2), 200, 1);
    PlainSequence fresh(tiny_shape(2), 300, 2);
    uint32_t kept = 0;
    uint32_t replaced = 0;
    for (uint32_t last = 0;; ++last) {
        save(old);
        const int code = in_child([&] {
            uint32_t boundary = 0;
            const Status saved = fresh.save(path_, [&] {
                if (boundary++ == last) raise(SIGKILL);
            });
            return saved ? 0 : 1;
        });
        const Result<PlainSequence> found = PlainSequence::load(path_);
        ASSERT_TRUE(found) << found.status().message();
        ASSERT_TRUE(found->same_as(old) || found->same_as(fresh)) << "boundary " << last;
        if (code == 0) break;
        ASSERT_EQ(code, -SIGKILL);
        (found->same_as(old) ? kept : replaced)++;
    }
    EXPECT_GE(kept, 15U);  // create, reserve, 6 chunks and the front twice, sync
    EXPECT_EQ(replaced, 2U);  // renamed, its folder not yet synced; then synced
}

}  // namespace
}  // namespace shoal::testing
