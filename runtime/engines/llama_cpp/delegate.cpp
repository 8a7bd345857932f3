#include "delegate.hpp"

namespace shoal::llama_cpp {

namespace {

// The view `source` of a KV tensor, over a copy of the rows that it shows: same sizes and strides
// but for the distance of the streams, so ggml's kernel cuts its work as it would for the cache.
Status view_of_copy(const ggml_tensor& source, const Delegate::Read& read,
                    std::vector<std::byte>& rows, ggml_tensor& view) {
    const auto& tensor = *static_cast<const KvTensor*>(root_of(&source)->extra);
    const size_t bytes = static_cast<size_t>(source.ne[1]) * tensor.row_bytes();
    const auto streams = static_cast<size_t>(source.ne[3]);
    rows.resize(streams * bytes);
    for (size_t i = 0; i < streams; ++i) {
        SHOAL_TRY(read(tensor, source.view_offs + i * tensor.stream_bytes(),
                       rows.data() + i * bytes, bytes));
    }
    view = leaf_over(source, rows.data());
    view.nb[3] = bytes;
    return Status::ok();
}

// What the engine's own cast of an f32 cache to f16 gives: dense, in the order of the view.
void cast_to_f16(const ggml_tensor& rows, const ggml_tensor& cast, std::vector<std::byte>& bytes,
                 ggml_tensor& result) {
    bytes.resize(ggml_nbytes(&cast));
    for (int64_t row = 0; row < rows.ne[1] * rows.ne[2] * rows.ne[3]; ++row) {
        const auto slot = static_cast<size_t>(row % rows.ne[1]);
        const auto head = static_cast<size_t>(row / rows.ne[1] % rows.ne[2]);
        const auto stream = static_cast<size_t>(row / rows.ne[1] / rows.ne[2]);
        const auto* from = static_cast<const std::byte*>(rows.data) + slot * rows.nb[1] +
                           head * rows.nb[2] + stream * rows.nb[3];
        std::byte* to =
            bytes.data() + slot * cast.nb[1] + head * cast.nb[2] + stream * cast.nb[3];
        ggml_fp32_to_fp16_row(reinterpret_cast<const float*>(from),
                              reinterpret_cast<ggml_fp16_t*>(to), rows.ne[0]);
    }
    result = leaf_over(cast, bytes.data());
}

}  // namespace

Status Delegate::attend(const ggml_tensor& op, uint32_t thread_count, const Read& read) {
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
    return cpu_.compute(node, thread_count, "delegate");
}

}  // namespace shoal::llama_cpp
