// The tier seam: an array of bytes, in RAM or in a file, that is read and written by whole units.
//
// Transfers are started together, run while the caller does something else, and are waited for.
// What every tier must check is done here, once, around private do_ calls: bounds, alignment,
// identity of what was read, deadlines, counting. Wrappers (offload/tier_wrappers.hpp) take any
// tier and are one. tests/offload/tier_conformance_test.cpp holds every implementation to this.
//
//   tier.start(reads);                       // of several layers, in layer order
//   ...
//   SHOAL_TRY(tier.wait(reads_of_a_layer));  // sleeps once per 512 transfers, not per transfer
//
// Thread safety: start(), wait() and cancel() come from one thread at a time, counters() from any.
// Transfers complete on threads of the tier.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>

#include "shoal/status.hpp"

namespace shoal::offload {

enum class TransferKind : uint8_t { read, write };
enum class TransferState : uint8_t {
    idle,
    in_flight,
    awaited,  // in flight, and a wait() sleeps for it: seen by the tier only
    done,
    failed,
};

// One read or write. Owned by the caller, who keeps it and its memory, and leaves both alone, while
// it is in flight: also after a wait() that ran out of time. What was read may be used after a
// wait() that found it `done`, not before: that is where it is checked.
struct Transfer {
    TransferKind kind = TransferKind::read;
    uint64_t offset = 0;           // in the tier, a multiple of its alignment
    std::byte* data = nullptr;     // aligned likewise
    uint32_t bytes = 0;            // likewise, 1 unit or more
    // What the bytes are, mixed into their checksum: bytes of another place, another owner or an
    // earlier life do not match.
    uint64_t identity = 0;
    // A write stores its checksum here when it is started; a read is compared with it in wait().
    // null: not checked.
    uint64_t* checksum = nullptr;

    // Set by the tier.
    std::atomic<TransferState> state{TransferState::idle};
    std::atomic<bool> canceled{false};
    bool checked = false;          // a wait() has seen how it ended
    bool late = false;             // missed its deadline: only wait_ended() waits for it any more
    uint8_t retries = 0;
    int error = 0;                 // errno of a failed one; EBADMSG: not what was written
    uint64_t started_ns = 0;       // of the tier's clock; a retry starts anew
    Transfer* next = nullptr;      // of a queue inside the tier

    bool ended() const {
        const TransferState now = state.load(std::memory_order_acquire);
        return now == TransferState::done || now == TransferState::failed;
    }
    bool in_flight() const {
        const TransferState now = state.load(std::memory_order_acquire);
        return now == TransferState::in_flight || now == TransferState::awaited;
    }
};

// XXH3 of the bytes, seeded with their identity.
uint64_t transfer_checksum(const Transfer& transfer);

struct TierCounters {
    uint64_t reads = 0;              // transfers
    uint64_t writes = 0;
    uint64_t read_bytes = 0;
    uint64_t written_bytes = 0;
    uint64_t device_reads = 0;       // what they came to after neighbours were merged
    uint64_t device_writes = 0;
    uint64_t retries = 0;            // reads and writes that were repeated
    uint64_t short_transfers = 0;    // resumed where the device stopped
    uint64_t stray_completions = 0;  // of nothing that was in flight: ignored
    uint64_t checksum_mismatches = 0;
    uint64_t deadlines_missed = 0;   // in flight when it passed, once each
    uint64_t canceled = 0;           // before a device had them
    uint64_t failures = 0;           // transfers that failed for good
    uint64_t paths_refused = 0;      // what this machine refuses: io_uring, registered memory
    uint64_t cpu_ns = 0;             // of the tier's own threads
};

struct TierOptions {
    static constexpr uint64_t kNoDeadline = UINT64_MAX;
    // Of a transfer, from its start; a retry has as much again.
    uint64_t deadline_ns = kNoDeadline;
    // Monotone time; empty: the system's. Asked at each start, and when a wait() has to sleep.
    std::function<uint64_t()> clock;
};

class Tier {
public:
    virtual ~Tier();
    Tier(const Tier&) = delete;
    Tier& operator=(const Tier&) = delete;

    uint64_t bytes() const { return bytes_; }
    uint32_t alignment() const { return alignment_; }
    const TierOptions& options() const { return options_; }

