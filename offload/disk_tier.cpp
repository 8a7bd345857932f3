#include "offload/disk_tier.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "offload/pread_queue.hpp"
#include "shoal/text.hpp"

namespace shoal::offload {

namespace {

struct OpenedQueue {
    std::unique_ptr<IoQueue> queue;
    IoPath path;
};

uint32_t thread_count(const DiskTierOptions& options) {
    return std::clamp(options.threads, 1U, options.depth);
}

IoPath threads_path(const DiskTierOptions& options, std::string refusal) {
    return {false, fmt::format("{} threads with preadv and pwritev", thread_count(options)),
            std::move(refusal)};
}

IoPath uring_path(const UringQueue& queue) {
    return {true, fmt::format("io_uring ({})", queue.features()), ""};
}

Result<OpenedQueue> open_queue(int file, const DiskTierOptions& options) {
    std::string refusal;
    if (options.path != IoPathKind::threads) {
        Result<std::unique_ptr<UringQueue>> uring = UringQueue::create(
            {options.depth, file, options.ring_setup});
        if (uring) {
            IoPath path = uring_path(**uring);
            return OpenedQueue{std::move(*uring), std::move(path)};
        }
        if (options.path == IoPathKind::io_uring) return uring.status();
        refusal = uring.status().message();
    }
    OpenedQueue opened{
        std::make_unique<PreadQueue>(file, options.depth, thread_count(options)),
        threads_path(options, std::move(refusal))};
    if (options.log && !opened.path.refusal.empty()) {
        options.log(fmt::format("io_uring is refused here ({}): the spill file is read and written "
                                "by {}", opened.path.refusal, opened.path.text));
    }
    return opened;
}

}  // namespace

IoPath probe_io_path() {
    const DiskTierOptions options;
    UringOptions uring_options;
    uring_options.depth = options.depth;
    const auto uring = UringQueue::create(uring_options);
    return uring ? uring_path(**uring) : threads_path(options, uring.status().message());
}

DiskTier::DiskTier(std::unique_ptr<IoQueue> queue, uint64_t bytes, uint32_t alignment,
                   uint32_t depth, TierOptions options)
    : Tier(bytes, alignment, std::move(options)),
      queue_(std::move(queue)),
      engine_(*queue_, depth, alignment,
              [this](Transfer& transfer, int error) { finish(transfer, error); }) {}

Result<std::unique_ptr<DiskTier>> DiskTier::create(SpillFile file,
                                                   const DiskTierOptions& options) {
    SHOAL_ASSERT(options.depth >= 1 && options.depth <= IoEngine::kDepthMost);
    Result<OpenedQueue> opened = open_queue(file.descriptor(), options);
    if (!opened) return opened.status();
    std::unique_ptr<DiskTier> tier(new DiskTier(std::move(opened->queue), file.bytes(),
                                                file.alignment(), options.depth, options.tier));
    tier->file_.emplace(std::move(file));
    tier->path_ = std::move(opened->path);
    tier->log_ = options.log;
    tier->thread_ = std::thread([raw = tier.get()] { raw->run(); });
    return tier;
}

std::unique_ptr<DiskTier> DiskTier::create_driven(std::unique_ptr<IoQueue> queue, uint64_t bytes,
                                                  uint32_t alignment, uint32_t depth,
                                                  TierOptions options) {
    std::unique_ptr<DiskTier> tier(
        new DiskTier(std::move(queue), bytes, alignment, depth, std::move(options)));
    tier->queue_->attach();
    return tier;
}

DiskTier::~DiskTier() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
        cancel_ = true;
    }
    if (thread_.joinable()) {
        notify();
        thread_.join();
        return;
    }
    turn();
    while (!engine_.is_idle()) {
        queue_->wait(1, IoQueue::kForever);
        turn();
    }
}

void DiskTier::do_start(std::span<Transfer* const> transfers) {
    TransferList chain;
    for (Transfer* transfer : transfers) chain.push(*transfer);
    {
        const std::lock_guard lock(mutex_);
        started_.take(chain);
    }
    notify();
}

