// A tier that goes wrong as planned: what a test injects between the shell and the tier inside.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <vector>

#include "offload/tier_wrappers.hpp"

namespace shoal::offload {

enum class FaultKind : uint8_t {
    fail,       // with `error`, untouched
    flip_bits,  // `bits` of them, anywhere: of what is read, or of a write while it is in flight
    misdirect,  // goes to `other_offset` instead
    lose,       // reported done; nothing was moved
    hold,       // done inside, but not reported before `after` later ones are, or release()
};
inline constexpr size_t kFaultKindCount = 5;

// Befalls transfers as they come by, repeated ones anew: the `at`-th (from 0), or each one that
// begins at `offset`, or each one at all, up to `times` of them.
struct Fault {
    static constexpr uint64_t kAny = UINT64_MAX;
    FaultKind kind = FaultKind::fail;
    uint64_t at = kAny;
    uint64_t offset = kAny;
    uint64_t times = 1;
    int error = EIO;
    uint32_t bits = 1;
    uint64_t other_offset = 0;
    uint64_t after = kAny;
};

class FaultyTier final : public TierWrapper {
public:
    // The first fault of the plan that matches is the one. `seed`: which bits.
    FaultyTier(std::unique_ptr<Tier> inner, std::vector<Fault> plan, uint64_t seed);
    // Reports what is held.
    ~FaultyTier() override;

    // From any thread.
    uint64_t fired(FaultKind kind) const;
    size_t held_count() const;
    void release();

private:
    struct Active {
        Transfer* transfer;
        const Fault* fault;
        uint64_t offset;      // the transfer's own
    };
    struct Held {
        Transfer* transfer;
        int error;
        uint64_t until;       // finished_count_
    };
    void do_start(std::span<Transfer* const> transfers) override;
    void do_finish(Transfer& transfer, int error) override;
    const Fault* match(const Transfer& transfer);
    const Fault* take_active(Transfer& transfer);
    void flip(Transfer& transfer, uint32_t bits);
    std::vector<Held> take_held(bool all);

    mutable std::mutex mutex_;
    std::vector<Fault> plan_;                             // times: what is left, guarded by mutex_
    std::array<uint64_t, kFaultKindCount> fired_{};       // guarded by mutex_
    uint64_t started_count_ = 0;                          // guarded by mutex_
    uint64_t finished_count_ = 0;                         // guarded by mutex_
    std::vector<Active> active_;                          // guarded by mutex_
    std::vector<Held> held_;                              // guarded by mutex_
    const uint64_t seed_;
};

}  // namespace shoal::offload
