#include "graph.hpp"

#include <fmt/format.h>

#include "attention_op.hpp"
#include "buffer.hpp"
#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

bool is_view_op(ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE ||
           op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

// llama.cpp's cast of an f32 cache in front of attention.
bool is_cast_of_cache(const ggml_tensor& op) {
    return op.op == GGML_OP_CPY && op.type == GGML_TYPE_F16 && op.src[0] != nullptr &&
           op.src[0]->type == GGML_TYPE_F32 && is_in_kv_buffer(*op.src[0]) &&
           !is_in_kv_buffer(op);
}

// The first KV tensor that `op` reads or writes.
const ggml_tensor* kv_operand(const ggml_tensor& op) {
    if (is_in_kv_buffer(op)) return &op;
    for (const ggml_tensor* source : op.src) {
        if (source != nullptr && is_in_kv_buffer(*source)) return source;
    }
    return nullptr;
}

std::string refusal_of(const ggml_tensor& op, const ggml_tensor& operand) {
    switch (op.op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_SET_ROWS:
            return "flash attention is off: Shoal needs it (-fa on, or flash_attn_type = auto or "
                   "enabled)";
        case GGML_OP_ROPE:
            return "rotating keys (context shift) before the engine reserved its graphs is not "
                   "supported";
        default:
            return fmt::format("{} over {} is not supported", ggml_op_name(op.op),
                               root_of(&operand)->name);
    }
}

// With flash attention off, V is stored transposed: one element per slot number.
bool writes_whole_rows(const ggml_tensor& op) {
    return op.ne[0] == root_of(&op)->ne[0] && op.src[0]->type == GGML_TYPE_F32;
}

void observe(const ggml_tensor& op, const ggml_tensor& operand) {
    KvTensor* tensor = held_tensor(operand);
    if (tensor == nullptr || tensor->cache->has_session()) return;
    set_reserving_cache(tensor->cache);
    if (op.op == GGML_OP_FLASH_ATTN_EXT) {
        tensor->cache->observe_attention(op);
    } else if (op.op == GGML_OP_SET_ROWS ? !writes_whole_rows(op) : !is_cast_of_cache(op)) {
        tensor->cache->refuse(refusal_of(op, operand));
    }
}

const ggml_tensor* operand_of(const ggml_tensor& op) {
    if (op.op != GGML_OP_FLASH_ATTN_EXT) return kv_operand(op);
    const ggml_tensor* k = before_cast(op.src[1]);
    return is_in_kv_buffer(*k) ? k : nullptr;
}

Status run_node(const ggml_tensor& node, KvTensor& tensor, const ggml_tensor& operand) {
    if (is_cast_of_cache(node)) return Status::ok();
    if (node.op == GGML_OP_FLASH_ATTN_EXT) return tensor.cache->attend(node);
    if (node.op == GGML_OP_SET_ROWS && writes_whole_rows(node)) {
        return tensor.cache->store_rows(node);
    }
    if (node.op == GGML_OP_ROPE && tensor.cache->has_session()) {
        return tensor.cache->shift_keys(node, tensor);
    }
    return unsupported(refusal_of(node, operand));
}

}  // namespace

bool supports_op(const ggml_tensor& op) {
    if (is_view_op(op.op)) return true;
    const ggml_tensor* operand = operand_of(op);
    if (operand == nullptr) return false;
    observe(op, *operand);
    return true;
}

ggml_status compute_graph(ggml_cgraph& graph, uint32_t thread_count) {
    KvCache* cache = nullptr;
    Status status = Status::ok();
    for (int i = 0; i < ggml_graph_n_nodes(&graph) && status; ++i) {
        const ggml_tensor& node = *ggml_graph_node(&graph, i);
        if (is_view_op(node.op) || ggml_is_empty(&node)) continue;
        const ggml_tensor* operand = operand_of(node);
        KvTensor* tensor = operand == nullptr ? nullptr : held_tensor(*operand);
        if (tensor == nullptr) {
            status = unsupported(fmt::format("{} ({}) came to a device that does not run it",
                                             ggml_op_name(node.op), node.name));
            break;
        }
        if (cache != nullptr && cache != tensor->cache) {
            status = cache->finish_split();
            if (!status) break;
        }
        cache = tensor->cache;
        cache->set_thread_count(thread_count);
        status = run_node(node, *tensor, *operand);
    }
    if (status && cache != nullptr) status = cache->finish_split();
    if (status) return GGML_STATUS_SUCCESS;
    log_failure(status.message());
    return status.code() == StatusCode::out_of_memory ? GGML_STATUS_ALLOC_FAILED
                                                      : GGML_STATUS_FAILED;
}

}  // namespace shoal::llama_cpp
