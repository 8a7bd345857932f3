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

}  // namespace

Groups::Groups(const ModelShape& shape, const Config& config) {
    const bool per_head = config.sharing.kind == SharingKind::head;
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
                group.piece = piece_format(layer, shape.rows, heads_each);
                groups_.push_back(group);
            }
        }
        layer_groups_.push_back({begin, count()});
    }
    set_dense_layers(config);
}

void Groups::set_dense_layers(const Config& config) {
    const std::vector<uint32_t>& dense = config.budget.dense_layers;
    for (Group& group : groups_) {
        group.dense = std::find(dense.begin(), dense.end(), group.layer) != dense.end();
    }
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