void DiskTier::do_cancel() {
    {
        const std::lock_guard lock(mutex_);
        cancel_ = true;
    }
    notify();
}

// Wakes the thread if it sleeps or is about to: whoever sees is_asleep_ first clears it.
void DiskTier::notify() {
    if (!thread_.joinable()) {
        if (!is_turning_) turn();
    } else if (is_asleep_.exchange(false)) {
        queue_->wake();
    }
}

bool DiskTier::has_news() {
    const std::lock_guard lock(mutex_);
    return !started_.empty() || cancel_ || new_memory_.has_value();
}

// The ring takes it from the thread that it belongs to alone.
void DiskTier::do_use_memory(std::span<std::byte> memory) {
    std::unique_lock lock(mutex_);
    new_memory_ = memory;
    lock.unlock();
    notify();
    lock.lock();
    memory_taken_.wait(lock, [&] { return !new_memory_; });
    const bool is_refused = !memory_status_;
    memory_refused_ = is_refused;
    if (path_.is_uring) path_ = uring_path(static_cast<const UringQueue&>(*queue_));
    if (!is_refused || !log_) return;
    log_(fmt::format("{} of RAM for rows on disk are not registered with io_uring ({}): reading "
                     "them costs a little more processor time",
                     bytes_text(memory.size()), memory_status_.message()));
}

void DiskTier::take_memory() {
    const std::lock_guard lock(mutex_);
    if (!new_memory_) return;
    memory_status_ = queue_->use_memory(*new_memory_);
    new_memory_.reset();
    memory_taken_.notify_one();
}

// Returns how many operations were completed.
size_t DiskTier::turn() {
    TransferList started;
    bool cancel = false;
    {
        const std::lock_guard lock(mutex_);
        started.take(started_);
        cancel = std::exchange(cancel_, false);
        is_stopping_ = stop_;
    }
    is_turning_ = true;
    take_memory();
    engine_.add(started);
    if (is_stopping_) engine_.drop_all();
    else if (cancel) engine_.drop_canceled();
    const size_t completed = engine_.step();
    is_turning_ = false;
    return completed;
}

void DiskTier::run() {
    block_signals();
    queue_->attach();
    for (;;) {
        turn();
        is_asleep_.store(true);
        if (!has_news()) {
            if (is_stopping_ && engine_.is_idle()) return;
            // With every operation in flight nothing can be started before some end: it is enough
            // to look when an eighth of them have.
            const uint32_t wanted = engine_.is_full() ? std::max(1U, engine_.busy_count() / 8) : 1;
            queue_->wait(wanted, IoQueue::kForever);
        }
        is_asleep_.exchange(false);
    }
}

bool DiskTier::do_poll(uint64_t deadline_ns) {
    if (thread_.joinable()) return false;
    if (turn() > 0) return true;
    const uint64_t now_ns = options().clock();
    const uint64_t left_ns = deadline_ns == UINT64_MAX ? IoQueue::kForever : deadline_ns - now_ns;
    if (now_ns < deadline_ns) queue_->wait(1, left_ns);
    return true;
}

void DiskTier::do_count(TierCounters& counters) const {
    const IoEngine::Counts& counts = engine_.counts();
    counters.device_reads += counts.reads.load(std::memory_order_relaxed);
    counters.device_writes += counts.writes.load(std::memory_order_relaxed);
    counters.retries += counts.repeats.load(std::memory_order_relaxed);
    counters.short_transfers += counts.short_results.load(std::memory_order_relaxed);
    counters.stray_completions += counts.strays.load(std::memory_order_relaxed);
    counters.paths_refused += (path_.refusal.empty() ? 0 : 1) + (memory_refused_ ? 1 : 0);
    counters.cpu_ns += queue_->cpu_ns();
    if (thread_.joinable()) counters.cpu_ns += thread_cpu_ns(thread_);
}

}  // namespace shoal::offload
