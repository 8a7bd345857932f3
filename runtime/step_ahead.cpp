// Reading ahead: while the rows of a layer are on their way from disk, those of layers after it
// are started. What a layer will attend is known (it reuses a selection, or attends everything) or
// guessed (prefetch.kind). A guess that is wrong costs reads; it never changes an answer.
#include <fmt/format.h>

#include <algorithm>

#include "runtime/clock.hpp"
#include "runtime/finite.hpp"
#include "runtime/step.hpp"

namespace shoal {

namespace {

constexpr uint32_t kPlaces = Session::kHintQueries;

uint32_t rows_ahead(uint32_t rows, const Config::Prefetch& prefetch) {
    return static_cast<uint32_t>(
        std::min<uint64_t>(uint64_t{rows} * prefetch.percent / 100, UINT32_MAX));
}

}  // namespace

void Step::prepare_guesses() {
    if (s_.cache == nullptr) return;
    const uint32_t places = s_.options.store_count_max * kPlaces;
    guess_queries_ = GuessQueries(s_.shape, places);
    guess_queries_.use(s_.workspace.guess_queries.as<float>());
    guess_histories_.resize(size_t{s_.groups.count()} * places);
    for (const Group& group : s_.groups.all()) {
        for (uint32_t place = 0; place < places; ++place) {
            guess_histories_[size_t{group.index} * places + place].reserve(group.q_head_count());
        }
    }
    previous_lists_.resize(last_lists_.size());
    previous_stores_.reserve(s_.options.store_count_max);
    started_until_.resize(last_lists_.size());
    family_.reserve(s_.groups.count());
    uint32_t groups_max = 0;
    for (uint32_t l = 0; l < s_.shape.layers.size(); ++l) {
        const SlotRange groups = s_.groups.of_layer(l);
        groups_max = std::max(groups_max, groups.end - groups.begin);
    }
    part_wants_.reserve(size_t{s_.limits.queries_max} * groups_max * kernels::kAttendPartsMax);
}

bool Step::wants_hint(uint32_t layer) const {
    if (s_.cache == nullptr || !open_ || s_.config.prefetch.kind != PrefetchKind::query ||
        !guess_trial_.guesses() || !uses_labels_or_pages()) {
        return false;
    }
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        const Group& group = s_.groups.all()[g];
        if (!group.selects() || group.sliding) continue;
        // The views of this step may not be made yet: as if all that is stored were seen.
        for (uint32_t i = 0; i < stores_.size(); ++i) {
            const uint32_t tokens = token_offsets_[i + 1] - token_offsets_[i];
            if (tokens > s_.config.budget.sparse_queries_max) continue;
            const uint32_t seen = s_.stores[stores_[i]]->order().slot_end();
            if (!knows_all(group, *s_.stores[stores_[i]], seen)) return true;
        }
    }
    return false;
}

Status Step::hint(uint32_t layer, const ConstTensor& q) {
    const auto invalid = [](std::string text) {
        return Status::error(StatusCode::invalid_argument, std::move(text));
    };
    if (!open_) return invalid("hint_query: no step: call begin_step first");
    const uint32_t tokens = token_offsets_.back();
    const uint32_t dim = s_.shape.layers[layer].k_head_dim;
    if (q.data == nullptr || q.dtype != DType::f32 || q.n != tokens ||
        q.heads != s_.shape.q_head_count || q.head_dim != dim) {
        return invalid(fmt::format("approximate_q: {} [{}, {}, {}]: must be f32 [{}, {}, {}], a "
                                   "query per token of the step", dtype_name(q.dtype), q.n,
                                   q.heads, q.head_dim, tokens, s_.shape.q_head_count, dim));
    }
    if (!all_finite(q)) {
        return invalid(fmt::format("layer {}: approximate_q holds NaN or Inf", layer));
    }
    if (s_.cache == nullptr) return Status::ok();
    for (size_t i = 0; i < stores_.size(); ++i) {
        const uint32_t queries = token_offsets_[i + 1] - token_offsets_[i];
        for (uint32_t j = 0; j < std::min(queries, kPlaces); ++j) {
            guess_queries_.hint(layer, stores_[i] * kPlaces + j, q, token_offsets_[i] + j);
        }
    }
    return Status::ok();
}

