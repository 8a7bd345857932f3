#include "offload/pread_queue.hpp"

#include <signal.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace shoal::offload {

uint64_t thread_cpu_ns(const std::thread& thread) {
    clockid_t clock = 0;
    timespec time{};
    const pthread_t handle = const_cast<std::thread&>(thread).native_handle();
    if (pthread_getcpuclockid(handle, &clock) != 0) return 0;
    if (clock_gettime(clock, &time) != 0) return 0;
    constexpr uint64_t kSecondNs = 1'000'000'000;
    return static_cast<uint64_t>(time.tv_sec) * kSecondNs + static_cast<uint64_t>(time.tv_nsec);
}

void block_signals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

PreadQueue::PreadQueue(int file, uint32_t depth, uint32_t threads)
    : file_(file), depth_(depth), operations_(depth), completions_(depth) {
    SHOAL_ASSERT(threads >= 1 && threads <= depth);
    threads_.reserve(threads);
    for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

PreadQueue::~PreadQueue() {
    {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

IoCompletion PreadQueue::carry_out(const IoOperation& operation) const {
    const auto count = static_cast<int>(operation.pieces.size());
    const auto offset = static_cast<off_t>(operation.offset);
    const ssize_t moved = operation.kind == TransferKind::read
                              ? preadv(file_, operation.pieces.data(), count, offset)
                              : pwritev(file_, operation.pieces.data(), count, offset);
    return {operation.tag, moved < 0 ? -errno : static_cast<int64_t>(moved)};
}

void PreadQueue::run() {
    block_signals();
    std::unique_lock lock(mutex_);
    for (;;) {
        work_.wait(lock, [&] { return operation_count_ > 0 || is_stopping_; });
        if (operation_count_ == 0) return;
        const IoOperation operation = operations_[operation_first_];
        operation_first_ = (operation_first_ + 1) % depth_;
        --operation_count_;
        lock.unlock();
        const IoCompletion completion = carry_out(operation);
        lock.lock();
        completions_[(completion_first_ + completion_count_++) % depth_] = completion;
        if (wanted_ > 0 && completion_count_ >= wanted_) done_.notify_one();
    }
}

bool PreadQueue::submit(const IoOperation& operation) {
    {
        const std::lock_guard lock(mutex_);
        if (in_flight_ == depth_) return false;
        ++in_flight_;
        operations_[(operation_first_ + operation_count_++) % depth_] = operation;
    }
    work_.notify_one();
    return true;
}

size_t PreadQueue::reap(std::span<IoCompletion> completions) {
    const std::lock_guard lock(mutex_);
    const size_t count = std::min<size_t>(completions.size(), completion_count_);
    for (size_t i = 0; i < count; ++i) {
        completions[i] = completions_[(completion_first_ + i) % depth_];
    }
    completion_first_ = static_cast<uint32_t>((completion_first_ + count) % depth_);
    completion_count_ -= static_cast<uint32_t>(count);
    in_flight_ -= static_cast<uint32_t>(count);
    return count;
}

void PreadQueue::wait(uint32_t wanted, uint64_t timeout_ns) {
    using std::chrono::nanoseconds;
    std::unique_lock lock(mutex_);
    wanted_ = std::clamp(wanted, 1U, std::max(1U, in_flight_));
    const auto is_over = [&] { return completion_count_ >= wanted_ || is_woken_; };
    if (timeout_ns == kForever) done_.wait(lock, is_over);
    else done_.wait_for(lock, nanoseconds(timeout_ns), is_over);
    wanted_ = 0;
    is_woken_ = false;
}

void PreadQueue::wake() {
    {
        const std::lock_guard lock(mutex_);
        is_woken_ = true;
    }
    done_.notify_one();
}

uint64_t PreadQueue::cpu_ns() const {
    uint64_t ns = 0;
    for (const std::thread& thread : threads_) ns += thread_cpu_ns(thread);
    return ns;
}

}  // namespace shoal::offload
