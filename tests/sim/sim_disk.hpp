// A disk made of memory, a clock and a seed, at the seam below the production I/O engine: what is
// late, short, torn, misdirected, corrupt, refused or said twice is drawn from it. Memory that is
// being read is poisoned until its bytes arrive: NaN (codes of -1 in q8), and out of bounds for
// AddressSanitizer.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <random>
#include <vector>

#include "offload/disk_tier.hpp"
#include "offload/io_queue.hpp"

namespace shoal::sim {

enum class Fault : uint8_t {
    none,
    refused,      // the queue does not take an operation now
    short_result, // fewer bytes than asked for, as few as none
    duplicate,    // completed twice
    foreign,      // a completion of nothing
    error,        // EIO, EAGAIN or EINTR, one time or many in a row
    full,         // ENOSPC for a while
    corrupt,      // a read with 1 to 8 bits flipped
    misdirected,  // bytes of, or to, another place of the file
    torn,         // a write that says it is done and is not whole
    late,         // after the deadline
    count,
};
inline constexpr size_t kFaultKinds = static_cast<size_t>(Fault::count);
const char* fault_name(Fault fault);

// A run of bytes of the file.
struct Place {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool overlaps(const Place& other) const {
        return offset < other.offset + other.bytes && other.offset < offset + bytes;
    }
};

// How often each was injected.
struct FaultCounts {
    std::array<uint64_t, kFaultKinds> of{};
    uint64_t& operator[](Fault fault) { return of[static_cast<size_t>(fault)]; }
    uint64_t operator[](Fault fault) const { return of[static_cast<size_t>(fault)]; }
};

// Chances are of each operation of the device.
struct DiskPlan {
    uint64_t seed = 1;
    std::array<double, kFaultKinds> chance{};
    uint64_t latency_most_ns = 100'000;
    uint32_t capacity = 128;   // operations that the queue takes at a time
    uint32_t depth = 128;      // that the engine has in flight
};

// Lives longer than the tier over it.
class Disk {
public:
    static constexpr uint32_t kUnit = 4096;
    static constexpr uint64_t kDeadlineNs = 60'000'000'000;

    explicit Disk(const DiskPlan& plan) : plan_(plan), random_(plan.seed) {}
    // Called once: the production tier and engine over this disk.
    std::unique_ptr<offload::Tier> make_tier(uint64_t bytes);

    // Somebody computes for a while.
    void pass_time();

    const FaultCounts& injected() const { return injected_; }
    // Of the tier that was made, which lives still.
    offload::TierCounters tier_counters() const { return tier_->counters(); }
    void begin_call() { call_first_ = events_.size(); }
    // Whether, since then, this befell an operation anywhere.
    bool befell(Fault fault) const;
    // Whether this befell operations here twice or more, since then once or more: a transfer was
    // started ahead, perhaps, and is tried twice.
    bool befell_twice(std::initializer_list<Fault> faults, const Place& place) const;
    // Whether some of what was written here last is not here.
    bool is_damaged(const Place& place) const;
    // An operation that is late and in flight, or has moved a part of its bytes, or none: it may
    // hold up others, and what follows it for the same bytes has no time left.
    bool has_late() const { return late_count_ > 0 || !overdue_.empty(); }

    // Of every operation in its order: the same for the same seed and use.
    uint64_t digest() const { return digest_; }

private:
    friend class SimQueue;
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    // Whether a fault of this kind is to happen now.
    bool draw(Fault fault);
    bool inject(Fault fault, const Place& place);
    void count(Fault fault, const Place& place);
    // What is written to `to` is not whole, or not what belongs there; or it is again.
    void set_damaged(const Place& to, bool damaged);
    void end_late(const Place& place, bool is_whole);
    void note(uint64_t event);

    const DiskPlan plan_;
    std::mt19937_64 random_;
    FaultCounts injected_;
    struct Event {
        Fault fault;
        Place place;
    };
    std::vector<Event> events_;     // of what does harm
    size_t call_first_ = 0;         // of events_ since begin_call()
    std::vector<bool> damaged_;     // by kUnit
    uint64_t late_count_ = 0;       // operations in flight
    std::vector<Place> overdue_;    // of late ones that ended otherwise than whole
    uint64_t now_ns_ = 1;
    uint64_t digest_ = 0;
    uint64_t errors_left_ = 0;      // operations that fail still
    uint64_t full_left_ = 0;        // writes that find no space still
    std::unique_ptr<std::byte, Free> memory_;
    uint64_t bytes_ = 0;
    offload::Tier* tier_ = nullptr;
};

}  // namespace shoal::sim
