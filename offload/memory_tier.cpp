#include "offload/memory_tier.hpp"

#include <cstring>

namespace shoal::offload {

void MemoryTier::do_start(std::span<Transfer* const> transfers) {
    for (Transfer* transfer : transfers) {
        std::byte* const here = memory_.data() + transfer->offset;
        const bool is_read = transfer->kind == TransferKind::read;
        std::memcpy(is_read ? transfer->data : here, is_read ? here : transfer->data,
                    transfer->bytes);
        (is_read ? copies_out_ : copies_in_).fetch_add(1, std::memory_order_relaxed);
        finish(*transfer, 0);
    }
}

void MemoryTier::do_count(TierCounters& counters) const {
    counters.device_reads += copies_out_.load(std::memory_order_relaxed);
    counters.device_writes += copies_in_.load(std::memory_order_relaxed);
}

}  // namespace shoal::offload
