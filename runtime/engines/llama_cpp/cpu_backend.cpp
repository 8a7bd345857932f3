#include "cpu_backend.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace shoal::llama_cpp {

CpuBackend::~CpuBackend() {
    if (backend_ != nullptr) ggml_backend_free(backend_);
}

Status CpuBackend::open(uint32_t thread_count, const char* doing) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (backend_ == nullptr && device != nullptr) {
        backend_ = ggml_backend_dev_init(device, nullptr);
    }
    if (backend_ == nullptr) {
        return Status::error(StatusCode::not_found,
                             fmt::format("{}: ggml has no CPU backend here", doing));
    }
    auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device),
                                          "ggml_backend_set_n_threads"));
    if (set_n_threads != nullptr) {
        set_n_threads(backend_, static_cast<int>(std::max(thread_count, 1U)));
    }
    return Status::ok();
}

Status CpuBackend::compute(ggml_tensor& node, uint32_t thread_count, const char* doing) {
    ggml_tensor* const nodes[1] = {&node};
    return compute(nodes, thread_count, doing);
}

Status CpuBackend::compute(std::span<ggml_tensor* const> nodes, uint32_t thread_count,
                           const char* doing) {
    SHOAL_TRY(open(thread_count, doing));
    const ggml_init_params params = {
        ggml_graph_overhead_custom(nodes.size(), false) + ggml_tensor_overhead(), nullptr, true};
    ggml_context* context = ggml_init(params);
    ggml_cgraph* graph = ggml_new_graph_custom(context, nodes.size(), false);
    for (ggml_tensor* node : nodes) ggml_graph_add_node(graph, node);
    const ggml_status status = ggml_backend_graph_compute(backend_, graph);
    ggml_free(context);
    if (status == GGML_STATUS_SUCCESS) return Status::ok();
    return Status::error(StatusCode::internal,
                         fmt::format("{}: ggml's own {} failed", doing,
                                     ggml_op_name(nodes.back()->op)));
}

ggml_tensor leaf_over(const ggml_tensor& tensor, void* data) {
    ggml_tensor leaf = tensor;
    leaf.op = GGML_OP_NONE;
    std::fill(std::begin(leaf.src), std::end(leaf.src), nullptr);
    leaf.view_src = nullptr;
    leaf.view_offs = 0;
    leaf.buffer = nullptr;
    leaf.extra = nullptr;
    leaf.data = data;
    return leaf;
}

}  // namespace shoal::llama_cpp
