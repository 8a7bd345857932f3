#include "query_chain.hpp"

#include <algorithm>

#include "ggml-backend.h"

namespace shoal::llama_cpp {

namespace {

constexpr size_t kNodesMax = 32;
constexpr size_t kAlignment = 64;

bool is_norm(ggml_op op) { return op == GGML_OP_RMS_NORM || op == GGML_OP_NORM; }

bool is_view(ggml_op op) {
    return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

// Ops that are known to read their sources alone.
bool is_understood(ggml_op op) {
    return op == GGML_OP_MUL_MAT || op == GGML_OP_ADD || op == GGML_OP_MUL ||
           op == GGML_OP_SCALE || op == GGML_OP_CONT || op == GGML_OP_ROPE || is_norm(op) ||
           is_view(op);
}

// A weight stays where it is as long as the model lives, and the CPU can read it.
bool is_weight(const ggml_tensor& leaf) {
    return leaf.op == GGML_OP_NONE && leaf.buffer != nullptr &&
           ggml_backend_buffer_get_usage(leaf.buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS &&
           ggml_backend_dev_supports_buft(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU),
                                          ggml_backend_buffer_get_type(leaf.buffer));
}

// Ops from the norm of the layer's input to its queries.
class Walk {
public:
    bool from(const ggml_tensor& q) {
        return visit(q, false) && inputs_.x != nullptr && inputs_.x->data != nullptr &&
               product_count() == 1;
    }
    const std::vector<const ggml_tensor*>& nodes() const { return nodes_; }
    const ChainInputs& inputs() const { return inputs_; }

private:
    // More than one: an adapter (LoRA) is beside the model's own weights, and may be freed while
    // the context lives.
    size_t product_count() const {
        return static_cast<size_t>(
            std::count_if(nodes_.begin(), nodes_.end(),
                          [](const ggml_tensor* node) { return node->op == GGML_OP_MUL_MAT; }));
    }
    // Set once: a chain that reads two of them is not one.
    static bool note(const ggml_tensor* tensor, const ggml_tensor*& noted) {
        if (noted == nullptr) noted = tensor;
        return noted == tensor && tensor != nullptr;
    }

    // `below`: a product with a weight was met above. The norm below it is that of the layer's
    // input; one above normalises the queries.
    bool visit(const ggml_tensor& node, bool below) {
        if (std::find(nodes_.begin(), nodes_.end(), &node) != nodes_.end()) return true;
        if (node.op == GGML_OP_NONE) return is_weight(node);
        if (!is_understood(node.op) || nodes_.size() == kNodesMax) return false;
        const bool ends = below && is_norm(node.op);
        if (ends && !note(node.src[0], inputs_.x)) return false;
        for (int i = 0; i < GGML_MAX_SRC && !ends; ++i) {
            const ggml_tensor* source = node.src[i];
            if (source == nullptr) continue;
            const bool is_positions = node.op == GGML_OP_ROPE && i == 1;
            if (is_positions ? !note(source, inputs_.positions)
                             : !visit(*source, below || node.op == GGML_OP_MUL_MAT)) {
                return false;
            }
        }
        nodes_.push_back(&node);
        return true;
    }

    std::vector<const ggml_tensor*> nodes_;  // sources first
    ChainInputs inputs_;
};

}  // namespace

bool QueryChain::find_inputs(const ggml_tensor& q, ChainInputs& inputs) {
    Walk walk;
    if (!walk.from(q)) return false;
    inputs = walk.inputs();
    return true;
}

bool QueryChain::record(const ggml_tensor& q) {
    *this = QueryChain();
    Walk walk;
    if (!walk.from(q)) return false;
    x_ = *walk.inputs().x;
    const std::vector<const ggml_tensor*>& originals = walk.nodes();
    nodes_.reserve(originals.size());  // they point at each other
    const auto copy_of = [&](const ggml_tensor* original) -> ggml_tensor* {
        const auto found = std::find(originals.begin(), originals.end(), original);
        return found == originals.end() ? nullptr : &nodes_[static_cast<size_t>(
                                                        found - originals.begin())];
    };
    for (const ggml_tensor* original : originals) {
        nodes_.push_back(*original);
        ggml_tensor& node = nodes_.back();
        node.buffer = nullptr;
        node.extra = nullptr;
        node.flags |= GGML_TENSOR_FLAG_COMPUTE;
        for (size_t i = 0; i < GGML_MAX_SRC; ++i) {
            if (node.src[i] == nullptr) continue;
            const Link link{nodes_.size() - 1, i};
            if (node.src[i] == walk.inputs().x) reads_x_.push_back(link);
            else if (node.src[i] == walk.inputs().positions) reads_positions_.push_back(link);
            else if (ggml_tensor* copy = copy_of(node.src[i])) node.src[i] = copy;
        }
        if (node.view_src != nullptr) {
            node.view_src = copy_of(node.view_src);
            if (node.view_src == nullptr) {
                *this = QueryChain();  // it shows, or changes, a tensor that is not of the chain
                return false;
            }
        }
    }
    place_results();
    return true;
}

void QueryChain::place_results() {
    size_t bytes = kAlignment;
    const auto padded = [](size_t size) {
        return (size + kAlignment - 1) / kAlignment * kAlignment;
    };
    for (const ggml_tensor& node : nodes_) {
        if (node.view_src == nullptr) bytes += padded(ggml_nbytes(&node));
    }
    results_.resize(bytes);
    const auto address = reinterpret_cast<uintptr_t>(results_.data());
    std::byte* next = results_.data() + (padded(address) - address);
    for (ggml_tensor& node : nodes_) {
        if (!is_view(node.op)) to_run_.push_back(&node);
        if (node.view_src != nullptr) {
            node.data = static_cast<std::byte*>(node.view_src->data) + node.view_offs;
            continue;
        }
        node.data = next;
        next += padded(ggml_nbytes(&node));
    }
}

bool QueryChain::fits(const ggml_tensor& q) const {
    return !nodes_.empty() && ggml_are_same_shape(&nodes_.back(), &q);
}

Status QueryChain::run(const ChainInputs& inputs, CpuBackend& cpu, uint32_t thread_count,
                       const ggml_tensor*& q) {
    if (!ggml_are_same_shape(inputs.x, &x_) || inputs.x->type != x_.type ||
        (inputs.positions == nullptr) != reads_positions_.empty()) {
        return Status::error(StatusCode::unsupported, "layers differ in their inputs");
    }
    ggml_tensor x = leaf_over(*inputs.x, inputs.x->data);
    for (const Link& link : reads_x_) nodes_[link.node].src[link.source] = &x;
    for (const Link& link : reads_positions_) {
        nodes_[link.node].src[link.source] = const_cast<ggml_tensor*>(inputs.positions);
    }
    SHOAL_TRY(cpu.compute(to_run_, thread_count, "queries of the next layer"));
    q = &nodes_.back();
    return Status::ok();
}

}  // namespace shoal::llama_cpp
