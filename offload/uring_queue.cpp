#include "offload/uring_queue.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "shoal/text.hpp"

namespace shoal::offload {

namespace {

constexpr uint64_t kWakeTag = UINT64_MAX;
constexpr uint64_t kRegisteredBytesMost = uint64_t{1} << 30;  // of one buffer, by the kernel
constexpr uint64_t kBatchWaitNs = 200'000;

// Best first. Single issuer: no lock round submission. Deferred task work: completions are worked
// off by the I/O thread when it asks for them, not by interrupting whatever runs. A ring that
// starts disabled belongs to the thread that enables it, not to the one that makes it.
struct RingFlags {
    unsigned flags;
    const char* text;
};
constexpr RingFlags kRingFlags[] = {
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
     "single issuer, deferred task work"},
    {IORING_SETUP_COOP_TASKRUN, "cooperative task work"},
    {0, "plain"},
};

std::string error_text(int error) { return std::generic_category().message(error); }

Status refused(int error) {
    std::string why = error_text(error);
    if (error == EPERM) why += " (a container's rules, or the sysctl kernel.io_uring_disabled)";
    if (error == ENOSYS) why += " (not in this kernel)";
    return Status::error(StatusCode::unavailable, "io_uring_setup: " + why);
}

}  // namespace

Result<std::unique_ptr<UringQueue>> UringQueue::create(const UringOptions& options) {
    std::unique_ptr<UringQueue> queue(new UringQueue);
    queue->wake_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!queue->wake_.is_open()) {
        return Status::error(StatusCode::unavailable, "eventfd: " + error_text(errno));
    }
    SHOAL_TRY(queue->open_ring(options));
    if (options.file >= 0) queue->register_file(options.file);
    return queue;
}

UringQueue::~UringQueue() {
    if (has_ring_) io_uring_queue_exit(&ring_);
}

Status UringQueue::open_ring(const UringOptions& options) {
    const unsigned entries = options.depth + 1;    // and one to be woken by
    int error = 0;
    for (const RingFlags& candidate : kRingFlags) {
        io_uring_params params{};
        params.flags = candidate.flags;
        error = options.setup ? -options.setup(entries, &ring_, &params)
                              : -io_uring_queue_init_params(entries, &ring_, &params);
        if (error == EINVAL) continue;             // flags of a later kernel
        if (error != 0) return refused(error);
        has_ring_ = true;
        if ((params.features & IORING_FEAT_EXT_ARG) == 0) {
            return Status::error(StatusCode::unavailable, "io_uring of a kernel before 5.11");
        }
        starts_disabled_ = (candidate.flags & IORING_SETUP_R_DISABLED) != 0;
        add_feature(candidate.text);
        io_uring_ring_dontfork(&ring_);
        return Status::ok();
    }
    return refused(error);
}

void UringQueue::add_feature(const std::string& feature) {
    if (!features_.empty()) features_ += ", ";
    features_ += feature;
}

void UringQueue::register_file(int file) {
    file_ = file;
    file_is_registered_ = io_uring_register_files(&ring_, &file, 1) == 0;
    if (file_is_registered_) add_feature("registered file");
}

std::string UringQueue::features() const {
    return memory_feature_.empty() ? features_ : features_ + ", " + memory_feature_;
}

Status UringQueue::use_memory(std::span<std::byte> memory) {
    if (!registered_.empty()) io_uring_unregister_buffers(&ring_);
    registered_.clear();
    memory_feature_.clear();
    if (memory.empty()) return Status::ok();
    std::vector<iovec> parts;
    for (size_t at = 0; at < memory.size(); at += kRegisteredBytesMost) {
        const size_t part = std::min<size_t>(memory.size() - at, kRegisteredBytesMost);
        parts.push_back({memory.data() + at, part});
    }
    const int result =
        io_uring_register_buffers(&ring_, parts.data(), static_cast<unsigned>(parts.size()));
    if (result == 0) {
        registered_ = std::move(parts);
        memory_feature_ = fmt::format("{} registered", bytes_text(memory.size()));
        return Status::ok();
    }
    memory_feature_ = "no registered memory";
    std::string why = error_text(-result);
    if (result == -ENOMEM) why += "; the limit is ulimit -l";
    return Status::error(StatusCode::unavailable, std::move(why));
}

