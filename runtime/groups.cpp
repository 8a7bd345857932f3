#include "runtime/groups.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/backend.hpp"

namespace shoal {

namespace {

constexpr uint32_t kPieceAlignment = 128;

kernels::PieceFormat piece_format(const LayerShape& layer, const RowFormat& rows,
                                  uint32_t kv_head_count) {
    kernels::PieceFormat piece;
    piece.k_dtype = rows.k;
    piece.v_dtype = rows.v;
    piece.kv_head_count = kv_head_count;
    piece.k_head_dim = layer.k_head_dim;
    piece.v_head_dim = layer.v_head_dim;
    const auto k_bytes = static_cast<uint32_t>(layer.k_head_dim * dtype_bytes(rows.k));
    const auto v_bytes = static_cast<uint32_t>(layer.v_head_dim * dtype_bytes(rows.v));
    piece.v_offset_bytes = k_bytes;
    piece.row_stride_bytes = k_bytes + v_bytes;
    const uint32_t used = kv_head_count * piece.row_stride_bytes;
    piece.piece_stride_bytes = (used + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
    return piece;
}

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

bool contains(const std::vector<uint32_t>& layers, uint32_t layer) {
    return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

}  // namespace

Groups::Groups(const ModelShape& shape, const Config& config) {
    const bool per_head = config.sharing.kind == SharingKind::head ||
                          (config.sharing.kind == SharingKind::tidal &&
                           config.sharing.heads == SharingHeads::index);
    const RowFormat rows = stored_rows(config, shape.rows);
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& layer = shape.layers[l];
        const uint32_t begin = count();
        if (layer.kind != LayerKind::none) {
            const uint32_t heads_each = per_head ? 1 : layer.kv_head_count;
            for (uint32_t head = 0; head < layer.kv_head_count; head += heads_each) {
                Group group;
                group.layer = l;
                group.kv_head_first = head;
                group.q_per_kv = shape.q_head_count / layer.kv_head_count;
                group.scale = shape.attention_scale != 0.0F
                                  ? shape.attention_scale
                                  : 1.0F / std::sqrt(static_cast<float>(layer.k_head_dim));
                group.piece = piece_format(layer, rows, heads_each);
                group.sliding = layer.kind == LayerKind::sliding;
                group.index = count();
                groups_.push_back(group);
            }
        }
        layer_groups_.push_back({begin, count()});
    }
    set_policy(config);
}

void Groups::set_policy(const Config& config) {
    for (Group& group : groups_) {
        group.dense = contains(config.budget.dense_layers, group.layer);
        group.anchor = group.index;
    }
    if (config.sharing.kind == SharingKind::tidal) set_anchors(config);
    for (Group& group : groups_) group.served = 0;
    for (const Group& group : groups_) groups_[group.anchor].served++;
}

// A layer that is not an anchor itself attends what the anchor before it selected. Dense layers and
// those before the first anchor decide for themselves.
void Groups::set_anchors(const Config& config) {
    SlotRange anchor;  // the groups of the last one
    for (uint32_t layer = 0; layer < layer_groups_.size(); ++layer) {
        const SlotRange groups = layer_groups_[layer];
        if (contains(config.sharing.anchors, layer)) {
            anchor = groups;
            continue;
        }
        for (uint32_t g = groups.begin; g < groups.end && anchor.begin != anchor.end; ++g) {
            Group& group = groups_[g];
            if (!group.dense && !group.sliding) group.anchor = anchor.begin + g - groups.begin;
        }
    }
}

Status check_sharing(const Config& config, const ModelShape& shape) {
    if (config.sharing.kind != SharingKind::tidal) return Status::ok();
    if (config.sharing.anchors.empty()) {
        return invalid("sharing.anchors = []: must name 1 layer or more with sharing.kind = "
                       "\"tidal\"");
    }
    for (const uint32_t anchor : config.sharing.anchors) {
        const std::string which = fmt::format("sharing.anchors: {}: ", anchor);
        if (anchor >= shape.layers.size()) {
            return invalid(fmt::format("{}must be below {}, the layers of this model", which,
                                       shape.layers.size()));
        }
        if (shape.layers[anchor].kind != LayerKind::full) {
            return invalid(which + "must be a layer with attention over every earlier token");
        }
        if (contains(config.budget.dense_layers, anchor)) {
            return invalid(which + "is in budget.dense_layers too: a dense layer is no anchor, "
                                   "name it in one of the two");
        }
    }
    if (config.sharing.heads != SharingHeads::index) return Status::ok();
    const LayerShape* first = nullptr;
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& layer = shape.layers[l];
        if (layer.kind != LayerKind::full) continue;
        if (first == nullptr) first = &layer;
        if (layer.kv_head_count == first->kv_head_count) continue;
        return invalid(fmt::format("sharing.heads = \"index\": layer {} has {} KV heads, others "
                                   "have {}: must be equal, or set sharing.heads = \"shared\"",
                                   l, layer.kv_head_count, first->kv_head_count));
    }
    return Status::ok();
}

std::string model_shape_error(const ModelShape& shape) {
    if (shape.layers.empty()) return "model.layers: none: must be 1 or more";
    if (shape.q_head_count == 0) return "model.q_head_count = 0: must be 1 or more";
    bool any = false;
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& layer = shape.layers[l];
        if (layer.kind == LayerKind::none) continue;
        any = true;
        if (layer.kv_head_count == 0 || shape.q_head_count % layer.kv_head_count != 0) {
            return fmt::format(
                "model.layers[{}].kv_head_count = {}: must divide q_head_count = {}", l,
                layer.kv_head_count, shape.q_head_count);
        }
        const std::string reason = kernels::unsupported_reason(
            piece_format(layer, shape.rows, layer.kv_head_count),
            shape.q_head_count / layer.kv_head_count);
        if (!reason.empty()) return fmt::format("model.layers[{}]: {}", l, reason);
    }
    return any ? "" : "model.layers: no layer keeps KV: nothing for Shoal to hold";
}

}  // namespace shoal
