#include "runtime/saved_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>

namespace shoal {
namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

Status file_error(const std::string& path, const char* what, int error) {
    StatusCode code = StatusCode::unavailable;
    if (error == ENOENT || error == ENOTDIR) code = StatusCode::not_found;
    if (error == ENOSPC || error == EDQUOT) code = StatusCode::out_of_memory;
    if (error == EACCES || error == EPERM || error == EROFS || error == EISDIR ||
        error == ENAMETOOLONG || error == EFBIG) {
        code = StatusCode::invalid_argument;
    }
    if (error == ELOOP) {
        return invalid(fmt::format("{}: is a symbolic link: name the file itself", path));
    }
    return Status::error(code, fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)));
}

// Chunks are whole pages at whole pages, so that files of any size leave the page cache to others.
// Where a file system has no such thing, reads and writes go through the cache.
void set_direct(int file, bool on) {
    const int flags = ::fcntl(file, F_GETFL);
    if (flags >= 0) (void)::fcntl(file, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT);
}

// Whether to try again without O_DIRECT, whose needs a file system may say only at the first use.
bool retries(int file, int error) {
    if (error == EINTR) return true;
    if (error != EINVAL || (::fcntl(file, F_GETFL) & O_DIRECT) == 0) return false;
    set_direct(file, false);
    return true;
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

// What a rename would replace must be a regular file, or nothing.
Status check_target(const std::string& path) {
    if (path.empty()) return invalid("path of a saved sequence: must not be empty");
    struct stat info = {};
    if (::lstat(path.c_str(), &info) != 0) {
        return errno == ENOENT ? Status::ok() : file_error(path, "look at", errno);
    }
    if (S_ISLNK(info.st_mode)) return file_error(path, "save", ELOOP);
    if (S_ISREG(info.st_mode)) return Status::ok();
    return invalid(fmt::format("{}: is there and not a regular file", path));
}

uint64_t random_nonce() {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
}

}  // namespace

PageBuffer::PageBuffer(size_t bytes)
    : data_(static_cast<std::byte*>(std::aligned_alloc(kSavedPageBytes, bytes))) {
    if (data_ == nullptr) throw std::bad_alloc();
}

bool FileDescriptor::close() {
    return number_ < 0 || ::close(std::exchange(number_, -1)) == 0;
}

SavedFileWriter::SavedFileWriter(std::string path, const SavedHeader& header,
                                 std::function<void()> at_boundary)
    : path_(std::move(path)), at_boundary_(std::move(at_boundary)) {
    front_.header = header;
    front_.nonce = random_nonce();
}

SavedFileWriter::~SavedFileWriter() {
    if (!temporary_.empty()) (void)::unlink(temporary_.c_str());
}

Result<std::unique_ptr<SavedFileWriter>> SavedFileWriter::create(
    const std::string& path, const SavedHeader& header, const std::function<void()>& at_boundary) {
    SHOAL_TRY(check_target(path));
    SHOAL_TRY(check_saved_header(header, path, StatusCode::invalid_argument));
    const Result<SavedSizes> sizes = saved_sizes(header, path);
    if (!sizes) return sizes.status();
    std::unique_ptr<SavedFileWriter> writer(new SavedFileWriter(path, header, at_boundary));
    writer->front_.sizes = *sizes;
    writer->front_.hashes.resize(sizes->chunk_count);
    SHOAL_TRY(writer->make_temporary());
    SHOAL_TRY(writer->reserve());
    return writer;
}

