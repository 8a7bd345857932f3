// Tiers that change how another tier behaves. Each owns the tier inside and is a tier itself; they
// nest in any order. Checking, counting and deadlines are the outermost one's.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>

#include "offload/tier.hpp"
#include "offload/transfer_list.hpp"

namespace shoal::offload {

class TierWrapper : public Tier {
protected:
    explicit TierWrapper(std::unique_ptr<Tier> inner);
    Tier& inner() const { return *inner_; }
    // Ends everything inside. First call of a wrapper's destructor that has do_finish().
    void close() { inner_.reset(); }

    void do_cancel() override { cancel_in(*inner_); }
    void do_use_memory(std::span<std::byte> memory) override { use_memory_in(*inner_, memory); }
    bool do_poll(uint64_t deadline_ns) override { return poll_in(*inner_, deadline_ns); }
    void do_count(TierCounters& counters) const override { count_in(*inner_, counters); }

private:
    std::unique_ptr<Tier> inner_;
};

// Lets at most `most` transfers into the tier inside, in order; the rest waits here.
class LimitingTier final : public TierWrapper {
public:
    LimitingTier(std::unique_ptr<Tier> inner, uint32_t most);
    ~LimitingTier() override;

private:
    void do_start(std::span<Transfer* const> transfers) override;
    void do_finish(Transfer& transfer, int error) override;
    void do_cancel() override;
    void pump(std::unique_lock<std::mutex>& lock);

    const uint32_t most_;
    std::mutex mutex_;
    TransferList waiting_;       // guarded by mutex_
    uint32_t inside_count_ = 0;  // guarded by mutex_
    bool is_pumping_ = false;    // guarded by mutex_
};

// Watches what goes in and comes out.
class CountingTier final : public TierWrapper {
public:
    explicit CountingTier(std::unique_ptr<Tier> inner) : TierWrapper(std::move(inner)) {}
    ~CountingTier() override { close(); }

    struct Seen {
        uint64_t started = 0;
        uint64_t finished = 0;
        uint64_t failed = 0;         // of those finished
        uint64_t in_flight_most = 0;
    };
    // From any thread.
    Seen seen() const;

private:
    void do_start(std::span<Transfer* const> transfers) override;
    void do_finish(Transfer& transfer, int error) override;

    mutable std::mutex mutex_;
    Seen seen_;                  // guarded by mutex_
};

// Lets each transfer in `delay_ns` after it was started, and not out of order: a slow disk. Not
// over a tier that is driven.
class DelayedTier final : public TierWrapper {
public:
    DelayedTier(std::unique_ptr<Tier> inner, uint64_t delay_ns);
    ~DelayedTier() override;

private:
    void do_start(std::span<Transfer* const> transfers) override;
    void do_cancel() override;
    void run();
    void drop(bool canceled_only);

    const uint64_t delay_ns_;
    std::mutex mutex_;
    std::condition_variable news_;
    TransferList waiting_;       // guarded by mutex_
    bool is_stopping_ = false;   // guarded by mutex_
    std::thread thread_;
};

}  // namespace shoal::offload
