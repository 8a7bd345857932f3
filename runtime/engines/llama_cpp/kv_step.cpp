// The step of a KvCache: ops of the engine's graph become calls of the session.
#include <fmt/format.h>

#include <algorithm>

#include "kv_cache.hpp"
#include "log.hpp"
#include "settings.hpp"

namespace shoal::llama_cpp {

namespace {

const KvTensor& tensor_of(const ggml_tensor& op) {
    return *static_cast<const KvTensor*>(root_of(&op)->extra);
}

Status check_store(const ggml_tensor& op, const LayerShape& shape) {
    const KvTensor& tensor = tensor_of(op);
    const ggml_tensor& rows = *op.src[0];
    const ggml_tensor& slots = *op.src[1];
    const uint32_t head_dim =
        tensor.part == Session::Part::k ? shape.k_head_dim : shape.v_head_dim;
    if (rows.type != GGML_TYPE_F32 || rows.nb[0] != sizeof(float) ||
        rows.ne[0] != static_cast<int64_t>(shape.kv_head_count) * head_dim || rows.ne[2] != 1 ||
        rows.ne[3] != 1) {
        return unsupported(fmt::format("{}: rows written as {} of {} elements: flash attention "
                                       "must be on (-fa on)", tensor.root->name,
                                       ggml_type_name(rows.type), rows.ne[0]));
    }
    if (slots.type != GGML_TYPE_I64 || slots.nb[0] != sizeof(int64_t) ||
        slots.ne[0] != rows.ne[1]) {
        return unsupported(fmt::format("{}: {} slot numbers of type {} for {} rows",
                                       tensor.root->name, slots.ne[0],
                                       ggml_type_name(slots.type), rows.ne[1]));
    }
    return Status::ok();
}

ConstTensor rows_tensor(const ggml_tensor& rows, uint32_t heads, uint32_t head_dim) {
    ConstTensor tensor;
    tensor.data = static_cast<const std::byte*>(rows.data);
    tensor.dtype = DType::f32;
    tensor.n = static_cast<uint32_t>(rows.ne[1]);
    tensor.heads = heads;
    tensor.head_dim = head_dim;
    tensor.n_stride_bytes = rows.nb[1];
    tensor.head_stride_bytes = head_dim * sizeof(float);
    return tensor;
}

}  // namespace

void KvCache::abandon_step() {
    pending_k_ = nullptr;
    pending_v_ = nullptr;
    if (!in_step_) return;
    in_step_ = false;
    // What it says of the half-done step was said already; the next one starts afresh.
    const Status status = session_->end_step();
    if (!status) log_line(LogLevel::debug, status.message());
}

Status KvCache::place_tokens(std::span<const int64_t> numbers) {
    const auto slot_count = static_cast<int64_t>(any_layer().k->slot_count());
    step_numbers_.assign(numbers.begin(), numbers.end());
    step_slots_.clear();
    step_stores_.clear();
    step_offsets_.clear();
    int64_t last = 0;
    for (size_t i = 0; i < numbers.size(); ++i) {
        const int64_t stream = numbers[i] / slot_count;
        const bool starts = i == 0 || stream != last;
        if (numbers[i] < 0 || static_cast<size_t>(stream) >= stores_.size() ||
            (starts && i != 0 && stream != last + 1)) {
            return unsupported(fmt::format(
                "slot number {}: of {} streams with {} slots, one after the other", numbers[i],
                stores_.size(), slot_count));
        }
        if (i == 0) step_stream_first_ = static_cast<uint32_t>(stream);
        if (starts) {
            step_stores_.push_back(stores_[static_cast<size_t>(stream)]);
            step_offsets_.push_back(static_cast<uint32_t>(i));
        }
        step_slots_.push_back(numbers[i] % slot_count);
        last = stream;
    }
    step_offsets_.push_back(static_cast<uint32_t>(numbers.size()));
    return Status::ok();
}

Status KvCache::begin_step(uint32_t layer, Session::Part part, const ggml_tensor& slots) {
    const std::span numbers(static_cast<const int64_t*>(slots.data),
                            static_cast<size_t>(slots.ne[0]));
    const auto index = static_cast<size_t>(part);
    const bool continues = in_step_ && (layer > step_layer_ ||
                                        (layer == step_layer_ && !step_has_part_[index]));
    if (!continues) {
        abandon_step();
        SHOAL_TRY(place_tokens(numbers));
        StepInput input;
        input.stores = step_stores_;
        input.token_offsets = step_offsets_;
        input.slots = step_slots_;
        SHOAL_TRY(session_->begin_step(input));
        if (!is_windowed_) {
            notes_.step(step_stream_first_, step_offsets_, step_slots_,
                        static_cast<uint32_t>(stores_.size()), any_layer().k->slot_count());
        }
        in_step_ = true;
        ++step_number_;
        step_layer_ = layer;
        step_has_part_[0] = step_has_part_[1] = false;
    } else if (!std::equal(numbers.begin(), numbers.end(), step_numbers_.begin(),
                           step_numbers_.end())) {
        return unsupported(fmt::format("layer {} writes other slots than the layers before it: "
                                       "not supported", layer));
    }
    if (layer != step_layer_) {
        SHOAL_TRY(append_pending());
        step_layer_ = layer;
        step_has_part_[0] = step_has_part_[1] = false;
    }
    step_has_part_[index] = true;
    return Status::ok();
}

Status KvCache::store_rows(const ggml_tensor& op) {
    if (!failure_.empty()) return unsupported(failure_);
    SHOAL_TRY(create_session());
    const KvTensor& tensor = tensor_of(op);
    SHOAL_TRY(check_store(op, shape_of(tensor.layer)));
    SHOAL_TRY(begin_step(tensor.layer, tensor.part, *op.src[1]));
    (tensor.part == Session::Part::k ? pending_k_ : pending_v_) = op.src[0];
    return Status::ok();
}

// K and V come as two ops, one after the other in the same split: one call takes both, so each
// token's row is written in one piece.
Status KvCache::append_pending() {
    if (pending_k_ == nullptr && pending_v_ == nullptr) return Status::ok();
    const LayerShape shape = shape_of(step_layer_);
    ConstTensor k;
    ConstTensor v;
    if (pending_k_ != nullptr) k = rows_tensor(*pending_k_, shape.kv_head_count, shape.k_head_dim);
    if (pending_v_ != nullptr) v = rows_tensor(*pending_v_, shape.kv_head_count, shape.v_head_dim);
    pending_k_ = nullptr;
    pending_v_ = nullptr;
    return session_->append(LayerId{step_layer_}, k, v);
}

Status KvCache::finish_split() {
    return append_pending();
}

Status KvCache::read_mask(const AttentionOp& attention) {
    const ggml_tensor& mask = *attention.mask;
    if (mask_step_ == step_number_ && mask_data_ == mask.data) return Status::ok();
    MaskView view;
    view.data = static_cast<const uint16_t*>(mask.data);
    view.row_stride = mask.nb[1] / sizeof(uint16_t);
    view.stream_stride = mask.nb[3] / sizeof(uint16_t);
    view.stream_count = attention.stream_count();
    view.queries_per_stream = attention.queries_per_stream();
    view.slot_count = static_cast<uint32_t>(attention.k->ne[1]);
    if (!mask_to_ranges(view, mask_ranges_)) {
        return unsupported("the attention mask holds values other than 0 and -inf (a bias): not "
                           "supported");
    }
    mask_query_offsets_.clear();
    for (uint32_t stream = 0; stream <= view.stream_count; ++stream) {
        mask_query_offsets_.push_back(stream * view.queries_per_stream);
    }
    mask_step_ = step_number_;
    mask_data_ = mask.data;
    ++mask_version_;
    return Status::ok();
}

Status KvCache::attend(const ggml_tensor& op) {
    if (!failure_.empty()) return unsupported(failure_);
    SHOAL_TRY(check_attention(op));
    SHOAL_TRY(append_pending());
    const AttentionOp attention(op);
    const uint32_t layer = attention.tensor().layer;
    if (!in_step_ || layer != step_layer_) {
        return unsupported(fmt::format("layer {} attends without having written rows in this step: "
                                       "layers that share a cache are not supported", layer));
    }
    if (attention.stream_first() != step_stream_first_ ||
        attention.stream_count() != step_stores_.size()) {
        return unsupported(fmt::format("layer {} attends in {} streams from {} on, {} from {} on "
                                       "were written: not supported", layer,
                                       attention.stream_count(), attention.stream_first(),
                                       step_stores_.size(), step_stream_first_));
    }
    if (delegate_on()) {
        const auto read = [this](const KvTensor& tensor, size_t offset, std::byte* data,
                                 size_t size) { return read_bytes(tensor, offset, data, size); };
        SHOAL_TRY(delegate_.attend(op, engine_threads_, read));
    } else {
        SHOAL_TRY(attend_here(op));
    }
    if (layer + 1 < layers_.size()) return Status::ok();
    in_step_ = false;
    return session_->end_step();
}

// q: f32 [k_head_dim, queries, q_heads, streams], all streams' queries at one distance.
ConstTensor KvCache::query_tensor(const ggml_tensor& q, uint32_t layer) const {
    ConstTensor tensor;
    tensor.data = static_cast<const std::byte*>(q.data);
    tensor.dtype = DType::f32;
    tensor.n = static_cast<uint32_t>(q.ne[1] * q.ne[3]);
    tensor.heads = q_head_count_;
    tensor.head_dim = shape_of(layer).k_head_dim;
    tensor.n_stride_bytes = q.nb[1];
    tensor.head_stride_bytes = q.nb[2];
    return tensor;
}

// What the next layer's queries would be if this layer changed nothing: its rows can be read while
// this layer is served. Its ops are known from an earlier graph. The first layers' inputs differ
// too much from each other; there the session guesses by itself.
void KvCache::hint_next_layer(const AttentionOp& attention) {
    constexpr uint32_t kFirstHinted = 3;
    const uint32_t layer = attention.tensor().layer;
    if (chains_.empty()) chains_.resize(layers_.size() + 1);
    if (layer >= kFirstHinted && !chains_[layer].fits(*attention.q) &&
        session_->wants_hint(LayerId{layer}) && !chains_[layer].record(*attention.q) &&
        !told_no_hints_) {
        told_no_hints_ = true;
        log_line(LogLevel::info,
                 fmt::format("layer {}: its queries are not computed in a way that is understood: "
                             "what it reads is guessed from its last query (prefetch.kind)",
                             layer));
    }
    QueryChain& next = chains_[layer + 1];
    ChainInputs inputs;
    if (!next.fits(*attention.q) || !session_->wants_hint(LayerId{layer + 1}) ||
        !QueryChain::find_inputs(*attention.q, inputs)) {
        return;
    }
    const ggml_tensor* q = nullptr;
    Status hinted = next.run(inputs, cpu_, engine_threads_, q);
    if (hinted) hinted = session_->hint_query(LayerId{layer + 1}, query_tensor(*q, layer + 1));
    if (hinted) return;
    next = QueryChain();
    log_line(LogLevel::debug, fmt::format("hint: {}", hinted.message()));
}

Status KvCache::attend_here(const ggml_tensor& op) {
    const AttentionOp attention(op);
    const LayerShape shape = shape_of(attention.tensor().layer);
    const ConstTensor q = query_tensor(*attention.q, attention.tensor().layer);
    Tensor out;
    out.data = static_cast<float*>(op.data);
    out.n = q.n;
    out.heads = q_head_count_;
    out.head_dim = shape.v_head_dim;
    out.n_stride_bytes = op.nb[2];
    out.head_stride_bytes = op.nb[1];

    SHOAL_TRY(read_mask(attention));
    Visibility visibility;
    visibility.query_offsets = mask_query_offsets_;
    visibility.range_offsets = mask_ranges_.offsets;
    visibility.ranges = mask_ranges_.ranges;
    visibility.version = mask_version_;
    hint_next_layer(attention);
    return session_->attend(LayerId{attention.tensor().layer}, q, visibility, out);
}

NotedToken KvCache::noted(uint32_t query, uint32_t slot) const {
    const auto next =
        std::upper_bound(mask_query_offsets_.begin(), mask_query_offsets_.end(), query);
    if (next == mask_query_offsets_.begin() || next == mask_query_offsets_.end()) return {};
    const auto stream = static_cast<uint32_t>(next - mask_query_offsets_.begin()) - 1;
    return notes_.at(step_stream_first_ + stream, slot);
}

}  // namespace shoal::llama_cpp