void Step::remember_query(uint32_t layer, uint32_t store_index, const AttendCall& call,
                          uint32_t query) {
    const uint32_t begin = call.visibility->query_offsets[store_index];
    const PrefetchKind kind = s_.config.prefetch.kind;
    const bool is_asked = kind == PrefetchKind::last_query || kind == PrefetchKind::query;
    if (s_.cache == nullptr || !is_asked || query - begin >= kPlaces) return;
    guess_queries_.remember(layer, stores_[store_index] * kPlaces + query - begin, *call.q, query);
}

// Everything that is worth starting while layer_ waits for its own rows.
void Step::look_ahead(uint32_t store_index) {
    if (s_.config.prefetch.kind == PrefetchKind::none) return;
    const uint64_t started = now_ns();
    const uint32_t view_begin = view_first(store_index);
    const uint32_t queries =
        last_query_offsets_[store_index + 1] - last_query_offsets_[store_index];
    for (uint32_t view = view_begin; view < view_begin + queries; ++view) {
        read_reuse_ahead(store_index, view);
    }
    uint32_t next = layer_ + 1;
    while (next < s_.shape.layers.size() && s_.shape.layers[next].kind == LayerKind::none) ++next;
    if (next < s_.shape.layers.size()) read_layer_ahead(next, store_index, queries);
    const uint64_t ended = now_ns();
    s_.stats.prefetch_ns += ended - started;
    s_.trace.add(TraceStage::ahead, layer_, started, ended);
}

// What an anchor selected, the layers that reuse it will read: all of it goes out at once, token by
// token, as it lies on disk. Of as many layers as half of the RAM holds; when they are through, of
// those after them.
void Step::read_reuse_ahead(uint32_t store_index, uint32_t view) {
    const Store& store = *s_.stores[stores_[store_index]];
    const SlotRange groups = s_.groups.of_layer(layer_);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        const uint32_t anchor = s_.groups.all()[g].anchor;
        const size_t list = list_index(anchor, view);
        if (selected_[list] == 0 || s_.groups.all()[anchor].served == 1) continue;
        const kernels::SlotList& slots = last_lists_[list];
        const offload::BlockStore& rows = store.group(anchor).rows;
        const uint32_t layers_at_once =
            std::max(1U, s_.cache->wave_blocks_max() / 2 / rows.blocks_in(slots));
        uint32_t last = 0;
        family_.clear();
        for (const Group& group : s_.groups.all().subspan(g + 1)) {
            if (group.anchor != anchor || family_.size() == layers_at_once) continue;
            if (family_.empty() && group.index < started_until_[list]) break;  // on their way
            family_.push_back(&store.group(group.index).rows);
            last = group.index;
        }
        if (family_.empty()) continue;
        started_until_[list] = last + 1;
        offload::BlockStore::prefetch(family_, slots);
    }
}

void Step::read_layer_ahead(uint32_t layer, uint32_t store_index, uint32_t queries) {
    Store& store = *s_.stores[stores_[store_index]];
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t query = 0; query < queries; ++query) {
        const uint32_t view_index = view_first(store_index) + query;
        const QueryView& view = views_[view_index];
        for (uint32_t g = groups.begin; g < groups.end; ++g) {
            const Group& group = s_.groups.all()[g];
            const Group& anchor = s_.groups.all()[group.anchor];
            if (knows_all(anchor, store, view.visible_count())) {
                read_all_ahead(store.group(g).rows, view.visible());
            } else if (group.selects()) {  // else its rows went out with its anchor's
                guess_rows(group, store_index, query);
            }
        }
    }
}

// The first part of a layer that attends everything; more would drive out what is used sooner.
void Step::read_all_ahead(const offload::BlockStore& rows, kernels::SlotList visible) const {
    const uint32_t slots = (s_.cache->wave_blocks_max() / 4) << rows.layout().block_tokens_log2;
    visible.count = std::min(visible.count, slots);
    rows.prefetch(visible);
}

