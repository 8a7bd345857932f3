// topk: radix select over a few candidates, one pass in order to emit.
//
// When the candidates of the scan are enough, nothing else is read. Otherwise every score is read
// twice: once for the maxima of sets of up to 32 scores, whose k-th best is a lower bound of the
// threshold, once to keep what reaches it (about 1.15 k slots when scores lie at random; all of
// them in the worst case, which is slower and not wrong). Bench: bench/topk.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/topk.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/cpu/cpu.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU = hn::Rebind<uint32_t, DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
constexpr DF kF;
constexpr DU kU;
constexpr uint32_t kLanes = static_cast<uint32_t>(HWY_LANES(float));
constexpr uint32_t kSignBit = 0x80000000U;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Unsigned keys in the order of the scores; -0 and +0 are one key.
HWY_INLINE uint32_t key_of(float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0F);
    return bits ^ ((bits & kSignBit) != 0 ? ~0U : kSignBit);
}
HWY_INLINE VU keys_of(VF scores) {
    const VU bits = hn::BitCast(kU, hn::Add(scores, hn::Zero(kF)));
    const VU negative = hn::Sub(hn::Zero(kU), hn::ShiftRight<31>(bits));
    return hn::Xor(bits, hn::Or(negative, hn::Set(kU, kSignBit)));
}
float score_of(uint32_t key) {
    return std::bit_cast<float>((key & kSignBit) != 0 ? key ^ kSignBit : ~key);
}

// The k-th largest of `keys`, and how many keys of that value are among the k largest.
struct Selected {
    uint32_t key = 0;
    uint32_t ties = 0;
};

Selected radix_select(const uint32_t* keys, size_t count, uint32_t k) {
    constexpr uint32_t kBits[3] = {11, 11, 10};
    uint32_t histogram[1U << 11];
    uint32_t prefix = 0;
    uint32_t prefix_mask = 0;
    uint32_t shift = 32;
    for (const uint32_t bits : kBits) {
        shift -= bits;
        const uint32_t bin_mask = (1U << bits) - 1U;
        std::memset(histogram, 0, sizeof(uint32_t) << bits);
        for (size_t i = 0; i < count; ++i) {
            // Keys outside the prefix count 0: no branch to mispredict.
            histogram[(keys[i] >> shift) & bin_mask] += (keys[i] & prefix_mask) == prefix ? 1U : 0U;
        }
        uint32_t bin = bin_mask;
        for (; histogram[bin] < k; --bin) k -= histogram[bin];
        prefix |= bin << shift;
        prefix_mask |= bin_mask << shift;
    }
    return {prefix, k};
}

// Slots that may be among the best, ascending, with their keys.
struct Survivors {
    uint32_t* slots = nullptr;
    uint32_t* keys = nullptr;
    uint32_t count = 0;
};

void take_candidates(const TopkInput& in, Survivors& survivors) {
    for (uint32_t p = 0; p < in.part_count; ++p) {
        const CandidatePart& part = in.parts[p];
        uint32_t* slots = survivors.slots + survivors.count;
        uint32_t* keys = survivors.keys + survivors.count;
        for (uint32_t i = 0; i < part.count; ++i) {
            slots[i] = part.slots[i];
            keys[i] = key_of(in.scores[part.slots[i]]);
        }
        survivors.count += part.count;
    }
}

// A key that at least k slots reach, or the key of -inf. `maxima` has room for a key per slot.
uint32_t lower_bound_key(const TopkInput& in, uint32_t* maxima) {
    constexpr uint32_t kSetMax = 32;
    const uint32_t whole = in.slot_count / kLanes * kLanes;
    uint32_t set = kSetMax;
    while (set > 1 && whole / set < 4 * in.k) set /= 2;
    const uint32_t lowest = key_of(-kInfinity);
    if (set == 1) return lowest;
    uint32_t count = 0;
    const uint32_t stride = set * kLanes;
    for (uint32_t slot = 0; slot + stride <= whole; slot += stride) {
        VF best = hn::LoadU(kF, in.scores + slot);
        for (uint32_t i = 1; i < set; ++i) {
            best = hn::Max(best, hn::LoadU(kF, in.scores + slot + i * kLanes));
        }
        hn::StoreU(keys_of(best), kU, maxima + count);
        count += kLanes;
    }
    return count < in.k ? lowest : radix_select(maxima, count, in.k).key;
}

void take_scores(const TopkInput& in, uint32_t bound, Survivors& survivors) {
    // `bound` of -inf keeps every slot that may be chosen.
    const uint32_t lowest = key_of(-kInfinity);
    const VF reach = hn::Set(kF, score_of(bound));
    uint32_t slot = 0;
    for (; slot + kLanes <= in.slot_count; slot += kLanes) {
        const VF scores = hn::LoadU(kF, in.scores + slot);
        const auto above = bound == lowest ? hn::Gt(scores, reach) : hn::Ge(scores, reach);
        if (hn::AllFalse(kF, above)) continue;
        // The compressed vectors end inside the workspace: at most `slot` were kept so far.
        const auto chosen = hn::RebindMask(kU, above);
        hn::StoreU(hn::Compress(hn::Iota(kU, slot), chosen), kU, survivors.slots + survivors.count);
        hn::StoreU(hn::Compress(keys_of(scores), chosen), kU, survivors.keys + survivors.count);
        survivors.count += static_cast<uint32_t>(hn::CountTrue(kU, chosen));
    }
    for (; slot < in.slot_count; ++slot) {
        const uint32_t key = key_of(in.scores[slot]);
        if (key == lowest || key < bound) continue;
        survivors.slots[survivors.count] = slot;
        survivors.keys[survivors.count++] = key;
    }
}

void emit(const Survivors& survivors, uint32_t k, TopkOutput& out) {
    if (survivors.count < k) {
        std::copy_n(survivors.slots, survivors.count, out.slots);
        out.count = survivors.count;
        out.threshold = -kInfinity;
        return;
    }
    Selected worst = radix_select(survivors.keys, survivors.count, k);
    out.threshold = score_of(worst.key);
    out.count = k;
    uint32_t written = 0;
    for (uint32_t i = 0; written < k; ++i) {
        const bool is_tie = survivors.keys[i] == worst.key && worst.ties > 0;
        worst.ties -= is_tie ? 1U : 0U;
        out.slots[written] = survivors.slots[i];
        written += survivors.keys[i] > worst.key || is_tie ? 1U : 0U;
    }
}

void topk_here(const TopkInput& in, TopkOutput& out, void* workspace) {
    uint64_t candidate_count = 0;
    for (uint32_t p = 0; p < in.part_count; ++p) candidate_count += in.parts[p].count;
    Survivors survivors;
    survivors.slots = static_cast<uint32_t*>(workspace);
    survivors.keys = survivors.slots + in.slot_count;
    out.guess_held = candidate_count >= in.k;
    if (out.guess_held) {
        take_candidates(in, survivors);
    } else {
        take_scores(in, lower_bound_key(in, survivors.keys), survivors);
    }
    emit(survivors, in.k, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels {

// A slot and a key each.
size_t topk_workspace_bytes(uint32_t slot_count_max) {
    return (size_t{slot_count_max} * 2 * sizeof(uint32_t) + 63) / 64 * 64;
}

namespace cpu {

HWY_EXPORT(topk_here);
void topk(const TopkInput& in, TopkOutput& out, void* workspace) {
    HWY_DYNAMIC_DISPATCH(topk_here)(in, out, workspace);
}

}  // namespace cpu
}  // namespace shoal::kernels
#endif
