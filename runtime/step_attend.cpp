// The straight-line helpers of Step: labels, budgets, and attention over lists that are decided.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "offload/executor.hpp"
#include "runtime/clock.hpp"
#include "runtime/step.hpp"

namespace shoal {

namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

float* out_row(const Tensor& out, uint32_t query, uint32_t head) {
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(out.data) +
                                    query * out.n_stride_bytes + head * out.head_stride_bytes);
}

}  // namespace

Status Step::learn(uint32_t layer, const ConstTensor& q) {
    if (!s_.limits.summaries.labels || s_.shape.layers[layer].kind == LayerKind::sliding) {
        return Status::ok();
    }
    if (labels_started_[layer] != 0) return Status::ok();
    s_.label_source->observe_queries(layer, q);
    if (s_.label_source->ready(layer)) return start_labels(layer);
    return Status::ok();
}

Status Step::start_labels(uint32_t layer) {
    bool all_started = true;
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        if (!s_.stores[0]->group(g).keeps_labels()) continue;
        // Indices point at the formats: once made they stay, whatever fails after.
        if (s_.formats[g].empty()) {
            s_.formats[g] = s_.label_source->make_formats(s_.groups.all()[g]);
        }
        for (uint32_t i = 0; i < s_.stores.size(); ++i) {
            const Status started =
                s_.stores[i]->start_labels(g, *s_.backend, s_.formats[g], s_.executor);
            if (started) continue;
            // A store of another sequence, of which a block was lost, is no concern of this step.
            if (std::find(stores_.begin(), stores_.end(), i) != stores_.end()) return started;
            all_started = false;
        }
    }
    if (!all_started) return Status::ok();  // the next attend tries again
    labels_started_[layer] = 1;
    if (groups.end == s_.groups.count()) {
        s_.log(LogLevel::info, "channel statistics are known: labels are in use");
    }
    return Status::ok();
}

// By the policy, so many tokens are not worth selecting from.
bool Step::sees_little(const Group& group, uint32_t visible_count) const {
    const Config::Budget& budget = s_.config.budget;
    if (s_.config.selector.kind == SelectorKind::dense) return true;
    if (group.sliding) return true;  // what such a layer sees is short already
    const uint32_t below = budget.dense_below != 0 ? budget.dense_below : 2 * budget.rows;
    if (visible_count <= below) return true;
    return group.dense && visible_count <= budget.dense_rows;
}

// Whether the group is going to attend everything.
bool Step::knows_all(const Group& group, const Store& store, uint32_t visible_count) const {
    return sees_little(group, visible_count) ||
           (uses_labels(s_.config.selector.kind) && !store.group(group.index).labels.started());
}

bool Step::attends_everything(const Group& group, const Store& store, uint32_t visible_count) {
    if (!knows_all(group, store, visible_count)) return false;
    if (sees_little(group, visible_count)) return true;
    s_.stats.dense_without_statistics++;
    if (!told_dense_without_statistics_) {
        told_dense_without_statistics_ = true;
        s_.log(LogLevel::warning,
               fmt::format("no channel statistics yet: attention is dense until {} tokens were "
                           "seen (profile.tokens), or give profile.path",
                           s_.config.profile.tokens));
    }
    return true;
}

uint32_t Step::budget_of(const Group& group, const SelectHistory& history) const {
    const Config::Budget& budget = s_.config.budget;
    if (group.dense) return budget.dense_rows;
    if (!budget.adaptive) return budget.rows;
    const double rows = double{1} * budget.rows * double{history.rows_factor};
    return std::max(1U, static_cast<uint32_t>(rows + 0.5));
}

// The groups that selected for a query in this step, but for dense ones, share its rows anew.
void Step::adapt_rows() {
    const bool is_log = s_.config.selector.combine == CombineKind::max;
    const uint32_t queries = s_.limits.queries_max;
    for (uint32_t view = 0; view < stores_.size() * queries; ++view) {
        Store& store = *s_.stores[stores_[view / queries]];
        shares_.clear();
        for (const Group& group : s_.groups.all()) {
            if (selected_[list_index(group.index, view)] == 0 || group.dense) continue;
            SelectHistory& history = store.group(group.index).histories[view % queries];
            const double score = is_log ? std::exp2(history.threshold) : history.threshold;
            RowShare share;
            share.factor = &history.rows_factor;
            share.marginal = std::max(score, 0.0) / (is_log ? 1 : group.q_head_count());
            share.weight = group.served;
            shares_.push_back(share);
        }
        share_rows(shares_);
    }
}

// The anchor's list, made in this step for what the query sees.
Status Step::reuse(const Group& group, uint32_t view_index, kernels::SlotList& list) const {
    const size_t anchor = list_index(group.anchor, view_index);
    if (list_ids_[anchor] != view_ids_[view_index]) {
        return invalid(fmt::format("layer {} attends what layer {} selected: attend layer {} "
                                   "before it in every step, with the same visibility",
                                   group.layer, s_.groups.all()[group.anchor].layer,
                                   s_.groups.all()[group.anchor].layer));
    }
    list = last_lists_[anchor];
    return Status::ok();
}

