// The tier seam over memory: what is started is done before start() returns.
#pragma once

#include <span>

#include "offload/tier.hpp"

namespace shoal::offload {

class MemoryTier final : public Tier {
public:
    // `memory` is the caller's and outlives the tier; a multiple of `alignment`, a power of two.
    MemoryTier(std::span<std::byte> memory, uint32_t alignment, TierOptions options = {})
        : Tier(memory.size(), alignment, std::move(options)), memory_(memory) {}

private:
    void do_start(std::span<Transfer* const> transfers) override;
    void do_count(TierCounters& counters) const override;

    std::span<std::byte> memory_;
    std::atomic<uint64_t> copies_out_{0};
    std::atomic<uint64_t> copies_in_{0};
};

}  // namespace shoal::offload
