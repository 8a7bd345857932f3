// budget.adaptive: rows move between the groups of a store, their total staying what it is.
//
// The last row that a group selected says what one row more would have found: the share of its
// heads' attention that this row holds. Where that is more than elsewhere, attention is spread, and
// the group gets more rows in the next step; a group whose last rows hold nothing gives some away.
#pragma once

#include <span>

namespace shoal {

// Most and least that a group gets of budget.rows.
inline constexpr float kRowsFactorMax = 4.0F;
inline constexpr float kRowsFactorMin = 0.25F;

// One group that selected in this step.
struct RowShare {
    float* factor = nullptr;  // of budget.rows, in and out; starts at 1
    double marginal = 0;      // score of the worst row chosen, per query head; 0 when none was left
    double weight = 1;        // groups that attend the selection
};

// One step: the sum of weight x factor of these groups becomes the sum of their weights, but where
// limits forbid it.
void share_rows(std::span<const RowShare> shares);

}  // namespace shoal
