#include "delegate.hpp"

#include <algorithm>

namespace shoal::llama_cpp {

namespace {

constexpr size_t kGraphNodes = 8;

// The view `source` of a KV tensor, over a copy of its rows: same sizes and strides, so ggml's
// kernel cuts its work as it would for the cache itself.
Status view_of_copy(const ggml_tensor& source, const Delegate::Read& read,
                    std::vector<std::byte>& rows, ggml_tensor& view) {
    const auto& tensor = *static_cast<const KvTensor*>(root_of(&source)->extra);
    const auto slots = static_cast<size_t>(source.ne[1]);
    rows.resize(slots * tensor.row_bytes());
    SHOAL_TRY(read(tensor, 0, rows.data(), rows.size()));
    view = source;
    view.op = GGML_OP_NONE;
    std::fill(std::begin(view.src), std::end(view.src), nullptr);
    view.view_src = nullptr;
    view.buffer = nullptr;
    view.extra = nullptr;
    view.data = rows.data() + source.view_offs;
    return Status::ok();
}

// What the engine's own cast of an f32 cache to f16 gives: dense, in the order of the view.
void cast_to_f16(const ggml_tensor& rows, const ggml_tensor& cast, std::vector<std::byte>& bytes,
                 ggml_tensor& result) {
    bytes.resize(ggml_nbytes(&cast));
    for (int64_t head = 0; head < rows.ne[2]; ++head) {
        for (int64_t slot = 0; slot < rows.ne[1]; ++slot) {
            const auto* from = static_cast<const std::byte*>(rows.data) +
                               static_cast<size_t>(slot) * rows.nb[1] +
                               static_cast<size_t>(head) * rows.nb[2];
            std::byte* to = bytes.data() + static_cast<size_t>(slot) * cast.nb[1] +
                            static_cast<size_t>(head) * cast.nb[2];
            ggml_fp32_to_fp16_row(reinterpret_cast<const float*>(from),
                                  reinterpret_cast<ggml_fp16_t*>(to), rows.ne[0]);
        }
    }
    result = cast;
    result.op = GGML_OP_NONE;
    std::fill(std::begin(result.src), std::end(result.src), nullptr);
    result.buffer = nullptr;
    result.data = bytes.data();
}

}  // namespace

Delegate::~Delegate() {
    if (cpu_ != nullptr) ggml_backend_free(cpu_);
}

Status Delegate::open_backend(uint32_t thread_count) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (cpu_ == nullptr && device != nullptr) cpu_ = ggml_backend_dev_init(device, nullptr);
    if (cpu_ == nullptr) {
        return Status::error(StatusCode::not_found, "delegate: ggml has no CPU backend here");
    }
    auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device),
                                          "ggml_backend_set_n_threads"));
    if (set_n_threads != nullptr) set_n_threads(cpu_, static_cast<int>(thread_count));
    return Status::ok();
}

Status Delegate::attend(const ggml_tensor& op, uint32_t thread_count, const Read& read) {
    SHOAL_TRY(open_backend(std::max(thread_count, 1U)));
    ggml_tensor node = op;
    ggml_tensor copies[2] = {};
    ggml_tensor casts[2] = {};
    Source* sources[2] = {&k_, &v_};
    for (int i = 0; i < 2; ++i) {
        const ggml_tensor& operand = *op.src[i + 1];
        const ggml_tensor& stored = *before_cast(&operand);
        SHOAL_TRY(view_of_copy(stored, read, sources[i]->rows, copies[i]));
        node.src[i + 1] = &copies[i];
        if (&stored != &operand) {
            cast_to_f16(copies[i], operand, sources[i]->cast, casts[i]);
            node.src[i + 1] = &casts[i];
        }
    }
    const ggml_init_params params = {
        ggml_graph_overhead_custom(kGraphNodes, false) + ggml_tensor_overhead(), nullptr, true};
    ggml_context* context = ggml_init(params);
    ggml_cgraph* graph = ggml_new_graph_custom(context, kGraphNodes, false);
    ggml_graph_add_node(graph, &node);
    const ggml_status status = ggml_backend_graph_compute(cpu_, graph);
    ggml_free(context);
    if (status != GGML_STATUS_SUCCESS) {
        return Status::error(StatusCode::internal, "delegate: ggml's own attention failed");
    }
    return Status::ok();
}

}  // namespace shoal::llama_cpp
