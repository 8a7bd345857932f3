// host.check_rows: every row is what was written to its slot, shown before attention reads it.
//
// A hash of K and of V of each slot, seeded with what they belong to, is kept beside the rows of a
// group. It stands for the slot, not for memory: rows that were shared, copied, moved or reused in
// the wrong way no longer match it.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.hpp"

namespace shoal {

class RowCheck {
public:
    static uint64_t bytes(uint32_t slot_count_max) {
        return uint64_t{2} * slot_count_max * sizeof(uint64_t);
    }

    RowCheck() = default;  // off: nothing is recorded, nothing is found wrong
    // `memory`: bytes(slot_count_max), zero. `seed` tells groups apart.
    RowCheck(std::byte* memory, uint32_t slot_count_max, uint64_t seed)
        : hashes_(reinterpret_cast<uint64_t*>(memory)), slot_count_max_(slot_count_max),
          seed_(seed) {}
    bool is_on() const { return hashes_ != nullptr; }

    // These rows were just written, all heads of them.
    void record(const kernels::KvView& rows, kernels::RowPart part,
                std::span<const int64_t> slots);
    // Slots hold from now on what those of `from` hold, a check of the same group.
    void copy_from(const RowCheck& from, kernels::RowPart part);
    // The first visible slot of spans [spans.begin, spans.end) whose K or V is not what was
    // recorded, or UINT32_MAX.
    uint32_t first_wrong(const kernels::KvView& rows, std::span<const kernels::SpanMask> masks,
                         SlotRange spans) const;

private:
    std::span<uint64_t> of(kernels::RowPart part) const {
        return {hashes_ + (part == kernels::RowPart::k ? 0 : slot_count_max_), slot_count_max_};
    }
    uint64_t hash(const kernels::KvView& rows, kernels::RowPart part, uint32_t slot) const;

    uint64_t* hashes_ = nullptr;  // [2, slot_count_max]: K, then V
    uint32_t slot_count_max_ = 0;
    uint64_t seed_ = 0;
};

}  // namespace shoal
