// Bytes of KV tensors, as the engine reads and writes them when it saves and restores states.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "kv_cache.hpp"

namespace shoal::llama_cpp {

namespace {

// Rows per call: enough that a call costs nothing beside its copying, few enough for a small list.
constexpr size_t kRunMax = 4096;

// The stored tensor as the session sees its rows. They are dense, so any split of a row into heads
// has the same strides.
ConstTensor dense_rows(const std::byte* data, uint32_t count, DType dtype, uint32_t heads,
                       uint32_t head_dim) {
    ConstTensor rows;
    rows.data = data;
    rows.dtype = dtype;
    rows.n = count;
    rows.heads = heads;
    rows.head_dim = head_dim;
    rows.head_stride_bytes = head_dim * dtype_bytes(dtype);
    rows.n_stride_bytes = heads * rows.head_stride_bytes;
    return rows;
}

DType stored_dtype(const KvTensor& tensor) {
    switch (tensor.root->type) {
        case GGML_TYPE_BF16: return DType::bf16;
        case GGML_TYPE_F32: return DType::f32;
        default: return DType::f16;
    }
}

Status no_session() {
    return Status::error(StatusCode::internal, "KV rows were moved before the session was made");
}

}  // namespace

// Calls do_part(offset in the row, bytes, done) for parts of rows and do_run(done) for whole ones,
// in order, each after run_stream_ and run_slots_ were set.
template <typename Part, typename Run>
Status KvCache::for_each_run(const KvTensor& tensor, size_t offset, size_t size, Part do_part,
                             Run do_run) {
    const size_t row = tensor.row_bytes();
    size_t done = 0;
    while (done < size) {
        const size_t at = offset + done;
        const size_t slot = at / row % tensor.slot_count();
        const size_t in_row = at % row;
        run_stream_ = static_cast<uint32_t>(at / tensor.stream_bytes());
        if (in_row != 0 || size - done < row) {
            const size_t bytes = std::min(row - in_row, size - done);
            run_slots_.assign(1, static_cast<int64_t>(slot));
            SHOAL_TRY(do_part(in_row, bytes, done));
            done += bytes;
        } else {
            const size_t rows =
                std::min({(size - done) / row, kRunMax, tensor.slot_count() - slot});
            run_slots_.resize(rows);
            std::iota(run_slots_.begin(), run_slots_.end(), static_cast<int64_t>(slot));
            SHOAL_TRY(do_run(done));
            done += rows * row;
        }
    }
    return Status::ok();
}

ConstTensor KvCache::run_rows(const KvTensor& tensor, const std::byte* data) const {
    const LayerShape shape = shape_of(tensor.layer);
    const bool is_k = tensor.part == Session::Part::k;
    return dense_rows(data, static_cast<uint32_t>(run_slots_.size()), stored_dtype(tensor),
                      shape.kv_head_count, is_k ? shape.k_head_dim : shape.v_head_dim);
}

bool KvCache::leads_notes(const KvTensor& tensor) const {
    return tensor.part == Session::Part::k && &tensor == any_layer().k.get();
}

Status KvCache::put_run(const KvTensor& tensor, const std::byte* data) {
    if (leads_notes(tensor)) notes_.forget(run_stream_, run_slots_);
    const bool is_k = tensor.part == Session::Part::k;
    const ConstTensor rows = run_rows(tensor, data);
    return session_->put(LayerId{tensor.layer}, stores_[run_stream_], run_slots_,
                         is_k ? rows : ConstTensor{}, is_k ? ConstTensor{} : rows);
}

Status KvCache::read_run(const KvTensor& tensor, std::byte* data) {
    return session_->read(LayerId{tensor.layer}, stores_[run_stream_], run_slots_, tensor.part,
                          {data, run_slots_.size() * tensor.row_bytes()});
}

Status KvCache::write_bytes(const KvTensor& tensor, size_t offset, const std::byte* data,
                            size_t size) {
    if (!has_session()) return no_session();
    if (is_loading_) return skip_loaded(tensor, offset, size);
    abandon_step();
    row_.resize(tensor.row_bytes());
    return for_each_run(
        tensor, offset, size,
        [&](size_t in_row, size_t bytes, size_t done) -> Status {
            SHOAL_TRY(read_run(tensor, row_.data()));
            std::memcpy(row_.data() + in_row, data + done, bytes);
            return put_run(tensor, row_.data());
        },
        [&](size_t done) { return put_run(tensor, data + done); });
}

Status KvCache::read_bytes(const KvTensor& tensor, size_t offset, std::byte* data, size_t size) {
    if (!has_session()) return no_session();
    row_.resize(tensor.row_bytes());
    return for_each_run(
        tensor, offset, size,
        [&](size_t in_row, size_t bytes, size_t done) -> Status {
            SHOAL_TRY(read_run(tensor, row_.data()));
            std::memcpy(data + done, row_.data() + in_row, bytes);
            return Status::ok();
        },
        [&](size_t done) { return read_run(tensor, data + done); });
}

}  // namespace shoal::llama_cpp