Status SavedFileWriter::make_temporary() {
    boundary();
    for (int attempt = 0; attempt < 100; ++attempt) {
        const std::string name = fmt::format("{}.{}-{}.tmp", path_, ::getpid(), attempt);
        const int number = ::open(name.c_str(),
                                  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (number < 0 && errno == EEXIST) continue;
        if (number < 0) return file_error(path_, "create", errno);
        temporary_ = name;
        file_.reset(number);
        set_direct(number, true);
        boundary();
        return Status::ok();
    }
    return invalid(fmt::format("{}: 100 temporary files of this process lie beside it", path_));
}

// A limit on file sizes is looked at beforehand: to run into it ends the process by a signal.
Status SavedFileWriter::reserve() {
    const uint64_t bytes = front_.sizes.file_bytes;
    struct rlimit limit = {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur < bytes) {
        return invalid(fmt::format("{}: {} bytes are needed: this process may write files of {} "
                                   "(RLIMIT_FSIZE)",
                                   path_, bytes, static_cast<uint64_t>(limit.rlim_cur)));
    }
    int error = 0;
    do {
        error = ::fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
    } while (error == EINTR);
    boundary();
    if (error == 0 || error == EOPNOTSUPP || error == ENOSYS) return Status::ok();
    if (error != ENOSPC && error != EDQUOT) return file_error(path_, "reserve space for", error);
    struct statvfs space = {};
    (void)::fstatvfs(file_.get(), &space);
    return Status::error(StatusCode::out_of_memory,
                         fmt::format("{}: {} bytes are needed: {} are free in its file system",
                                     path_, bytes, uint64_t{space.f_bavail} * space.f_frsize));
}

void SavedFileWriter::boundary() const {
    if (at_boundary_) at_boundary_();
}

Status SavedFileWriter::put(uint64_t offset, size_t bytes) {
    boundary();
    size_t done = 0;
    while (done < bytes) {
        const ssize_t count = ::pwrite(file_.get(), buffer_.data() + done, bytes - done,
                                       static_cast<off_t>(offset + done));
        if (count < 0 && retries(file_.get(), errno)) continue;
        if (count <= 0) return file_error(path_, "write", count < 0 ? errno : EIO);
        done += static_cast<size_t>(count);
    }
    boundary();
    return Status::ok();
}

Status SavedFileWriter::write(const SavedChunk& chunk) {
    const size_t padded = chunk.padded_bytes();
    std::memset(buffer_.data() + chunk.bytes(), 0, padded - chunk.bytes());
    front_.hashes[chunk.index] =
        saved_chunk_hash({buffer_.data(), padded}, front_.nonce, chunk.index);
    return put(chunk.offset, padded);
}

Status SavedFileWriter::finish() {
    const std::vector<std::byte> bytes = saved_front_bytes(front_);
    for (size_t at = 0; at < bytes.size(); at += kSavedChunkBytesMax) {
        const size_t count = std::min<size_t>(kSavedChunkBytesMax, bytes.size() - at);
        std::memcpy(buffer_.data(), bytes.data() + at, count);
        SHOAL_TRY(put(at, count));
    }
    if (::fsync(file_.get()) != 0) return file_error(path_, "sync", errno);
    boundary();
    if (!file_.close()) return file_error(path_, "close", errno);
    SHOAL_TRY(check_target(path_));
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
        return file_error(path_, "rename to", errno);
    }
    temporary_.clear();
    boundary();
    // The new name is durable once its folder is synced; some file systems refuse to sync those.
    const FileDescriptor folder(
        ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.is_open()) (void)::fsync(folder.get());
    boundary();
    return Status::ok();
}

Result<std::unique_ptr<SavedFileReader>> SavedFileReader::open(const std::string& path) {
    if (path.empty()) return invalid("path of a saved sequence: must not be empty");
    // Non-blocking: a pipe without a writer would hold the program for ever.
    const int number = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (number < 0) return file_error(path, "open", errno);
    std::unique_ptr<SavedFileReader> reader(new SavedFileReader(path, number));
    SHOAL_TRY(reader->read_front());
    return reader;
}

Status SavedFileReader::read_front() {
    struct stat info = {};
    if (::fstat(file_.get(), &info) != 0) return file_error(path_, "look at", errno);
    if (!S_ISREG(info.st_mode)) {
        return invalid(fmt::format("{}: not a regular file: a saved sequence is one", path_));
    }
    const auto file_bytes = static_cast<uint64_t>(info.st_size);
    std::vector<std::byte> bytes(std::min<uint64_t>(kSavedPageBytes, file_bytes));
    SHOAL_TRY(read(0, bytes));
    const Result<uint64_t> length = saved_front_length(bytes, file_bytes, path_);
    if (!length) return length.status();
    bytes.resize(*length);
    SHOAL_TRY(read(0, bytes));
    Result<SavedFront> front = parse_saved_front(bytes, path_);
    if (!front) return front.status();
    front_ = std::move(*front);
    set_direct(file_.get(), true);
    return Status::ok();
}