uint32_t* Step::list_of(uint32_t group, uint32_t view_index) const {
    return s_.workspace.lists.as<uint32_t>() + s_.list_offset[group] +
           size_t{view_index} * s_.list_rows_max[group];
}

kernels::AttendInput Step::input_of(const Store& store, const AttendCall& call,
                                    const Job& job) const {
    const Group& group = *job.group;
    kernels::AttendInput in;
    in.kv = store.group(group.index).rows.view();
    in.q_head_stride = call.q->head_stride_bytes / sizeof(float);
    in.q = reinterpret_cast<const float*>(call.q->data + job.query * call.q->n_stride_bytes) +
           group.q_head_first() * in.q_head_stride;
    in.q_per_kv = group.q_per_kv;
    in.slots = job.slots;
    in.scale = group.scale;
    return in;
}

// Part `index` of all parts of the jobs.
Step::Part Step::part_of(std::span<const Job> jobs, uint32_t index) {
    size_t j = jobs.size() - 1;
    while (jobs[j].part_first > index) --j;
    Part part;
    part.job = &jobs[j];
    part.index = index - jobs[j].part_first;
    const uint32_t rows = kernels::attend_part_rows(jobs[j].slots.count);
    part.begin = part.index * rows;
    part.end = std::min(part.begin + rows, jobs[j].slots.count);
    return part;
}

// Every part of every job is one piece of parallel work; a part's cut depends on its list alone.
// With a disk, as many parts at a time as have room for their rows in RAM, and of those some while
// the rows of others are under way.
Status Step::run_parts(const Store& store, const AttendCall& call, std::span<const Job> jobs) {
    const Job& last = jobs.back();
    const uint32_t parts = last.part_first + kernels::attend_part_count(last.slots.count);
    for (uint32_t begin = 0; begin < parts;) {
        uint32_t end = parts;
        start_parts(store, jobs, begin, end);
        const uint32_t at_once = parts_at_once(end - begin);
        for (uint32_t first = begin; first < end; first += at_once) {
            const uint32_t count = std::min(at_once, end - first);
            SHOAL_TRY(finish_parts(first - begin + count));
            offload::run_on(s_.executor, count, [&](uint32_t i, uint32_t) {
                const Part part = part_of(jobs, first + i);
                const Job& job = *part.job;
                s_.backend->attend_part(
                    input_of(store, call, job), part.begin, part.end,
                    kernels::attend_partial_at(job.partials, part.index,
                                               job.group->q_head_count(),
                                               job.group->piece.v_head_dim));
            });
        }
        begin = end;
    }
    return Status::ok();
}

void Step::begin_stage(TraceStage stage) {
    stage_ = stage;
    stage_began_ns_ = now_ns();
}

// Attention up to here, less what was spent on fetching, which is a stage of its own.
void Step::end_stage(uint64_t ended_ns) {
    (stage_ == TraceStage::exact ? s_.stats.exact_ns : s_.stats.attend_ns) +=
        ended_ns - stage_began_ns_;
    s_.trace.add(stage_, layer_, stage_began_ns_, ended_ns);
}

void Step::merge_job(const Job& job, float* out, size_t out_head_stride, float* lse) const {
    kernels::MergeInput in;
    in.partials = job.partials;
    in.part_count = kernels::attend_part_count(job.slots.count);
    in.q_head_count = job.group->q_head_count();
    in.v_head_dim = job.group->piece.v_head_dim;
    s_.backend->merge(in, {out, out_head_stride, lse});
}

Status Step::run_jobs(const Store& store, const AttendCall& call, std::span<Job> jobs) {
    float* partials = s_.workspace.partials.as<float>();
    uint32_t parts = 0;
    for (Job& job : jobs) {
        job.part_first = parts;
        job.partials = partials;
        const uint32_t count = kernels::attend_part_count(job.slots.count);
        parts += count;
        partials += count * kernels::attend_partial_floats(job.group->q_head_count(),
                                                           job.group->piece.v_head_dim);
    }
    SHOAL_TRY(run_parts(store, call, jobs));
    for (const Job& job : jobs) {
        const uint32_t head = job.group->q_head_first();
        merge_job(job, out_row(*call.out, job.query, head),
                  call.out->head_stride_bytes / sizeof(float), lse_.data() + head);
        if (call.lse != nullptr) {
            std::copy_n(lse_.data() + head, job.group->q_head_count(),
                        call.lse + size_t{job.query} * s_.shape.q_head_count + head);
        }
    }
    return Status::ok();
}

