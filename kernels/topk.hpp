// The k best-scored slots of one group, as an ascending list of slots.
//
// Ties go to the lowest slot, so the result depends on the scores alone: not on the thread
// count, not on the candidates. Slots with score -inf are never chosen; if fewer than k remain,
// the list is shorter.
#pragma once

#include "kernels/views.hpp"

namespace shoal::kernels {

// Slots whose score reached a threshold, in ascending pieces (one per part of the label scan).
struct CandidatePart {
    const uint32_t* slots = nullptr;
    uint32_t count = 0;
};

struct TopkInput {
    const float* scores = nullptr;  // [slot_count]; -inf = never chosen; no NaN, -0 is 0
    uint32_t slot_count = 0;
    uint32_t k = 0;                 // 1 ..
    // Every slot with score >= candidate_threshold, or part_count = 0 when unknown. Used when
    // they are at least k, else all scores are read once more: same result either way.
    const CandidatePart* parts = nullptr;
    uint32_t part_count = 0;
};

struct TopkOutput {
    uint32_t* slots = nullptr;  // [k], ascending; only the first `count` are written
    uint32_t count = 0;
    float threshold = 0.0F;     // score of the worst one chosen; -inf when count < k
    bool guess_held = false;    // the candidates were enough
};

// Bytes of workspace for the largest slot_count; 64 B aligned.
size_t topk_workspace_bytes(uint32_t slot_count_max);

}  // namespace shoal::kernels