    // Starts transfers, none of them in flight; returns at once. Kinds may be mixed. Reads and
    // writes of the same bytes in flight together have no order. The device gets them about in the
    // order in which they are listed here, earlier calls first, reads before writes.
    void start(std::span<Transfer* const> transfers);
    // Waits until each of these has ended, or has missed its deadline; what missed it before is not
    // waited for. Compares what was read with its checksum, here, on the calling thread; what
    // differs, and what failed with an error that may pass, is tried once more, beside late ones
    // too. Ok: all are `done`. `unavailable`: some are in flight still, or failed. `corrupt`: some
    // are not what was written. Which: their `state` and `error`.
    Status wait(std::span<Transfer* const> transfers);
    // Waits until none of these is in flight, however long it takes: their memory is about to go.
    // They are not checked.
    void wait_ended(std::span<Transfer* const> transfers);
    // Those that no device has yet fail with ECANCELED; the others go on. Wait for them all the
    // same.
    void cancel(std::span<Transfer* const> transfers);
    TierCounters counters() const;
    // Memory that most transfers go to from now on, in place of what was named before. It stays
    // mapped until other memory, or none, is named, or the tier is gone. Transfers elsewhere work
    // as well. Nothing is in flight.
    void use_memory(std::span<std::byte> memory);

protected:
    // `alignment`: a power of two; offset, data and bytes of every transfer are multiples of it.
    Tier(uint64_t bytes, uint32_t alignment, TierOptions options);
    // Ends a transfer that do_start() was given. Any thread. The transfer is the caller's again.
    void finish(Transfer& transfer, int error);

    // For wrappers. The shell of the outermost tier checks and counts; those inside are passed by.
    // From here on what `inner` finishes comes to do_finish().
    void wrap(Tier& inner) { inner.outer_ = this; }
    static void start_in(Tier& inner, std::span<Transfer* const> transfers) {
        inner.do_start(transfers);
    }
    static void use_memory_in(Tier& inner, std::span<std::byte> memory) {
        inner.do_use_memory(memory);
    }
    static void cancel_in(Tier& inner) { inner.do_cancel(); }
    static bool poll_in(Tier& inner, uint64_t deadline_ns) { return inner.do_poll(deadline_ns); }
    static void count_in(const Tier& inner, TierCounters& counters) { inner.do_count(counters); }

private:
    // From the thread of start(), or from threads of a wrapper. Must end every transfer by
    // finish(), at once or later; the destructor of an implementation, at the latest.
    virtual void do_start(std::span<Transfer* const> transfers) = 0;
    // Some transfers are `canceled`: ends those of them that no device has.
    virtual void do_cancel() {}
    // A tier without threads of its own makes some progress, until `deadline_ns` at most, and
    // returns true. false: there are threads that do.
    virtual bool do_poll(uint64_t deadline_ns);
    virtual void do_use_memory(std::span<std::byte>) {}
    // Adds what the shell does not know.
    virtual void do_count(TierCounters&) const {}
    virtual void do_finish(Transfer& transfer, int error) { finish(transfer, error); }

    void check_request(const Transfer& transfer) const;
    void start_part(std::span<Transfer* const> transfers, uint64_t now_ns);
    void launch(Transfer& transfer, uint64_t now_ns);
    uint64_t deadline_of(std::span<Transfer* const> transfers) const;
    enum class WaitFor : uint8_t { in_time, all };
    bool await(std::span<Transfer* const> transfers, WaitFor which, uint64_t deadline_ns);
    void await_in_time(std::span<Transfer* const> transfers);
    bool sleep_until_awaited(uint64_t deadline_ns);
    size_t wait_round(std::span<Transfer* const> transfers, bool may_retry);
    size_t check(std::span<Transfer* const> transfers, bool may_retry);
    void check_ended(Transfer& transfer);
    Status outcome(std::span<Transfer* const> transfers);

    const uint64_t bytes_;
    const uint32_t alignment_;
    const TierOptions options_;
    Tier* outer_ = nullptr;

    // A wait() marks what it sleeps for and is woken by the thread that ends the last of them. The
    // counts run over the life of the tier: a thread that is late to count what it ended while a
    // wait() gave up is waited for by the next.
    std::atomic<uint64_t> awaited_total_{0};
    std::atomic<uint64_t> awaited_ended_{0};
    std::mutex mutex_;
    std::condition_variable ended_;

    std::atomic<uint64_t> started_{0};
    std::atomic<uint64_t> finished_{0};
    std::atomic<uint64_t> reads_{0}, writes_{0}, read_bytes_{0}, written_bytes_{0};
    std::atomic<uint64_t> retries_{0}, mismatches_{0}, late_{0}, canceled_{0}, failures_{0};
};

}  // namespace shoal::offload
