// Groups: the partition of the lanes (layer, KV head) into sets that attend the same tokens.
//
// A group is the unit of selection, of layout and of transfer. Sharing policies differ in the
// partition alone; everything after it is the same code.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/views.hpp"
#include "shoal/config.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal {

struct Group {
    uint32_t layer = 0;
    uint32_t kv_head_first = 0;
    uint32_t q_per_kv = 1;
    float scale = 0.0F;             // factor on q.k
    kernels::PieceFormat piece;     // how one token of the group lies in memory
    bool dense = false;             // a dense layer: budget.dense_rows instead of budget.rows
    bool sliding = false;           // of a sliding layer: attends all that it sees
    uint32_t index = 0;             // among all groups
    uint32_t anchor = 0;            // whose selection it attends; its own index when it selects
    uint32_t served = 1;            // groups that attend its selection

    uint32_t q_head_first() const { return kv_head_first * q_per_kv; }
    uint32_t q_head_count() const { return piece.kv_head_count * q_per_kv; }
    bool selects() const { return anchor == index; }
    // Whether labels or page bounds of its keys are of use.
    bool keeps_summaries() const { return selects() && !sliding; }
};

class Groups {
public:
    Groups() = default;
    Groups(const ModelShape& shape, const Config& config);

    std::span<const Group> all() const { return groups_; }
    uint32_t count() const { return static_cast<uint32_t>(groups_.size()); }
    // Indices of the groups of a layer: [first, first + count). None for layers without KV.
    SlotRange of_layer(uint32_t layer) const { return layer_groups_[layer]; }
    // Which groups are dense, and which attend what an anchor selected.
    void set_policy(const Config& config);

private:
    void set_anchors(const Config& config);

    std::vector<Group> groups_;
    std::vector<SlotRange> layer_groups_;
};

// A sentence naming the field, its value and what is allowed; "" when Shoal can serve the model.
std::string model_shape_error(const ModelShape& shape);
// Whether the anchors of config.sharing suit the model and the dense layers.
Status check_sharing(const Config& config, const ModelShape& shape);

}  // namespace shoal
