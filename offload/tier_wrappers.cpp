#include "offload/tier_wrappers.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

namespace shoal::offload {

namespace {

bool is_canceled(const Transfer& transfer) {
    return transfer.canceled.load(std::memory_order_relaxed);
}

}  // namespace

TierWrapper::TierWrapper(std::unique_ptr<Tier> inner)
    : Tier(inner->bytes(), inner->alignment(), inner->options()), inner_(std::move(inner)) {
    wrap(*inner_);
}

// --- limiting ----------------------------------------------------------------------------------

LimitingTier::LimitingTier(std::unique_ptr<Tier> inner, uint32_t most)
    : TierWrapper(std::move(inner)), most_(most) {
    SHOAL_ASSERT(most >= 1);
}

LimitingTier::~LimitingTier() {
    TransferList dropped;
    {
        const std::lock_guard lock(mutex_);
        dropped.take(waiting_);
    }
    while (!dropped.empty()) finish(dropped.pop(), ECANCELED);
    close();
}

void LimitingTier::do_start(std::span<Transfer* const> transfers) {
    std::unique_lock lock(mutex_);
    for (Transfer* transfer : transfers) waiting_.push(*transfer);
    pump(lock);
}

void LimitingTier::do_finish(Transfer& transfer, int error) {
    {
        std::unique_lock lock(mutex_);
        --inside_count_;
        pump(lock);
    }
    finish(transfer, error);
}

// One thread at a time: a tier that ends transfers within do_start() comes back here, and must not
// nest as deep as there are transfers.
void LimitingTier::pump(std::unique_lock<std::mutex>& lock) {
    if (is_pumping_) return;
    is_pumping_ = true;
    while (!waiting_.empty() && inside_count_ < most_) {
        std::array<Transfer*, 64> batch;
        size_t count = 0;
        while (count < batch.size() && !waiting_.empty() && inside_count_ < most_) {
            batch[count++] = &waiting_.pop();
            ++inside_count_;
        }
        lock.unlock();
        start_in(inner(), {batch.data(), count});
        lock.lock();
    }
    is_pumping_ = false;
}

void LimitingTier::do_cancel() {
    TransferList dropped;
    {
        const std::lock_guard lock(mutex_);
        waiting_.move_if(is_canceled, dropped);
    }
    while (!dropped.empty()) finish(dropped.pop(), ECANCELED);
    TierWrapper::do_cancel();
}

// --- counting ----------------------------------------------------------------------------------

void CountingTier::do_start(std::span<Transfer* const> transfers) {
    {
        const std::lock_guard lock(mutex_);
        seen_.started += transfers.size();
        seen_.in_flight_most = std::max(seen_.in_flight_most, seen_.started - seen_.finished);
    }
    start_in(inner(), transfers);
}

void CountingTier::do_finish(Transfer& transfer, int error) {
    {
        const std::lock_guard lock(mutex_);
        ++seen_.finished;
        seen_.failed += error != 0 ? 1 : 0;
    }
    finish(transfer, error);
}

CountingTier::Seen CountingTier::seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
}

// --- delayed -----------------------------------------------------------------------------------

DelayedTier::DelayedTier(std::unique_ptr<Tier> inner, uint64_t delay_ns)
    : TierWrapper(std::move(inner)), delay_ns_(delay_ns), thread_([this] { run(); }) {}

DelayedTier::~DelayedTier() {
    {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
    }
    news_.notify_one();
    thread_.join();
    drop(false);
    close();
}

void DelayedTier::do_start(std::span<Transfer* const> transfers) {
    {
        const std::lock_guard lock(mutex_);
        for (Transfer* transfer : transfers) waiting_.push(*transfer);
    }
    news_.notify_one();
}

void DelayedTier::run() {
    std::unique_lock lock(mutex_);
    for (;;) {
        news_.wait(lock, [&] { return is_stopping_ || !waiting_.empty(); });
        if (is_stopping_) return;
        const uint64_t now_ns = options().clock();
        const uint64_t due_ns = waiting_.front()->started_ns + delay_ns_;
        if (now_ns < due_ns) {
            news_.wait_for(lock, std::chrono::nanoseconds(due_ns - now_ns),
                           [&] { return is_stopping_; });
            continue;    // what was first may be canceled by now
        }
        Transfer* const transfer = &waiting_.pop();
        lock.unlock();
        start_in(inner(), {&transfer, 1});
        lock.lock();
    }
}

void DelayedTier::drop(bool canceled_only) {
    TransferList dropped;
    {
        const std::lock_guard lock(mutex_);
        if (canceled_only) waiting_.move_if(is_canceled, dropped);
        else dropped.take(waiting_);
    }
    while (!dropped.empty()) finish(dropped.pop(), ECANCELED);
}

void DelayedTier::do_cancel() {
    drop(true);
    TierWrapper::do_cancel();
}

}  // namespace shoal::offload
