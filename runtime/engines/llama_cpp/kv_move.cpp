// Rows that the engine moves: keys rotated to other positions, streams copied.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kv_cache.hpp"
#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

// Rows rotated at once: a call of ggml's backend costs about 10 us, a row far less.
constexpr size_t kRotateMax = 4096;

constexpr int kRopeModeParam = 2;

int32_t rope_mode(const ggml_tensor& op) {
    int32_t mode = 0;
    std::memcpy(&mode, op.op_params + kRopeModeParam, sizeof(mode));
    return mode;
}

bool is_readable(const ggml_tensor& tensor) {
    return tensor.data != nullptr && tensor.buffer != nullptr &&
           ggml_backend_buffer_is_host(tensor.buffer);
}

// Every token's keys, or their first dimensions, with one shift per token.
Status check_shift(const ggml_tensor& op, const KvTensor& tensor) {
    if (op.src[0]->type != GGML_TYPE_F16 && op.src[0]->type != GGML_TYPE_F32) {
        return unsupported(fmt::format(
            "context shift (llama_memory_seq_add) over a {} K cache: ggml rotates f16 and f32 only "
            "(-ctk): make the context larger (-c), or clear it",
            ggml_type_name(op.src[0]->type)));
    }
    const ggml_tensor& keys = *op.src[0];
    const ggml_tensor& shifts = *op.src[1];
    const int64_t cells = int64_t{tensor.slot_count()} * tensor.stream_count();
    const bool whole = tensor.part == Session::Part::k && keys.view_offs < tensor.row_bytes() &&
                       keys.ne[2] == cells && keys.ne[3] == 1 && keys.nb[2] == tensor.row_bytes();
    const bool in_place = root_of(&op) == tensor.root && root_of(&keys) == tensor.root &&
                          op.view_offs == keys.view_offs;
    const bool one_shift_each = shifts.type == GGML_TYPE_I32 && shifts.ne[0] == cells &&
                                (rope_mode(op) & GGML_ROPE_TYPE_MROPE) == 0;
    const bool readable = is_readable(shifts) && (op.src[2] == nullptr || is_readable(*op.src[2]));
    if (whole && in_place && one_shift_each && readable) return Status::ok();
    return unsupported(fmt::format(
        "{}: rotating keys in place (context shift, llama_memory_seq_add) in this form is not "
        "supported: make the context larger (-c), or clear it", tensor.root->name));
}

}  // namespace

Status KvCache::shift_keys(const ggml_tensor& op, const KvTensor& tensor) {
    if (!failure_.empty()) return unsupported(failure_);
    abandon_step();
    Status status = check_shift(op, tensor);
    for (uint32_t stream = 0; status && stream < tensor.stream_count(); ++stream) {
        status = rotate_stream(op, tensor, stream);
    }
    // The engine goes on decoding after a failed shift, over keys that were not shifted.
    if (!status) fail_until_cleared(status.message());
    return status;
}

// Rows that stay where they are are left alone: a rotation by nothing.
Status KvCache::rotate_stream(const ggml_tensor& op, const KvTensor& tensor, uint32_t stream) {
    const uint32_t slot_count = tensor.slot_count();
    const auto* shifts = static_cast<const int32_t*>(op.src[1]->data) + size_t{stream} * slot_count;
    run_stream_ = stream;
    run_slots_.clear();
    run_shifts_.clear();
    for (uint32_t slot = 0; slot < slot_count; ++slot) {
        if (shifts[slot] != 0) {
            run_slots_.push_back(slot);
            run_shifts_.push_back(shifts[slot]);
        }
        const bool last = slot + 1 == slot_count;
        if (run_slots_.size() < kRotateMax && !(last && !run_slots_.empty())) continue;
        SHOAL_TRY(rotate_run(op, tensor));
        run_slots_.clear();
        run_shifts_.clear();
    }
    return Status::ok();
}

// The engine's own op over a copy of the rows, so that the result is the engine's bit for bit.
Status KvCache::rotate_run(const ggml_tensor& op, const KvTensor& tensor) {
    run_keys_.resize(run_slots_.size() * tensor.row_bytes());
    SHOAL_TRY(read_run(tensor, run_keys_.data()));
    const auto count = static_cast<int64_t>(run_slots_.size());

    ggml_tensor keys = leaf_over(*op.src[0], run_keys_.data() + op.src[0]->view_offs);
    keys.ne[2] = count;
    keys.nb[3] = keys.nb[2] * run_slots_.size();
    ggml_tensor shifts = leaf_over(*op.src[1], run_shifts_.data());
    shifts.ne[0] = count;
    std::fill(shifts.nb + 1, shifts.nb + GGML_MAX_DIMS, run_shifts_.size() * sizeof(int32_t));
    ggml_tensor node = leaf_over(keys, keys.data);
    node.op = GGML_OP_ROPE;
    node.src[0] = &keys;
    node.src[1] = &shifts;
    node.src[2] = op.src[2];
    std::memcpy(node.op_params, op.op_params, sizeof(node.op_params));
    SHOAL_TRY(cpu_.compute(node, engine_threads_, "context shift"));
    if (leads_notes(tensor)) notes_.shift(run_stream_, run_slots_, run_shifts_);
    return session_->replace(LayerId{tensor.layer}, stores_[run_stream_], run_slots_,
                             run_rows(tensor, run_keys_.data()), ConstTensor{});
}

bool KvCache::copy_stream(const ggml_tensor& from, const ggml_tensor& to, Status& status) {
    if (!has_session() || root_of(&from) != root_of(&to)) return false;
    const auto& tensor = *static_cast<const KvTensor*>(root_of(&to)->extra);
    for (const ggml_tensor* view : {&from, &to}) {
        if (ggml_nbytes(view) != tensor.stream_bytes() ||
            view->view_offs % tensor.stream_bytes() != 0) {
            return false;
        }
    }
    abandon_step();
    const auto from_stream = static_cast<uint32_t>(from.view_offs / tensor.stream_bytes());
    const auto to_stream = static_cast<uint32_t>(to.view_offs / tensor.stream_bytes());
    if (leads_notes(tensor)) notes_.copy(from_stream, to_stream);
    status = session_->copy(LayerId{tensor.layer}, tensor.part, stores_[from_stream],
                            stores_[to_stream]);
    return true;
}

}  // namespace shoal::llama_cpp
