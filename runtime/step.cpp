// The flow of a step, in order. Its stages are in step_views.cpp (what may be attended),
// step_attend.cpp (attention), step_fetch.cpp and step_ahead.cpp (rows on disk).
#include "runtime/step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "runtime/clock.hpp"
#include "runtime/finite.hpp"

namespace shoal {

using kernels::RowPart;

namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

ConstTensor rows_of(const ConstTensor& rows, uint32_t begin, uint32_t end) {
    ConstTensor part = rows;
    if (rows.empty()) return part;
    part.data += size_t{begin} * rows.n_stride_bytes;
    part.n = end - begin;
    return part;
}

Status check_rows(const char* name, const ConstTensor& rows, size_t tokens, uint32_t heads,
                  uint32_t head_dim) {
    if (rows.empty()) return Status::ok();
    if (rows.n != tokens || rows.heads != heads || rows.head_dim != head_dim) {
        return invalid(fmt::format("{}: shape [{}, {}, {}]: must be [{}, {}, {}]", name, rows.n,
                                   rows.heads, rows.head_dim, tokens, heads, head_dim));
    }
    return Status::ok();
}

}  // namespace

Status check_offsets(const char* name, std::span<const uint32_t> offsets, size_t parts,
                     size_t total) {
    bool fits = offsets.size() == parts + 1 && offsets.front() == 0 && offsets.back() == total;
    for (size_t i = 1; fits && i < offsets.size(); ++i) fits = offsets[i - 1] <= offsets[i];
    if (fits) return Status::ok();
    return invalid(fmt::format("{}: must be {} entries that rise from 0 to {}", name, parts + 1,
                               total));
}

Step::Step(SessionState& state)
    : s_(state),
      labels_started_(state.shape.layers.size()),
      views_(state.limits.views_max),
      view_ids_(state.limits.views_max),
      list_ids_(size_t{state.groups.count()} * state.limits.views_max),
      seen_(state.options.store_count_max),
      last_lists_(size_t{state.groups.count()} * state.limits.views_max),
      lse_(state.shape.q_head_count) {
    while (s_.shape.layers[first_kv_layer_].kind == LayerKind::none) ++first_kv_layer_;
    sample_layer_ = first_kv_layer_;
    std::byte* memory = s_.workspace.views.data();
    for (QueryView& view : views_) {
        view.use(memory, s_.limits.slot_count_max);
        memory += QueryView::bytes(s_.limits.slot_count_max);
    }
    stores_.reserve(s_.options.store_count_max);
    token_offsets_.reserve(s_.options.store_count_max + 1);
    last_query_offsets_.reserve(s_.options.store_count_max + 1);
    slots_.reserve(s_.options.queries_per_step_max);
    jobs_.reserve(size_t{s_.limits.queries_max} * s_.groups.count());
    selected_.resize(list_ids_.size());
    shares_.reserve(s_.groups.count());
    sample_.lse_list.resize(s_.limits.q_head_count_max);
    sample_.lse_all.resize(s_.limits.q_head_count_max);
    sample_.out.resize(size_t{s_.limits.q_head_count_max} * s_.limits.v_head_dim_max);
    prepare_guesses();
}

Status Step::check_step(const StepInput& input) const {
    if (input.stores.empty()) return invalid("step.stores: none: must be 1 or more");
    const size_t tokens = input.token_offsets.empty() ? 0 : input.token_offsets.back();
    SHOAL_TRY(check_offsets("step.token_offsets", input.token_offsets, input.stores.size(),
                            tokens));
    if (tokens > s_.options.queries_per_step_max) {
        return invalid(fmt::format("step.token_offsets: {} tokens: at most {}", tokens,
                                   s_.options.queries_per_step_max));
    }
    if (!input.slots.empty() && input.slots.size() != tokens) {
        return invalid(fmt::format("step.slots: {} entries: must be one per token = {}",
                                   input.slots.size(), tokens));
    }
    for (size_t i = 0; i < input.stores.size(); ++i) {
        const StoreId& id = input.stores[i];
        if (id.index >= s_.stores.size() || !s_.stores[id.index]->is_open ||
            s_.stores[id.index]->generation != id.generation) {
            return invalid(fmt::format("step.stores[{}]: store {} is not open", i, id.index));
        }
        for (size_t j = 0; j < i; ++j) {
            if (input.stores[j] == id) {
                return invalid(fmt::format("step.stores[{}]: store {} is named twice", i,
                                           id.index));
            }
        }
    }
    return Status::ok();
}

