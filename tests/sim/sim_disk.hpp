// A disk made of memory, a clock and a seed: what is late, short, torn, misdirected, corrupt, refused
// or said twice is drawn from it. Memory that is being read is poisoned until its bytes arrive.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "offload/disk_tier.hpp"
#include "offload/io_queue.hpp"

namespace shoal::sim {

// Chances are of each operation of the device.
struct Plan {
    uint64_t seed = 1;
    double short_chance = 0;       // fewer bytes than asked for, as few as none
    double error_chance = 0;       // EIO, EAGAIN or EINTR
    double duplicate_chance = 0;   // completed twice
    double foreign_chance = 0;     // a completion of nothing
    double corrupt_chance = 0;     // a read with 1 to 8 bits flipped
    double misdirect_chance = 0;   // a read of other bytes of the same file
    double torn_chance = 0;        // a write that says it is done and is not whole
    double late_chance = 0;        // comes after the deadline
    uint64_t latency_most_ns = 100'000;
    uint32_t capacity = 128;

    bool can_lose() const {
        return corrupt_chance + misdirect_chance + torn_chance + late_chance + error_chance > 0;
    }
};

struct Injected {
    uint64_t shorts = 0, errors = 0, duplicates = 0, foreign = 0, corrupt = 0, misdirected = 0,
             torn = 0, late = 0;
    // Of the kinds that may lose a block.
    uint64_t losing() const { return errors + corrupt + misdirected + torn + late; }
};

// Lives longer than the tier over it.
class Disk {
public:
    static constexpr uint32_t kUnit = 4096;
    static constexpr uint64_t kDeadlineNs = 5'000'000;

    explicit Disk(const Plan& plan) : plan_(plan), random_(plan.seed) {}
    std::unique_ptr<offload::Tier> make_tier(uint64_t bytes);

    const Injected& injected() const { return injected_; }
    uint64_t now_ns() const { return now_ns_; }

private:
    friend class Queue;
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    bool draw(double chance) {
        return chance > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < chance;
    }

    const Plan plan_;
    std::mt19937_64 random_;
    Injected injected_;
    uint64_t now_ns_ = 1;
    std::unique_ptr<std::byte, Free> memory_;
    uint64_t bytes_ = 0;
};

}  // namespace shoal::sim
