#include "calib/profile.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "calib/profile_text.hpp"

namespace shoal::calib {
namespace {

// Closes a descriptor that was opened; -1 = none.
class File {
public:
    explicit File(int descriptor) : descriptor_(descriptor) {}
    ~File() { close(); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int get() const { return descriptor_; }
    bool is_open() const { return descriptor_ >= 0; }
    bool close() { return descriptor_ < 0 || ::close(std::exchange(descriptor_, -1)) == 0; }

private:
    int descriptor_;
};

Status system_error(const std::string& path, const char* what, int error) {
    StatusCode code = StatusCode::unavailable;
    if (error == ENOENT || error == ENOTDIR) code = StatusCode::not_found;
    if (error == EACCES || error == EPERM || error == EROFS || error == EISDIR ||
        error == ENAMETOOLONG || error == ELOOP) {
        code = StatusCode::invalid_argument;
    }
    return Status::error(code, fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)));
}

Status write_all(int descriptor, const std::string& text, const std::string& path) {
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t count = ::write(descriptor, text.data() + done, text.size() - done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return system_error(path, "write", count < 0 ? errno : EIO);
        done += static_cast<size_t>(count);
    }
    return Status::ok();
}

// The entry of a renamed file is durable once its folder is synced. Some file systems refuse to
// sync folders; the file itself is safe by then.
void sync_folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const File file(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (file.is_open()) (void)::fsync(file.get());
}

// The file that `path` leads to, through symbolic links; `path` itself when nothing is there yet.
// What is there must be a regular file: a rename would put one in the place of a device.
Status find_target(const std::string& path, std::string& target) {
    target = path;
    struct stat info = {};
    if (::stat(path.c_str(), &info) != 0) return Status::ok();
    if (!S_ISREG(info.st_mode)) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("{}: is there and not a regular file", path));
    }
    char* resolved = ::realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return system_error(path, "write profile", errno);
    target = resolved;
    std::free(resolved);
    return Status::ok();
}

// A new file beside `path`; its name goes to `temporary`. Not mkstemp: that ignores the umask.
int create_temporary(const std::string& path, std::string& temporary) {
    for (int attempt = 0; attempt < 100; ++attempt) {
        temporary = fmt::format("{}.{}-{}.tmp", path, ::getpid(), attempt);
        const int descriptor =
            ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor >= 0 || errno != EEXIST) return descriptor;
    }
    return -1;
}

Status write_and_rename(File& file, const std::string& temporary, const std::string& path,
                        const std::string& text) {
    SHOAL_TRY(write_all(file.get(), text, path));
    struct stat old = {};
    if (::stat(path.c_str(), &old) == 0) (void)::fchmod(file.get(), old.st_mode & 0777);
    if (::fsync(file.get()) != 0) return system_error(path, "sync", errno);
    if (!file.close()) return system_error(path, "close", errno);
    if (::rename(temporary.c_str(), path.c_str()) != 0) return system_error(path, "rename", errno);
    return Status::ok();
}

Status mismatch(const std::string& field, const std::string& profile_value,
                const std::string& model_value) {
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("profile of another model: {} = {}: this model has {}", field,
                                     profile_value, model_value));
}

}  // namespace

Profile profile_from(const ChannelStatistics& statistics, const std::string& model_fingerprint,
                     const std::string& source) {
    Profile profile;
    profile.model_fingerprint = model_fingerprint;
    profile.source = source;
    profile.token_count = statistics.token_count();
    profile.q_head_count = statistics.q_head_count();
    profile.layers.resize(statistics.layer_count());
    for (uint32_t l = 0; l < statistics.layer_count(); ++l) {
        LayerProfile& layer = profile.layers[l];
        layer.k_head_dim = statistics.k_head_dim({l});
        for (uint32_t h = 0; h < statistics.kv_head_count({l}); ++h) {
            layer.heads.push_back(statistics.moments({l}, h));
        }
    }
    return profile;
}

Result<Profile> read_profile(const std::string& path) {
    // Non-blocking: a pipe without a writer would hold the program for ever.
    const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.is_open()) return system_error(path, "open profile", errno);
    struct stat info = {};
    if (::fstat(file.get(), &info) != 0) return system_error(path, "read profile", errno);
    if (!S_ISREG(info.st_mode)) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("{}: not a regular file: a profile is a file that "
                                         "shoal calibrate wrote",
                                         path));
    }
    if (static_cast<uint64_t>(info.st_size) > kProfileBytesMax) {
        return Status::error(
            StatusCode::invalid_argument,
            fmt::format("{}: size = {} bytes: a profile has at most {} bytes (64 MiB)", path,
                        info.st_size, kProfileBytesMax));
    }
    std::string text(static_cast<size_t>(info.st_size), '\0');
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t count = ::read(file.get(), text.data() + done, text.size() - done);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return system_error(path, "read profile", errno);
        if (count == 0) break;  // it became shorter meanwhile: the checksum will tell
        done += static_cast<size_t>(count);
    }
    text.resize(done);
    return parse_profile(text, path);
}

Status write_profile(const std::string& path, const Profile& profile) {
    SHOAL_TRY(check_fields(profile, path, StatusCode::invalid_argument));
    Result<std::string> text = profile_to_text(profile, path);
    if (!text) return text.status();
    if (text->size() > kProfileBytesMax) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("{}: size = {} bytes: a profile has at most {} bytes "
                                         "(64 MiB)",
                                         path, text->size(), kProfileBytesMax));
    }
    std::string target;
    SHOAL_TRY(find_target(path, target));
    std::string temporary;
    File file(create_temporary(target, temporary));
    if (!file.is_open()) return system_error(path, "create", errno);
    const Status status = write_and_rename(file, temporary, target, *text);
    if (!status) {
        (void)::unlink(temporary.c_str());
        return status;
    }
    sync_folder_of(target);
    return status;
}

Status check_profile(const Profile& profile, const ModelShape& shape,
                     const std::string& model_fingerprint) {
    if (!profile.model_fingerprint.empty() && !model_fingerprint.empty() &&
        profile.model_fingerprint != model_fingerprint) {
        return mismatch("model", fmt::format("\"{}\"", profile.model_fingerprint),
                        fmt::format("\"{}\"", model_fingerprint));
    }
    const auto check = [](const std::string& field, size_t profile_count, size_t model_count) {
        if (profile_count == model_count) return Status::ok();
        return mismatch(field, fmt::to_string(profile_count), fmt::to_string(model_count));
    };
    SHOAL_TRY(check("q_head_count", profile.q_head_count, shape.q_head_count));
    SHOAL_TRY(check("layer count", profile.layers.size(), shape.layers.size()));
    for (size_t l = 0; l < shape.layers.size(); ++l) {
        const bool has_labels = shape.layers[l].kind == LayerKind::full;
        const LayerProfile& layer = profile.layers[l];
        SHOAL_TRY(check(fmt::format("layers[{}].kv_head_count", l), layer.heads.size(),
                        has_labels ? shape.layers[l].kv_head_count : 0));
        SHOAL_TRY(check(fmt::format("layers[{}].k_head_dim", l), layer.k_head_dim,
                        has_labels ? shape.layers[l].k_head_dim : 0));
    }
    return Status::ok();
}

}  // namespace shoal::calib