// The share of exact attention mass that the list covers: exp(lse of the list - lse of all). It
// comes from attention itself, not from labels. One layer every `recall_every` steps. Not with a
// disk, where it would read all there is.
Status Step::sample_recall(const Store& store, const AttendCall& call, const Job& job) {
    const uint32_t every = s_.config.stats.recall_every;
    if (every == 0 || s_.stats.steps % every != 0 || call.layer != sample_layer_ ||
        sampled_step_ == s_.stats.steps || s_.cache != nullptr) {
        return Status::ok();
    }
    sampled_step_ = s_.stats.steps;
    const QueryView& view = views_[job.view];
    do {
        sample_layer_ = (sample_layer_ + 1) % static_cast<uint32_t>(s_.shape.layers.size());
    } while (s_.shape.layers[sample_layer_].kind != LayerKind::full && sample_layer_ != call.layer);
    if (job.slots.count >= view.visible_count()) return Status::ok();

    const uint32_t heads = job.group->q_head_count();
    Job sample = job;
    sample.part_first = 0;
    sample.partials = s_.workspace.partials.as<float>();
    for (const auto& [slots, lse] :
         {std::pair{job.slots, sample_.lse_list.data()},
          std::pair{view.visible(), sample_.lse_all.data()}}) {
        sample.slots = slots;
        SHOAL_TRY(run_parts(store, call, {&sample, 1}));
        merge_job(sample, sample_.out.data(), job.group->piece.v_head_dim, lse);
    }
    double recall = 0;
    for (uint32_t h = 0; h < heads; ++h) {
        recall += std::exp(double{sample_.lse_list[h]} - double{sample_.lse_all[h]}) / heads;
    }
    s_.recall_sum[call.layer] += recall;
    s_.recall_count[call.layer]++;
    return Status::ok();
}

Status Step::attend_exact(uint32_t store_index, const AttendCall& call) {
    const Store& store = *s_.stores[stores_[store_index]];
    const uint32_t begin = call.visibility->query_offsets[store_index];
    const uint32_t end = call.visibility->query_offsets[store_index + 1];
    begin_stage(TraceStage::exact);
    const SlotRange groups = s_.groups.of_layer(call.layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        const Group& group = s_.groups.all()[g];
        kernels::PrefillInput in;
        in.kv = store.group(g).rows.view();
        in.q_stride = call.q->n_stride_bytes / sizeof(float);
        in.q_head_stride = call.q->head_stride_bytes / sizeof(float);
        in.q = reinterpret_cast<const float*>(call.q->data) + begin * in.q_stride +
               group.q_head_first() * in.q_head_stride;
        in.query_count = end - begin;
        in.q_per_kv = group.q_per_kv;
        in.ranges = call.visibility->ranges.data();
        in.range_offsets = call.visibility->range_offsets.data() + begin;
        in.scale = group.scale;
        kernels::PrefillOutput out;
        out.out = out_row(*call.out, begin, group.q_head_first());
        out.out_stride = call.out->n_stride_bytes / sizeof(float);
        out.out_head_stride = call.out->head_stride_bytes / sizeof(float);
        std::vector<float>& lse = exact_lse_;
        lse.resize(call.lse == nullptr ? 0 : in.query_count * group.q_head_count());
        if (call.lse != nullptr) out.lse = lse.data();
        SHOAL_TRY(attend_passes(store.group(g).rows, seen_[store_index], in, out));
        for (size_t i = 0; i < lse.size(); ++i) {
            const size_t query = begin + i / group.q_head_count();
            call.lse[query * s_.shape.q_head_count + group.q_head_first() +
                     i % group.q_head_count()] = lse[i];
        }
        s_.stats.queries_exact += in.query_count;
    }
    end_stage(now_ns());
    return Status::ok();
}

std::vector<uint32_t> Step::attended_slots(uint32_t group, uint32_t query) const {
    const std::vector<uint32_t>& offsets = last_query_offsets_;
    if (offsets.empty() || query >= offsets.back()) return {};
    const auto next = std::upper_bound(offsets.begin(), offsets.end(), query);
    const auto store_index = static_cast<uint32_t>(next - offsets.begin()) - 1;
    const uint32_t query_in_store = query - offsets[store_index];
    if (query_in_store >= s_.limits.queries_max) return {};
    const kernels::SlotList& list =
        last_lists_[list_index(group, view_first(store_index) + query_in_store)];
    std::vector<uint32_t> slots(list.count);
    for (uint32_t i = 0; i < list.count; ++i) slots[i] = list.at(i);
    return slots;
}

void Step::forget_lists() {
    last_query_offsets_.clear();
    std::fill(view_ids_.begin(), view_ids_.end(), 0);
    std::fill(list_ids_.begin(), list_ids_.end(), UINT64_MAX);
    std::fill(selected_.begin(), selected_.end(), uint8_t{0});
    std::fill(started_until_.begin(), started_until_.end(), 0U);
    std::fill(last_lists_.begin(), last_lists_.end(), kernels::SlotList{});
}

}  // namespace shoal
