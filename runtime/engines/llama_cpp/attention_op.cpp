#include "attention_op.hpp"

#include <fmt/format.h>

#include "buffer.hpp"
#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

// Heads side by side in each row, rows in slot order from slot 0 of each stream: what llama.cpp's
// views are.
bool is_whole_view(const ggml_tensor& view) {
    // Of a tensor elsewhere, `extra` belongs to another backend.
    if (held_tensor(view) == nullptr) return false;
    const auto* tensor = static_cast<const KvTensor*>(root_of(&view)->extra);
    if (tensor == nullptr || view.view_offs % tensor->stream_bytes() != 0) return false;
    const size_t stream_first = view.view_offs / tensor->stream_bytes();
    return view.nb[1] == tensor->row_bytes() &&
           view.nb[2] == static_cast<size_t>(view.ne[0]) * view.nb[0] &&
           (view.ne[3] == 1 || view.nb[3] == tensor->stream_bytes()) &&
           stream_first + static_cast<size_t>(view.ne[3]) <= tensor->stream_count() &&
           view.ne[1] <= tensor->root->ne[1];
}

// Queries of all streams one after the other, at one distance.
bool is_one_run(const ggml_tensor& q) {
    return q.ne[3] == 1 || q.nb[3] == static_cast<size_t>(q.ne[1]) * q.nb[1];
}

}  // namespace

Status check_attention(const ggml_tensor& op) {
    const AttentionOp attention(op);
    if (attention.max_bias() != 0.0F) {
        return unsupported(fmt::format("ALiBi (max_bias = {}) is not supported",
                                       attention.max_bias()));
    }
    if (attention.logit_softcap() != 0.0F) {
        return unsupported(fmt::format("attention logit softcap (= {}) is not supported",
                                       attention.logit_softcap()));
    }
    if (attention.sinks != nullptr) return unsupported("attention sinks are not supported");
    if (attention.mask == nullptr || attention.mask->type != GGML_TYPE_F16 ||
        attention.mask->ne[2] != 1 || attention.mask->ne[3] != attention.q->ne[3] ||
        attention.mask->ne[0] < attention.k->ne[1] ||
        attention.mask->ne[1] < attention.q->ne[1]) {
        return unsupported("attention without an f16 mask of one row per query is not supported");
    }
    if (attention.q->type != GGML_TYPE_F32 || attention.q->nb[0] != sizeof(float) ||
        !is_one_run(*attention.q)) {
        return unsupported(fmt::format("queries in {} are not supported: f32 only, in one run",
                                       ggml_type_name(attention.q->type)));
    }
    if (!is_whole_view(*attention.k) || !is_whole_view(*attention.v) ||
        attention.k->ne[2] != attention.v->ne[2] || attention.k->ne[1] != attention.v->ne[1] ||
        attention.k->ne[3] != attention.q->ne[3] || attention.v->ne[3] != attention.q->ne[3]) {
        return unsupported("attention over a part of the KV cache, or over another layer's, is not "
                           "supported");
    }
    const auto* k = static_cast<const KvTensor*>(root_of(attention.k)->extra);
    const auto* v = static_cast<const KvTensor*>(root_of(attention.v)->extra);
    const bool same_streams = attention.k->view_offs / k->stream_bytes() ==
                              attention.v->view_offs / v->stream_bytes();
    if (!same_streams || k->layer != v->layer || k->part != Session::Part::k ||
        v->part != Session::Part::v) {
        return unsupported("attention over keys of one layer and values of another is not "
                           "supported");
    }
    return Status::ok();
}

}  // namespace shoal::llama_cpp
