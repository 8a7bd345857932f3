#include "offload/tier.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "shoal/text.hpp"

namespace shoal::offload {

namespace {

// Long enough that waking costs nothing beside 512 reads, short enough that what has arrived is
// compared with its checksum while the rest is on its way, and is in a cache when it is.
constexpr size_t kWaitTransfers = 512;
// Handed over at a time: the device works on the first while the rest is prepared.
constexpr size_t kStartTransfers = 256;

uint64_t steady_ns() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

TierOptions with_clock(TierOptions options) {
    if (!options.clock) options.clock = steady_ns;
    return options;
}

// Of a device, a file system or a kernel short of something for a moment. Not: no space, no such
// file, wrong arguments, canceled.
bool may_pass(int error) {
    switch (error) {
        case EIO:
        case EAGAIN:
        case EINTR:
        case EBUSY:
        case ENOMEM:
        case ENOBUFS:
        case ETIMEDOUT:
        case EBADMSG: return true;
        default: return false;
    }
}

void add(std::atomic<uint64_t>& counter, uint64_t value) {
    counter.fetch_add(value, std::memory_order_relaxed);
}

uint64_t value_of(const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
}

std::string transfer_text(const Transfer& transfer) {
    return fmt::format("{} of {} B at byte {}",
                       transfer.kind == TransferKind::read ? "read" : "write",
                       grouped(transfer.bytes), grouped(transfer.offset));
}

}  // namespace

uint64_t transfer_checksum(const Transfer& transfer) {
    return XXH3_64bits_withSeed(transfer.data, transfer.bytes, transfer.identity);
}

Tier::Tier(uint64_t bytes, uint32_t alignment, TierOptions options)
    : bytes_(bytes), alignment_(alignment), options_(with_clock(std::move(options))) {
    SHOAL_ASSERT(std::has_single_bit(alignment));
    SHOAL_ASSERT(bytes % alignment == 0);
}

Tier::~Tier() { SHOAL_ASSERT(started_ == finished_); }

// --- starting and ending -----------------------------------------------------------------------

void Tier::check_request(const Transfer& transfer) const {
    const uint64_t mask = alignment_ - 1;
    SHOAL_ASSERT(!transfer.in_flight());
    SHOAL_ASSERT(transfer.bytes > 0 && (transfer.bytes & mask) == 0);
    SHOAL_ASSERT((transfer.offset & mask) == 0);
    SHOAL_ASSERT(transfer.offset <= bytes_ && transfer.bytes <= bytes_ - transfer.offset);
    SHOAL_ASSERT(transfer.data != nullptr);
    SHOAL_ASSERT((reinterpret_cast<uintptr_t>(transfer.data) & mask) == 0);
}

void Tier::launch(Transfer& transfer, uint64_t now_ns) {
    transfer.error = 0;
    transfer.checked = false;
    transfer.late = false;
    transfer.started_ns = now_ns;
    transfer.next = nullptr;
    transfer.state.store(TransferState::in_flight, std::memory_order_release);
    add(started_, 1);
}

void Tier::start(std::span<Transfer* const> transfers) {
    SHOAL_ASSERT(outer_ == nullptr);
    const uint64_t now_ns = options_.clock();
    for (size_t at = 0; at < transfers.size(); at += kStartTransfers) {
        start_part(transfers.subspan(at, std::min(kStartTransfers, transfers.size() - at)), now_ns);
    }
}

void Tier::start_part(std::span<Transfer* const> transfers, uint64_t now_ns) {
    uint64_t reads = 0;
    uint64_t read_bytes = 0;
    uint64_t written_bytes = 0;
    for (Transfer* transfer : transfers) {
        check_request(*transfer);
        const bool is_read = transfer->kind == TransferKind::read;
        reads += is_read ? 1 : 0;
        (is_read ? read_bytes : written_bytes) += transfer->bytes;
        if (!is_read && transfer->checksum != nullptr) {
            *transfer->checksum = transfer_checksum(*transfer);
        }
        transfer->retries = 0;
        transfer->canceled.store(false, std::memory_order_relaxed);
        launch(*transfer, now_ns);
    }
    add(reads_, reads);
    add(writes_, transfers.size() - reads);
    add(read_bytes_, read_bytes);
    add(written_bytes_, written_bytes);
    do_start(transfers);
}

void Tier::finish(Transfer& transfer, int error) {
    if (outer_ != nullptr) {
        outer_->do_finish(transfer, error);
        return;
    }
    const TransferState ended = error == 0 ? TransferState::done : TransferState::failed;
    transfer.error = error;
    add(finished_, 1);
    const TransferState before = transfer.state.exchange(ended, std::memory_order_acq_rel);
    SHOAL_ASSERT(before == TransferState::in_flight || before == TransferState::awaited);
    if (before != TransferState::awaited) return;
    // Either the total read here is the one that a wait() sleeps for, or that wait() has yet to
    // compare it with this count.
    if (awaited_ended_.fetch_add(1) + 1 != awaited_total_.load()) return;
    { const std::lock_guard lock(mutex_); }
    ended_.notify_one();
}

bool Tier::do_poll(uint64_t) { return false; }

void Tier::use_memory(std::span<std::byte> memory) {
    SHOAL_ASSERT(outer_ == nullptr && started_ == finished_);
    do_use_memory(memory);
}

void Tier::cancel(std::span<Transfer* const> transfers) {
    for (Transfer* transfer : transfers) {
        if (transfer->in_flight()) transfer->canceled.store(true, std::memory_order_relaxed);
    }
    do_cancel();
}

// --- waiting -----------------------------------------------------------------------------------

// Of those that may still come in time.
uint64_t Tier::deadline_of(std::span<Transfer* const> transfers) const {
    uint64_t first_ns = UINT64_MAX;
    for (const Transfer* transfer : transfers) {
        SHOAL_ASSERT(transfer->state.load(std::memory_order_relaxed) != TransferState::idle);
        if (!transfer->late && transfer->in_flight()) {
            first_ns = std::min(first_ns, transfer->started_ns);
        }
    }
    return first_ns > UINT64_MAX - options_.deadline_ns ? UINT64_MAX
                                                        : first_ns + options_.deadline_ns;
}

bool Tier::sleep_until_awaited(uint64_t deadline_ns) {
    using std::chrono::nanoseconds;
    constexpr uint64_t kSleepMaxNs = 1'000'000'000;
    const uint64_t total = awaited_total_.load();
    while (awaited_ended_.load() != total) {
        const bool was_driven = do_poll(deadline_ns);
        if (awaited_ended_.load() == total) break;
        const uint64_t now_ns = options_.clock();
        if (now_ns >= deadline_ns) return false;
        if (was_driven) continue;
        const nanoseconds left(std::min(deadline_ns - now_ns, kSleepMaxNs));
        std::unique_lock lock(mutex_);
        ended_.wait_for(lock, left, [&] { return awaited_ended_.load() == total; });
    }
    return true;
}

// false: the deadline passed and some are in flight still.
bool Tier::await(std::span<Transfer* const> transfers, WaitFor which, uint64_t deadline_ns) {
    uint64_t marked = 0;
    for (Transfer* transfer : transfers) {
        if (transfer->late && which == WaitFor::in_time) continue;
        TransferState expected = TransferState::in_flight;
        if (transfer->state.load(std::memory_order_acquire) == expected &&
            transfer->state.compare_exchange_strong(expected, TransferState::awaited,
                                                    std::memory_order_acq_rel)) {
            ++marked;
        }
    }
    if (marked == 0) return true;
    awaited_total_.fetch_add(marked);
    if (sleep_until_awaited(deadline_ns)) return true;
    bool all_ended = true;
    for (Transfer* transfer : transfers) {
        TransferState expected = TransferState::awaited;
        if (transfer->state.compare_exchange_strong(expected, TransferState::in_flight,
                                                    std::memory_order_acq_rel)) {
            awaited_total_.fetch_sub(1);
            all_ended = false;
        }
    }
    return all_ended;
}

// Until each has ended or missed a deadline of its own: one that was started long ago, or does not
// come, takes no time from the others.
void Tier::await_in_time(std::span<Transfer* const> transfers) {
    const bool any_late = std::any_of(transfers.begin(), transfers.end(), [](const Transfer* t) {
        return t->late && t->in_flight();
    });
    if (any_late) (void)do_poll(0);  // nobody sleeps for these, and a driven tier must go on
    for (;;) {
        if (await(transfers, WaitFor::in_time, deadline_of(transfers))) return;
        const uint64_t now_ns = options_.clock();
        for (Transfer* transfer : transfers) {
            const bool is_overdue = now_ns - transfer->started_ns >= options_.deadline_ns;
            if (!is_overdue || transfer->late || !transfer->in_flight()) continue;
            transfer->late = true;
            add(late_, 1);
        }
    }
}

void Tier::check_ended(Transfer& transfer) {
    if (transfer.error != 0 || transfer.kind != TransferKind::read) return;
    if (transfer.checksum == nullptr || transfer_checksum(transfer) == *transfer.checksum) return;
    add(mismatches_, 1);
    transfer.error = EBADMSG;
    transfer.state.store(TransferState::failed, std::memory_order_release);
}

// Returns how many were started again.
size_t Tier::check(std::span<Transfer* const> transfers, bool may_retry) {
    size_t retried_count = 0;
    for (Transfer* transfer : transfers) {
        if (transfer->checked || transfer->in_flight()) continue;
        check_ended(*transfer);
        if (may_retry && transfer->retries == 0 && may_pass(transfer->error) &&
            !transfer->canceled.load(std::memory_order_relaxed)) {
            transfer->retries = 1;
            add(retries_, 1);
            ++retried_count;
            launch(*transfer, options_.clock());
            do_start({&transfer, 1});
            continue;
        }
        transfer->checked = true;
        if (transfer->error == ECANCELED) add(canceled_, 1);
        else if (transfer->error != 0) add(failures_, 1);
    }
    return retried_count;
}

// Returns how many were started again.
size_t Tier::wait_round(std::span<Transfer* const> transfers, bool may_retry) {
    size_t retried_count = 0;
    for (size_t at = 0; at < transfers.size(); at += kWaitTransfers) {
        const auto part = transfers.subspan(at, std::min(kWaitTransfers, transfers.size() - at));
        await_in_time(part);
        retried_count += check(part, may_retry);
    }
    return retried_count;
}

Status Tier::wait(std::span<Transfer* const> transfers) {
    SHOAL_ASSERT(outer_ == nullptr);
    // The second round is for what was tried again; the third for what had been late, came in the
    // second, and was bad.
    constexpr int kRounds = 3;
    for (int round = 1; round <= kRounds; ++round) {
        if (wait_round(transfers, round < kRounds) == 0) break;
    }
    return outcome(transfers);
}

void Tier::wait_ended(std::span<Transfer* const> transfers) {
    SHOAL_ASSERT(outer_ == nullptr);
    (void)await(transfers, WaitFor::all, UINT64_MAX);
}

Status Tier::outcome(std::span<Transfer* const> transfers) {
    const Transfer* failed = nullptr;
    const Transfer* corrupt = nullptr;
    const Transfer* late = nullptr;
    size_t failed_count = 0;
    size_t late_count = 0;
    for (Transfer* transfer : transfers) {
        if (!transfer->checked) {
            ++late_count;
            if (late == nullptr) late = transfer;
        } else if (transfer->error != 0) {
            ++failed_count;
            if (failed == nullptr) failed = transfer;
            if (corrupt == nullptr && transfer->error == EBADMSG) corrupt = transfer;
        }
    }
    if (corrupt != nullptr) {
        return Status::error(StatusCode::corrupt,
                             fmt::format("{}: not what was written there (checksum), {} of {} "
                                         "transfers failed",
                                         transfer_text(*corrupt), failed_count, transfers.size()));
    }
    if (failed != nullptr) {
        return Status::error(
            StatusCode::unavailable,
            fmt::format("{}: {}, {} of {} transfers failed", transfer_text(*failed),
                        std::generic_category().message(failed->error), failed_count,
                        transfers.size()));
    }
    if (late != nullptr) {
        return Status::error(
            StatusCode::unavailable,
            fmt::format("{}: no answer within {} ms, {} of {} transfers are in flight still",
                        transfer_text(*late), options_.deadline_ns / 1'000'000, late_count,
                        transfers.size()));
    }
    return Status::ok();
}

TierCounters Tier::counters() const {
    TierCounters out;
    out.reads = value_of(reads_);
    out.writes = value_of(writes_);
    out.read_bytes = value_of(read_bytes_);
    out.written_bytes = value_of(written_bytes_);
    out.retries = value_of(retries_);
    out.checksum_mismatches = value_of(mismatches_);
    out.deadlines_missed = value_of(late_);
    out.canceled = value_of(canceled_);
    out.failures = value_of(failures_);
    do_count(out);
    return out;
}

}  // namespace shoal::offload
