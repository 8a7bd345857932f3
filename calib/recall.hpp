// Mass recall: how much of exact attention a set of slots covers. For sampled statistics, tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shoal::calib {

struct RecallInput {
    // Exact scores of the query heads of one KV head, natural log domain (scale * q.k).
    // Index = slot; -inf = not visible. No NaN.
    const float* scores = nullptr;        // [q_head_count, slot_count]
    size_t score_stride = 0;              // floats from one query head to the next
    uint32_t q_head_count = 0;
    uint32_t slot_count = 0;
    std::span<const uint32_t> attended;   // slots, each once, < slot_count, any order
};

// recall[h] = mass of the attended slots / mass of all visible slots, 0 .. 1, softmax in double.
// 1 when nothing is visible. Attended slots that are not visible count nothing.
void mass_recall(const RecallInput& in, std::span<double> recall);  // [q_head_count]

}  // namespace shoal::calib