Status SavedFileReader::read(uint64_t offset, std::span<std::byte> out) {
    size_t done = 0;
    while (done < out.size()) {
        const ssize_t count = ::pread(file_.get(), out.data() + done, out.size() - done,
                                      static_cast<off_t>(offset + done));
        if (count < 0 && retries(file_.get(), errno)) continue;
        if (count < 0) return file_error(path_, "read", errno);
        if (count == 0) {
            return Status::error(StatusCode::corrupt,
                                 fmt::format("{}: ends at byte {}: it was cut meanwhile", path_,
                                             offset + done));
        }
        done += static_cast<size_t>(count);
    }
    return Status::ok();
}

Status SavedFileReader::read_verified(const SavedChunk& chunk, std::byte* out) {
    const std::span<std::byte> padded(out, chunk.padded_bytes());
    SHOAL_TRY(read(chunk.offset, padded));
    if (saved_chunk_hash(padded, front_.nonce, chunk.index) == front_.hashes[chunk.index]) {
        return Status::ok();
    }
    return Status::error(StatusCode::corrupt,
                         fmt::format("{}: chunk {} of {}, at byte {}: its checksum differs: the "
                                     "file is damaged",
                                     path_, chunk.index, front_.sizes.chunk_count, chunk.offset));
}

// A ring of buffers between the thread that reads and the one that takes.
class SavedFileReader::Ahead {
public:
    explicit Ahead(SavedFileReader& reader)
        : reader_(reader), thread_([this] { read_all(); }) {}
    ~Ahead() {
        {
            const std::lock_guard lock(mutex_);
            stopped_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    // Chunk number `index` once it is there; the buffer of the one before may be used again.
    Status next(uint64_t index, std::span<const std::byte>& out, const SavedChunk& chunk) {
        std::unique_lock lock(mutex_);
        taken_ = index;
        changed_.notify_all();
        changed_.wait(lock, [&] { return read_ > index || ended_; });
        if (read_ <= index) return status_;
        out = {buffers_[index % kBuffers].data(), chunk.bytes()};
        return Status::ok();
    }

private:
    void read_all() {
        const Status status = for_each_saved_chunk(
            reader_.front_.header, reader_.front_.sizes, [this](const SavedChunk& chunk) {
                {
                    std::unique_lock lock(mutex_);
                    changed_.wait(lock,
                                  [&] { return chunk.index < taken_ + kBuffers || stopped_; });
                    if (stopped_) return Status::error(StatusCode::internal, "stopped");
                }
                SHOAL_TRY(reader_.read_verified(chunk, buffers_[chunk.index % kBuffers].data()));
                const std::lock_guard lock(mutex_);
                read_ = chunk.index + 1;
                changed_.notify_all();
                return Status::ok();
            });
        const std::lock_guard lock(mutex_);
        status_ = status;
        ended_ = true;
        changed_.notify_all();
    }

    SavedFileReader& reader_;
    std::array<PageBuffer, kBuffers> buffers_{
        PageBuffer(kSavedChunkBytesMax), PageBuffer(kSavedChunkBytesMax),
        PageBuffer(kSavedChunkBytesMax), PageBuffer(kSavedChunkBytesMax)};
    std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t read_ = 0;   // chunks [0, read_) were read and verified
    uint64_t taken_ = 0;  // chunks [0, taken_) are no longer needed
    bool stopped_ = false;
    bool ended_ = false;
    Status status_ = Status::ok();
    std::thread thread_;  // last: it uses all of the above
};

Status SavedFileReader::for_each_chunk(const Take& take) {
    Ahead ahead(*this);
    return for_each_saved_chunk(front_.header, front_.sizes, [&](const SavedChunk& chunk) {
        std::span<const std::byte> bytes;
        SHOAL_TRY(ahead.next(chunk.index, bytes, chunk));
        return take(chunk, bytes);
    });
}

}  // namespace shoal
