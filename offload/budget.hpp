// Bytes of one tier, handed out before they are taken.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "shoal/status.hpp"

namespace shoal::offload {

// What bytes are for: the lines of shoal::MemoryPlan.
enum class MemoryTag : uint8_t {
    kv,         // K and V rows, whole blocks
    labels,     // labels, ranges, open spans
    index,      // block tables, stamps, span masks
    workspace,  // scores, candidates, partial states, prefill tiles
};
inline constexpr size_t kMemoryTagCount = 4;
const char* memory_tag_name(MemoryTag tag);

class Budget;

// Bytes taken from a Budget, given back on destruction. Move-only; an empty one holds 0 bytes.
// One thread at a time per Reservation. Must not outlive its Budget.
class Reservation {
public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&& other) noexcept;
    ~Reservation();

    uint64_t bytes() const { return bytes_; }
    MemoryTag tag() const { return tag_; }
    // Takes `more_bytes` from the same Budget; on refusal the reservation is as before.
    Status grow(uint64_t more_bytes);
    // Gives `fewer_bytes` (at most bytes()) back.
    void shrink(uint64_t fewer_bytes);

private:
    friend class Budget;
    Reservation(Budget* budget, MemoryTag tag, uint64_t bytes)
        : budget_(budget), tag_(tag), bytes_(bytes) {}
    Budget* budget_ = nullptr;
    MemoryTag tag_ = MemoryTag::kv;
    uint64_t bytes_ = 0;
};

// A total for one tier. Thread-safe. Destroyed after every Reservation made from it.
class Budget {
public:
    // `field` is the configuration key that sets the total ("host.kv_bytes"): messages name it.
    Budget(std::string field, uint64_t total_bytes);
    ~Budget();
    Budget(const Budget&) = delete;
    Budget& operator=(const Budget&) = delete;

    // Refuses with `out_of_memory` when fewer than `bytes` are left, naming the field, what it is
    // for, the bytes wanted and the bytes left. Nothing is taken then.
    Result<Reservation> reserve(MemoryTag tag, uint64_t bytes);

    const std::string& field() const { return field_; }
    uint64_t total_bytes() const { return total_bytes_; }
    uint64_t used_bytes() const;
    uint64_t used_bytes(MemoryTag tag) const;
    uint64_t left_bytes() const { return total_bytes_ - used_bytes(); }

private:
    friend class Reservation;
    Status take(MemoryTag tag, uint64_t bytes);
    void give_back(MemoryTag tag, uint64_t bytes);

    const std::string field_;
    const uint64_t total_bytes_;
    mutable std::mutex mutex_;
    uint64_t used_bytes_ = 0;                                  // guarded by mutex_
    std::array<uint64_t, kMemoryTagCount> used_by_tag_{};      // guarded by mutex_
};

}  // namespace shoal::offload
