#include "runtime/saved_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
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

bool is_direct(int file) { return (::fcntl(file, F_GETFL) & O_DIRECT) != 0; }

// Whether to try again without O_DIRECT, whose needs a file system may say only at the first use.
// `was_direct`: when it was tried; another thread may have found out meanwhile.
bool retries(int file, int error, bool was_direct) {
    if (error == EINTR) return true;
    if (error != EINVAL || !was_direct) return false;
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
        const bool direct = is_direct(file_.get());
        const ssize_t count = ::pwrite(file_.get(), buffer_.data() + done, bytes - done,
                                       static_cast<off_t>(offset + done));
        if (count < 0 && retries(file_.get(), errno, direct)) continue;
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
        const bool direct = is_direct(file_.get());
        const ssize_t count = ::pread(file_.get(), out.data() + done, out.size() - done,
                                      static_cast<off_t>(offset + done));
        if (count < 0 && retries(file_.get(), errno, direct)) continue;
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

// A ring of buffers between threads that read and verify, each every n-th chunk, and the one that
// takes. A disk gives its rate to several requests at a time only; small files get one thread.
class SavedFileReader::Ahead {
public:
    explicit Ahead(SavedFileReader& reader)
        : reader_(reader),
          thread_count_(static_cast<uint32_t>(std::clamp<uint64_t>(
              reader.front_.sizes.file_bytes / (2 * kSavedChunkBytesMax), 1, kReaders))),
          places_(kBuffers / kReaders * thread_count_) {
        try {
            for (uint32_t i = 0; i < thread_count_; ++i) {
                threads_.emplace_back([this, i] { read_every_nth(i); });
            }
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Ahead() { stop(); }
    Ahead(const Ahead&) = delete;
    Ahead& operator=(const Ahead&) = delete;

    // The chunk once it is there; the buffer of the one before may be used again.
    Status next(const SavedChunk& chunk, std::span<const std::byte>& out) {
        Place& place = places_[chunk.index % places_.size()];
        std::unique_lock lock(mutex_);
        taken_ = chunk.index;
        changed_.notify_all();
        changed_.wait(lock, [&] { return place.chunk_end == chunk.index + 1; });
        out = {place.buffer.data(), chunk.bytes()};
        return place.status;
    }

private:
    struct Place {
        PageBuffer buffer{kSavedChunkBytesMax};
        uint64_t chunk_end = 0;  // one past the chunk that lies here, if `status` is ok
        Status status = Status::ok();
    };

    void read_every_nth(uint32_t first) {
        (void)for_each_saved_chunk(
            reader_.front_.header, reader_.front_.sizes, [&](const SavedChunk& chunk) {
                if (chunk.index % thread_count_ != first) return Status::ok();
                Place& place = places_[chunk.index % places_.size()];
                {
                    std::unique_lock lock(mutex_);
                    changed_.wait(
                        lock, [&] { return chunk.index < taken_ + places_.size() || stopped_; });
                    if (stopped_) return Status::error(StatusCode::internal, "stopped");
                }
                const Status status = reader_.read_verified(chunk, place.buffer.data());
                const std::lock_guard lock(mutex_);
                place.chunk_end = chunk.index + 1;
                place.status = status;
                changed_.notify_all();
                return status;
            });
    }

    void stop() {
        {
            const std::lock_guard lock(mutex_);
            stopped_ = true;
        }
        changed_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    SavedFileReader& reader_;
    const uint32_t thread_count_;
    std::vector<Place> places_;
    std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t taken_ = 0;  // chunks [0, taken_) are no longer needed
    bool stopped_ = false;
    std::vector<std::thread> threads_;
};

Status SavedFileReader::for_each_chunk(const Take& take) {
    Ahead ahead(*this);
    return for_each_saved_chunk(front_.header, front_.sizes, [&](const SavedChunk& chunk) {
        std::span<const std::byte> bytes;
        SHOAL_TRY(ahead.next(chunk, bytes));
        return take(chunk, bytes);
    });
}

}  // namespace shoal
