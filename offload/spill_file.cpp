#include "offload/spill_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <system_error>
#include <utility>

#include "shoal/text.hpp"

namespace shoal::offload {

namespace {

constexpr uint32_t kAlignmentLeast = 4096;
constexpr uint32_t kAlignmentMost = 65536;
constexpr mode_t kMode = 0600;
constexpr int kOpenFlags = O_RDWR | O_DIRECT | O_CLOEXEC;

std::string error_text(int error) { return std::generic_category().message(error); }

Status refuse(StatusCode code, const std::string& dir, const std::string& why) {
    return Status::error(code, fmt::format("disk.dir = \"{}\": {}", dir, why));
}

// A file size limit kills the process by SIGXFSZ unless that is held back; what the system call
// returns (EFBIG) is all that is wanted. Of the calling thread, which may hold it back already.
class FileSizeSignalHeld {
public:
    FileSizeSignalHeld() {
        sigemptyset(&signal_);
        sigaddset(&signal_, SIGXFSZ);
        pthread_sigmask(SIG_BLOCK, &signal_, &before_);
    }
    ~FileSizeSignalHeld() {
        if (sigismember(&before_, SIGXFSZ) == 1) return;
        const timespec at_once = {};
        while (sigtimedwait(&signal_, nullptr, &at_once) == SIGXFSZ) {
        }
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    FileSizeSignalHeld(const FileSizeSignalHeld&) = delete;
    FileSizeSignalHeld& operator=(const FileSizeSignalHeld&) = delete;

private:
    sigset_t signal_;
    sigset_t before_;
};

Result<Descriptor> open_dir(const std::string& dir) {
    if (dir.empty()) {
        return refuse(StatusCode::invalid_argument, dir, "must name a directory on a disk");
    }
    Descriptor folder(open(dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (folder.is_open()) return folder;
    switch (errno) {
        case ENOENT:
            return refuse(StatusCode::invalid_argument, dir, "no such directory (make it first)");
        case ENOTDIR: return refuse(StatusCode::invalid_argument, dir, "is not a directory");
        default: return refuse(StatusCode::invalid_argument, dir, error_text(errno));
    }
}

bool keeps_files_in_ram(int folder) {
    struct statfs info {};
    if (fstatfs(folder, &info) != 0) return false;
    return info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC;
}

// For file systems without O_TMPFILE: a name that nobody has, gone as soon as it is open.
int open_and_unlink(int folder) {
    std::random_device random;
    for (int attempt = 0; attempt < 16; ++attempt) {
        const std::string name = fmt::format(".shoal-{}-{:08x}{:08x}", getpid(), random(),
                                             random());
        const int file = openat(folder, name.c_str(), kOpenFlags | O_CREAT | O_EXCL | O_NOFOLLOW,
                                kMode);
        if (file < 0 && errno == EEXIST) continue;
        const int error = errno;
        if (file >= 0 || error == EINVAL) unlinkat(folder, name.c_str(), 0);
        errno = error;
        return file;
    }
    errno = EEXIST;
    return -1;
}

// Some file systems make the file and only then say EINVAL to O_DIRECT: open_and_unlink() removes
// it in that case too.
int open_nameless(int folder) {
    const int file = openat(folder, ".", kOpenFlags | O_TMPFILE, kMode);
    // EISDIR: a kernel that takes O_TMPFILE for O_DIRECTORY.
    if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
    return open_and_unlink(folder);
}

uint64_t free_bytes(int file) {
    struct statvfs info {};
    if (fstatvfs(file, &info) != 0) return 0;
    return uint64_t{info.f_bavail} * info.f_frsize;
}

Status refuse_open(const std::string& dir, int error) {
    switch (error) {
        case EINVAL:
            return refuse(StatusCode::unsupported, dir,
                          "its file system has no direct I/O (O_DIRECT); ext4 and XFS have");
        case EROFS:
            return refuse(StatusCode::invalid_argument, dir, "is on a read-only file system");
        case EACCES:
        case EPERM:
            return refuse(StatusCode::invalid_argument, dir, "is not writable for this user");
        case ENOSPC:
        case EDQUOT:
            return refuse(StatusCode::out_of_memory, dir,
                          fmt::format("no room for one more file ({})", error_text(error)));
        default:
            return refuse(StatusCode::invalid_argument, dir,
                          fmt::format("cannot make a file there: {}", error_text(error)));
    }
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
}

Descriptor::~Descriptor() {
    if (number_ >= 0) close(number_);
}

Result<SpillFile> SpillFile::open_in(const std::string& dir) {
    Result<Descriptor> folder = open_dir(dir);
    if (!folder) return folder.status();
    if (keeps_files_in_ram(folder->number())) {
        return refuse(StatusCode::unsupported, dir,
                      "its file system keeps files in RAM (tmpfs) and has no direct I/O; name a "
                      "directory on a disk");
    }
    Descriptor file(open_nameless(folder->number()));
    if (!file.is_open()) return refuse_open(dir, errno);
    SpillFile spill(std::move(file), dir);
    SHOAL_TRY(spill.find_alignment());
    return spill;
}

Result<SpillFile> SpillFile::create(const std::string& dir, uint64_t bytes) {
    SHOAL_ASSERT(bytes > 0);
    Result<SpillFile> spill = open_in(dir);
    if (!spill) return spill;
    SHOAL_TRY(spill->allocate(bytes));
    SHOAL_TRY(spill->probe());
    return spill;
}

Result<uint64_t> SpillFile::room(const std::string& dir) {
    Result<SpillFile> spill = open_in(dir);
    if (!spill) return spill.status();
    struct rlimit limit {};
    const bool limited = getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
    const uint64_t most = limited ? uint64_t{limit.rlim_cur} : UINT64_MAX;
    const uint64_t bytes = std::min(free_bytes(spill->descriptor()), most);
    if (bytes < spill->alignment()) return bytes;
    SHOAL_TRY(spill->allocate(spill->alignment()));  // whether it can be done at all
    SHOAL_TRY(spill->probe());
    return bytes;
}

Status SpillFile::find_alignment() {
#ifdef STATX_DIOALIGN
    struct statx info {};
    if (statx(descriptor(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) != 0 ||
        (info.stx_mask & STATX_DIOALIGN) == 0) {
        return Status::ok();    // an older kernel: probe() says
    }
    const uint32_t asked = std::max(info.stx_dio_mem_align, info.stx_dio_offset_align);
    if (info.stx_dio_offset_align == 0 || asked > kAlignmentMost || !std::has_single_bit(asked)) {
        return refuse(StatusCode::unsupported, dir_,
                      fmt::format("its file system has no direct I/O in units of up to {}",
                                  bytes_text(kAlignmentMost)));
    }
    alignment_ = std::max(kAlignmentLeast, asked);
#endif
    return Status::ok();
}

Status SpillFile::allocate(uint64_t bytes) {
    constexpr auto kOffsetMost = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
    const auto wanted = [&] {
        return fmt::format("a spill file of {} ({} B) is wanted", bytes_text(bytes),
                           grouped(bytes));
    };
    const auto too_little = [&](const std::string& what) {
        const uint64_t left = free_bytes(descriptor());
        return refuse(StatusCode::out_of_memory, dir_,
                      fmt::format("{}, {} ({} B) are free{}", wanted(), bytes_text(left),
                                  grouped(left), what));
    };
    if (bytes > kOffsetMost - kAlignmentMost) return too_little("");
    bytes_ = (bytes + alignment_ - 1) / alignment_ * alignment_;
    if (bytes_ > free_bytes(descriptor())) return too_little("");

    const FileSizeSignalHeld held;
    int error = 0;
    do {
        error = fallocate(descriptor(), 0, 0, static_cast<off_t>(bytes_)) == 0 ? 0 : errno;
    } while (error == EINTR);
    switch (error) {
        case 0: return Status::ok();
        case ENOSPC: return too_little("");
        case EDQUOT: return too_little(", but the user's disk quota ends before it");
        case EFBIG: {
            struct rlimit limit {};
            getrlimit(RLIMIT_FSIZE, &limit);
            const bool limited = limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < bytes_;
            return too_little(
                limited ? fmt::format(", but files of this process end at {} (RLIMIT_FSIZE, "
                                      "ulimit -f)", bytes_text(limit.rlim_cur))
                        : ", but files of its file system end before it");
        }
        case EOPNOTSUPP:
        case ENOSYS:
            return refuse(StatusCode::unsupported, dir_,
                          "its file system cannot allocate ahead (fallocate)");
        default:
            return refuse(StatusCode::unavailable, dir_,
                          fmt::format("{}: {}", wanted(), error_text(error)));
    }
}

// One aligned read of what was allocated, the proof that direct I/O works as was said.
Status SpillFile::probe() const {
    const std::unique_ptr<void, decltype(&std::free)> unit(
        std::aligned_alloc(alignment_, alignment_), &std::free);
    ssize_t got = 0;
    do {
        got = pread(descriptor(), unit.get(), alignment_, 0);
    } while (got < 0 && errno == EINTR);
    if (got == static_cast<ssize_t>(alignment_)) return Status::ok();
    const std::string why = got < 0 ? error_text(errno) : fmt::format("{} B came back", got);
    return refuse(StatusCode::unsupported, dir_,
                  fmt::format("a direct read of {} failed: {}", bytes_text(alignment_), why));
}

}  // namespace shoal::offload
