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
#include "shoal/types.hpp"

namespace shoal {

struct Group {
    uint32_t layer = 0;
    uint32_t kv_head_first = 0;
    uint32_t q_per_kv = 1;
    float scale = 0.0F;             // factor on q.k
    kernels::PieceFormat piece;     // how one token of the group lies in memory
    bool dense = false;             // a dense layer: budget.dense_rows instead of budget.rows

    uint32_t q_head_first() const { return kv_head_first * q_per_kv; }
    uint32_t q_head_count() const { return piece.kv_head_count * q_per_kv; }
};

class Groups {
public:
    Groups() = default;
    Groups(const ModelShape& shape, const Config& config);

    std::span<const Group> all() const { return groups_; }
    uint32_t count() const { return static_cast<uint32_t>(groups_.size()); }
    // Indices of the groups of a layer: [first, first + count). None for layers without KV.
    SlotRange of_layer(uint32_t layer) const { return layer_groups_[layer]; }
    void set_dense_layers(const Config& config);

private:
    std::vector<Group> groups_;
    std::vector<SlotRange> layer_groups_;
};

// A sentence naming the field, its value and what is allowed; "" when Shoal can serve the model.
std::string model_shape_error(const ModelShape& shape);

}  // namespace shoal