// Slots of the step's tokens, checked, into `slots`; memory for them in every store.
Status Step::place_tokens(const StepInput& input, std::vector<int64_t>& slots) {
    slots.assign(input.slots.begin(), input.slots.end());
    slots.resize(input.token_offsets.back());
    for (size_t i = 0; i < input.stores.size(); ++i) {
        Store& store = *s_.stores[input.stores[i].index];
        uint32_t next = store.order().slot_end();
        uint32_t slot_end = next;
        for (size_t t = input.token_offsets[i]; t < input.token_offsets[i + 1]; ++t) {
            if (input.slots.empty()) slots[t] = next++;
            if (slots[t] < 0 || slots[t] >= s_.limits.slot_count_max) {
                return invalid(fmt::format("step.slots[{}] = {}: must be 0 .. {}", t, slots[t],
                                           s_.limits.slot_count_max - 1));
            }
            slot_end = std::max(slot_end, static_cast<uint32_t>(slots[t]) + 1);
        }
        const size_t begin = input.token_offsets[i];
        const std::span<const int64_t> of_store(slots.data() + begin,
                                                input.token_offsets[i + 1] - begin);
        SHOAL_TRY(store.ensure(slot_end, s_.executor));
        SHOAL_TRY(store.own(of_store));
    }
    return Status::ok();
}

// A step that was begun and not ended (the engine gave up in the middle) is forgotten. A begin
// that is refused leaves no step open.
Status Step::begin(const StepInput& input) {
    forget_step();
    SHOAL_TRY(check_step(input));
    SHOAL_TRY(place_tokens(input, slots_));
    stores_.clear();
    token_offsets_.assign(input.token_offsets.begin(), input.token_offsets.end());
    for (size_t i = 0; i < input.stores.size(); ++i) {
        stores_.push_back(input.stores[i].index);
        Store& store = *s_.stores[stores_[i]];
        for (size_t t = token_offsets_[i]; t < token_offsets_[i + 1]; ++t) {
            store.order().write(static_cast<uint32_t>(slots_[t]));
        }
    }
    open_ = true;
    began_ns_ = s_.trace.is_on() ? now_ns() : 0;
    could_guess_ = false;
    if (s_.disk != nullptr) began_on_disk_ns_ = s_.disk->options().clock();
    s_.stats.steps++;
    s_.stats.tokens_written += slots_.size();
    return Status::ok();
}

void Step::abandon() {
    forget_step();
    previous_stores_.clear();
}

void Step::forget_step() {
    if (open_) previous_stores_.clear();  // its lists lie where those of the step before lay
    guess_queries_.forget_hint();
    open_ = false;
    views_version_ = 0;
    forget_lists();
}

Status Step::append(uint32_t layer, const ConstTensor& k, const ConstTensor& v) {
    if (!open_) return invalid("append: no step: call begin_step first");
    for (size_t i = 0; i < stores_.size(); ++i) {
        const uint32_t begin = token_offsets_[i];
        const uint32_t end = token_offsets_[i + 1];
        if (!k.empty() && k.n != slots_.size()) SHOAL_TRY(check_rows("k", k, slots_.size(), 0, 0));
        if (!v.empty() && v.n != slots_.size()) SHOAL_TRY(check_rows("v", v, slots_.size(), 0, 0));
        SHOAL_TRY(write(layer, *s_.stores[stores_[i]],
                        std::span(slots_).subspan(begin, end - begin), rows_of(k, begin, end),
                        rows_of(v, begin, end)));
    }
    if (!k.empty()) s_.label_source->observe_keys(layer, k);
    return Status::ok();
}

Status Step::write(uint32_t layer, Store& store, std::span<const int64_t> slots,
                   const ConstTensor& k, const ConstTensor& v) {
    const LayerShape& shape = s_.shape.layers[layer];
    SHOAL_TRY(check_rows("k", k, slots.size(), shape.kv_head_count, shape.k_head_dim));
    SHOAL_TRY(check_rows("v", v, slots.size(), shape.kv_head_count, shape.v_head_dim));
    if (!all_finite(k)) return invalid(fmt::format("layer {}: k holds NaN or Inf", layer));
    if (!all_finite(v)) return invalid(fmt::format("layer {}: v holds NaN or Inf", layer));
    const uint64_t started = now_ns();
    if (!v.empty()) SHOAL_TRY(write_part(layer, store, RowPart::v, slots, v));
    if (!k.empty()) SHOAL_TRY(write_part(layer, store, RowPart::k, slots, k));
    const uint64_t ended = now_ns();
    s_.stats.append_ns += ended - started;
    s_.trace.add(TraceStage::append, layer, started, ended);
    return Status::ok();
}