void Step::guess_rows(const Group& group, uint32_t store_index, uint32_t query) {
    if (s_.config.prefetch.kind == PrefetchKind::known) return;
    could_guess_ = true;
    if (!guess_trial_.guesses()) return;
    Store& store = *s_.stores[stores_[store_index]];
    const uint32_t view_index = view_first(store_index) + query;
    const offload::BlockStore& rows = store.group(group.index).rows;
    if (s_.config.prefetch.kind == PrefetchKind::steps || !uses_labels_or_pages()) {
        if (previous_stores_ != stores_) return;  // the lists are of other stores
        rows.prefetch(previous_lists_[list_index(group.index, view_index)]);
        ++s_.stats.prefetch_guesses;
        return;
    }
    if (query >= kPlaces) return;
    const uint32_t place = stores_[store_index] * kPlaces + query;
    const float* q = s_.config.prefetch.kind == PrefetchKind::query
                         ? guess_queries_.hinted(group.layer, place)
                         : nullptr;
    if (q != nullptr) ++s_.stats.prefetch_hints;
    else q = guess_queries_.last(group.layer, place);
    if (q == nullptr) return;
    ++s_.stats.prefetch_guesses;
    rows.prefetch(select_guessed(group, store, view_index, place, q));
}

// With histories of its own: what a guess leaves behind must not change what is selected.
kernels::SlotList Step::select_guessed(const Group& group, Store& store, uint32_t view_index,
                                       uint32_t place, const float* q) {
    const QueryView& view = views_[view_index];
    GroupStore& data = store.group(group.index);
    const uint32_t places = s_.options.store_count_max * kPlaces;
    SelectInput in;
    in.group = &group;
    in.labels = &data.labels;
    in.pages = &data.pages;
    in.masks = view.masks();
    in.q_head_stride = group.piece.k_head_dim;
    in.q = q + group.q_head_first() * in.q_head_stride;
    in.history = &guess_histories_[size_t{group.index} * places + place];
    const uint32_t budget =
        budget_of(group, data.histories[view_index % s_.limits.queries_max]);
    in.rows = std::min(rows_ahead(budget, s_.config.prefetch), view.visible_count());
    Stats ignored;
    SelectOutput out;
    out.slots = s_.workspace.guess.as<uint32_t>();
    out.stats = &ignored;
    const uint32_t count = s_.selector.select(in, out);
    return {out.slots, 0, count};
}

// The first layer of the next step is known best when this one ends.
void Step::look_ahead_of_next_step() {
    if (s_.cache == nullptr || s_.config.prefetch.kind == PrefetchKind::none ||
        last_query_offsets_.empty()) {
        return;
    }
    const uint64_t started = now_ns();
    for (uint32_t i = 0; i < stores_.size(); ++i) {
        const uint32_t queries = last_query_offsets_[i + 1] - last_query_offsets_[i];
        if (queries > s_.config.budget.sparse_queries_max) continue;
        read_layer_ahead(first_kv_layer_, i, queries);
    }
    const uint64_t spent = now_ns() - started;
    s_.stats.prefetch_ns += spent;
    s_.stats.fetch_ns += spent;
}

void Step::restart_guesses() {
    guess_trial_.restart();
    guess_queries_.forget();
    for (SelectHistory& history : guess_histories_) history.forget();
}

// The trial compares whole steps: what a hint costs is spent in the engine, and what a guess costs
// besides its own time (frames, the disk, the cores), anywhere in the step.
void Step::end_guesses() {
    if (s_.cache == nullptr) return;
    previous_lists_ = last_lists_;
    previous_stores_ = stores_;
    look_ahead_of_next_step();
    guess_queries_.forget_hint();
    const uint64_t took_ns = s_.disk->options().clock() - began_on_disk_ns_;
    if (!could_guess_ || !guess_trial_.end_step(took_ns)) return;
    ++s_.stats.prefetch_switched_off;
    if (!s_.options.log) return;
    s_.log(LogLevel::info,
           fmt::format("guessing rows does not pay: a step takes {:.2f} ms with it and {:.2f} ms "
                       "without. Off for {} steps (prefetch.kind)",
                       1e-6 * static_cast<double>(guess_trial_.with_ns()),
                       1e-6 * static_cast<double>(guess_trial_.without_ns()),
                       PrefetchTrial::kHeldSteps));
}

}  // namespace shoal