void UringQueue::attach() {
    if (starts_disabled_) {
        // io_uring_enable_rings() is in the header of liburing 2.3 and not in its library.
        const long result = syscall(SYS_io_uring_register, ring_.ring_fd,
                                    IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
        SHOAL_ASSERT(result == 0);
    }
    arm_wake();
}

void UringQueue::arm_wake() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    SHOAL_ASSERT(sqe != nullptr);    // entries are one more than operations in flight
    io_uring_prep_poll_add(sqe, wake_.number(), POLLIN);
    io_uring_sqe_set_data64(sqe, kWakeTag);
}

void UringQueue::wake() {
    const uint64_t one = 1;
    // Fails only when 2^64 - 1 wakes are pending.
    [[maybe_unused]] const ssize_t written = write(wake_.number(), &one, sizeof one);
}

int UringQueue::buffer_of(const iovec& piece) const {
    const auto* first = static_cast<const std::byte*>(piece.iov_base);
    for (size_t i = 0; i < registered_.size(); ++i) {
        const auto* begin = static_cast<const std::byte*>(registered_[i].iov_base);
        if (first >= begin && first + piece.iov_len <= begin + registered_[i].iov_len) {
            return static_cast<int>(i);
        }
    }
    return -1;
}

bool UringQueue::submit(const IoOperation& operation) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    const bool is_read = operation.kind == TransferKind::read;
    const int file = file_is_registered_ ? 0 : file_;
    const iovec& first = operation.pieces.front();
    const auto bytes = static_cast<unsigned>(first.iov_len);
    const auto piece_count = static_cast<unsigned>(operation.pieces.size());
    const int buffer = piece_count == 1 ? buffer_of(first) : -1;
    if (piece_count > 1) {
        (is_read ? io_uring_prep_readv : io_uring_prep_writev)(
            sqe, file, operation.pieces.data(), piece_count, operation.offset);
    } else if (buffer < 0) {
        if (is_read) io_uring_prep_read(sqe, file, first.iov_base, bytes, operation.offset);
        else io_uring_prep_write(sqe, file, first.iov_base, bytes, operation.offset);
    } else if (is_read) {
        io_uring_prep_read_fixed(sqe, file, first.iov_base, bytes, operation.offset, buffer);
    } else {
        io_uring_prep_write_fixed(sqe, file, first.iov_base, bytes, operation.offset, buffer);
    }
    if (file_is_registered_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(sqe, operation.tag);
    return true;
}

size_t UringQueue::reap(std::span<IoCompletion> completions) {
    size_t count = 0;
    unsigned seen = 0;
    bool woken = false;
    io_uring_cqe* cqe = nullptr;
    unsigned head = 0;
    io_uring_for_each_cqe(&ring_, head, cqe) {
        if (count == completions.size()) break;
        ++seen;
        if (cqe->user_data == kWakeTag) woken = true;
        else completions[count++] = {cqe->user_data, cqe->res};
    }
    io_uring_cq_advance(&ring_, seen);
    if (woken) {
        uint64_t pending = 0;
        [[maybe_unused]] const ssize_t got = read(wake_.number(), &pending, sizeof pending);
        arm_wake();
    }
    return count;
}

void UringQueue::wait(uint32_t wanted, uint64_t timeout_ns) {
    int result = 0;
    if (wanted <= 1 && timeout_ns == kForever) {
        result = io_uring_submit_and_wait(&ring_, 1);
    } else {
        const uint64_t ns = std::min(timeout_ns, kBatchWaitNs);
        __kernel_timespec timeout{0, static_cast<int64_t>(ns)};
        io_uring_cqe* first = nullptr;
        result = io_uring_submit_and_wait_timeout(&ring_, &first, std::max(1U, wanted), &timeout,
                                                  nullptr);
    }
    // EINTR, EAGAIN, EBUSY and ETIME end a wait; what else there is must not become a busy loop.
    const bool is_usual = result >= 0 || result == -EINTR || result == -EAGAIN ||
                          result == -EBUSY || result == -ETIME;
    if (!is_usual) usleep(1000);
}

}  // namespace shoal::offload