Status Step::write_part(uint32_t layer, Store& store, RowPart part, std::span<const int64_t> slots,
                        const ConstTensor& rows) {
    const SlotRange groups = s_.groups.of_layer(layer);
    for (size_t begin = 0; begin < slots.size();) {
        const std::span<const int64_t> some =
            slots.subspan(begin, Store::write_slots(slots.subspan(begin)));
        const auto end = static_cast<uint32_t>(begin + some.size());
        const ConstTensor rows_here = rows_of(rows, static_cast<uint32_t>(begin), end);
        for (uint32_t g = groups.begin; g < groups.end; ++g) {
            SHOAL_TRY(store.write(g, s_.groups.all()[g], part, some, rows_here, *s_.backend,
                                  s_.executor));
        }
        begin = end;
    }
    return Status::ok();
}

Status Step::put(uint32_t layer, Store& store, std::span<const int64_t> slots,
                 const ConstTensor& k, const ConstTensor& v) {
    views_version_ = 0;  // what was prepared for a query may no longer be so
    std::fill(view_ids_.begin(), view_ids_.end(), 0);
    uint32_t slot_end = store.order().slot_end();
    for (const int64_t slot : slots) {
        slot_end = std::max(slot_end, static_cast<uint32_t>(slot) + 1);
    }
    SHOAL_TRY(store.ensure(slot_end, s_.executor));
    SHOAL_TRY(store.own(slots));
    SHOAL_TRY(write(layer, store, slots, k, v));
    if (layer == first_kv_layer_ && !k.empty()) {
        for (const int64_t slot : slots) store.order().write(static_cast<uint32_t>(slot));
    }
    if (!k.empty()) s_.label_source->observe_keys(layer, k);
    return Status::ok();
}

Status Step::replace(uint32_t layer, Store& store, std::span<const int64_t> slots,
                     const ConstTensor& k, const ConstTensor& v) {
    for (size_t i = 0; i < slots.size(); ++i) {
        if (store.order().is_written(static_cast<uint32_t>(slots[i]))) continue;
        return invalid(fmt::format("slots[{}] = {}: was never written", i, slots[i]));
    }
    SHOAL_TRY(store.own(slots));
    return write(layer, store, slots, k, v);
}

Status Step::stage(uint32_t layer, Store& store, std::span<const int64_t> slots, RowPart part,
                   const ConstTensor& rows) {
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        SHOAL_TRY(store.ensure_group(g, static_cast<uint32_t>(slots.back()) + 1, s_.executor));
    }
    SHOAL_TRY(write_part(layer, store, part, slots, rows));
    // K of some tokens comes first, then V of the same.
    if (s_.cache != nullptr && part == RowPart::v) s_.cache->write_behind();
    return Status::ok();
}

void Step::publish(Store& store, std::span<const uint32_t> order) {
    for (const uint32_t slot : order) store.order().write(slot);
}

Status Step::fork(Store& from, Store& to) {
    abandon();
    return to.fork_from(from, s_.executor);
}

Status Step::copy(uint32_t layer, RowPart part, const Store& from, Store& to) {
    abandon();
    std::vector<int64_t> slots(from.order().slot_end());
    std::iota(slots.begin(), slots.end(), int64_t{0});
    SHOAL_TRY(to.ensure(from.order().slot_end(), s_.executor));
    SHOAL_TRY(to.own(slots));
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        SHOAL_TRY(to.copy_part(g, part, from, s_.executor));
    }
    if (layer == first_kv_layer_ && part == RowPart::k) to.order().copy_from(from.order());
    return Status::ok();
}

Status Step::attend(const AttendCall& call) {
    SHOAL_TRY(check_attend(call));
    SHOAL_TRY(learn(call.layer, *call.q));
    SHOAL_TRY(prepare_views(*call.visibility));
    layer_ = call.layer;
    for (uint32_t i = 0; i < stores_.size(); ++i) {
        const uint32_t queries =
            call.visibility->query_offsets[i + 1] - call.visibility->query_offsets[i];
        if (queries == 0) continue;
        SHOAL_TRY(check_written(call.layer, i));
        SHOAL_TRY(compare_rows(call.layer, i));
        if (queries > s_.config.budget.sparse_queries_max) {
            SHOAL_TRY(attend_exact(i, call));
        } else {
            SHOAL_TRY(attend_lists(i, call));
        }
    }
    if (s_.cache != nullptr) s_.cache->write_behind();
    return Status::ok();
}

// Sparse and dense decode attention: a list of slots per query and group, then one pass over all.
Status Step::attend_lists(uint32_t store_index, const AttendCall& call) {
    Store& store = *s_.stores[stores_[store_index]];
    const uint32_t query_begin = call.visibility->query_offsets[store_index];
    const uint32_t query_end = call.visibility->query_offsets[store_index + 1];
    const SlotRange groups = s_.groups.of_layer(call.layer);
    jobs_.clear();
    attended_store_ = store_index;
    for (uint32_t query = query_begin; query < query_end; ++query) {
        remember_query(call.layer, store_index, call, query);
        for (uint32_t g = groups.begin; g < groups.end; ++g) {
            Job job;
            job.group = &s_.groups.all()[g];
            job.query = query;
            job.view = view_first(store_index) + query - query_begin;
            SHOAL_TRY(choose(*job.group, store, call, job));
            SHOAL_TRY(check_list(job));
            jobs_.push_back(job);
        }
    }
    begin_stage(TraceStage::attend);
    SHOAL_TRY(run_jobs(store, call, jobs_));
    end_stage(now_ns());
    return sample_recall(store, call, jobs_.front());
}

// Which slots a query attends in a group: everything, or the safety set and a selection, its own or
// its anchor's. What an anchor attends the groups that reuse it attend too, everything included.
Status Step::choose(const Group& group, Store& store, const AttendCall& call, Job& job) {
    const QueryView& view = views_[job.view];
    kernels::SlotList& list = last_lists_[list_index(group.index, job.view)];
    if (attends_everything(s_.groups.all()[group.anchor], store, view.visible_count())) {
        s_.stats.queries_dense++;
        list = view.visible();
    } else {
        if (group.selects()) {
            list = select(group, job.query, job.view, store, call);
            selected_[list_index(group.index, job.view)] = 1;
            s_.stats.selections++;
        } else {
            SHOAL_TRY(reuse(group, job.view, list));
            s_.stats.selections_reused++;
        }
        s_.stats.queries_sparse++;
    }
    list_ids_[list_index(group.index, job.view)] = view_ids_[job.view];
    s_.stats.rows_attended += uint64_t{list.count} * group.piece.kv_head_count;
    s_.stats.kv_bytes_read += uint64_t{list.count} * group.piece.token_bytes();
    job.slots = list;
    return Status::ok();
}

kernels::SlotList Step::select(const Group& group, uint32_t query, uint32_t view_index,
                               Store& store, const AttendCall& call) {
    const QueryView& view = views_[view_index];
    GroupStore& data = store.group(group.index);
    uint32_t* slots = list_of(group.index, view_index);
    const std::span<const uint32_t> safety = view.safety();
    SelectInput in;
    in.group = &group;
    in.labels = &data.labels;
    in.pages = &data.pages;
    in.masks = view.masks();
    in.q_head_stride = call.q->head_stride_bytes / sizeof(float);
    in.q = reinterpret_cast<const float*>(call.q->data + query * call.q->n_stride_bytes) +
           group.q_head_first() * in.q_head_stride;
    in.history = &data.histories[view_index % s_.limits.queries_max];
    in.rows = std::min(budget_of(group, *in.history), view.visible_count());
    SelectOutput out;
    out.slots = slots + safety.size();
    out.stats = &s_.stats;
    out.trace = &s_.trace;
    const uint32_t count = s_.selector.select(in, out);
    merge_into_front(safety, {out.slots, count}, slots);
    return {slots, 0, static_cast<uint32_t>(safety.size()) + count};
}

Status Step::end() {
    if (!open_) return invalid("end_step: no step: call begin_step first");
    open_ = false;
    if (s_.config.budget.adaptive) adapt_rows();
    end_guesses();
    if (began_ns_ != 0) s_.trace.add(TraceStage::step, 0, began_ns_, now_ns());
    return Status::ok();
}

}  // namespace shoal
