// What a step looks at before it attends: that the call is sound, what each query may see, and that
// what it may see was written.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "runtime/finite.hpp"
#include "runtime/step.hpp"

namespace shoal {

namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

std::span<const SlotRange> ranges_of(const Visibility& visibility, uint32_t query) {
    const uint32_t begin = visibility.range_offsets[query];
    return visibility.ranges.subspan(begin, visibility.range_offsets[query + 1] - begin);
}

bool same_ranges(std::span<const SlotRange> a, std::span<const SlotRange> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

Status Step::check_attend(const AttendCall& call) const {
    const ConstTensor& q = *call.q;
    const LayerShape& shape = s_.shape.layers[call.layer];
    if (!open_) return invalid("attend: no step: call begin_step first");
    if (q.dtype != DType::f32 || q.heads != s_.shape.q_head_count ||
        q.head_dim != shape.k_head_dim || q.n > s_.options.queries_per_step_max) {
        return invalid(fmt::format("q: {} [{}, {}, {}]: must be f32 [at most {}, {}, {}]",
                                   dtype_name(q.dtype), q.n, q.heads, q.head_dim,
                                   s_.options.queries_per_step_max, s_.shape.q_head_count,
                                   shape.k_head_dim));
    }
    if ((q.data == nullptr && q.n != 0) || q.n_stride_bytes % sizeof(float) != 0 ||
        q.head_stride_bytes % sizeof(float) != 0) {
        return invalid(fmt::format("q: data {}, strides {} and {}: must not be null, and strides "
                                   "must be whole floats",
                                   q.data == nullptr ? "null" : "given", q.n_stride_bytes,
                                   q.head_stride_bytes));
    }
    const Tensor& out = *call.out;
    if (out.data == nullptr || out.n != q.n || out.heads != q.heads ||
        out.head_dim != shape.v_head_dim) {
        return invalid(fmt::format("out: [{}, {}, {}]: must be [{}, {}, {}]", out.n, out.heads,
                                   out.head_dim, q.n, q.heads, shape.v_head_dim));
    }
    const Visibility& v = *call.visibility;
    SHOAL_TRY(check_offsets("visibility.query_offsets", v.query_offsets, stores_.size(), q.n));
    SHOAL_TRY(check_offsets("visibility.range_offsets", v.range_offsets, q.n, v.ranges.size()));
    if (!all_finite(q)) return invalid(fmt::format("layer {}: q holds NaN or Inf", call.layer));
    return Status::ok();
}

Status Step::check_ranges(const Visibility& visibility) const {
    for (size_t i = 0; i < stores_.size(); ++i) {
        const uint32_t slot_end = s_.stores[stores_[i]]->order().slot_end();
        const uint32_t query_end = visibility.query_offsets[i + 1];
        for (uint32_t query = visibility.query_offsets[i]; query < query_end; ++query) {
            uint32_t last_end = 0;
            for (const SlotRange& range : ranges_of(visibility, query)) {
                if (range.begin >= range.end || range.begin < last_end || range.end > slot_end) {
                    return invalid(fmt::format("visibility.ranges of query {}: [{}, {}): must be "
                                               "ascending, disjoint, and end at {} or before",
                                               query, range.begin, range.end, slot_end));
                }
                last_end = range.end;
            }
        }
    }
    return Status::ok();
}

void Step::prepare_query(uint32_t store_index, std::span<const SlotRange> ranges,
                         QueryView* view) {
    for (const SlotRange& range : ranges) mark_visible(seen_[store_index], range);
    if (view == nullptr) return;
    uint64_t& id = view_ids_[static_cast<size_t>(view - views_.data())];
    if (id == 0 || !same_ranges(view->ranges(), ranges)) id = ++view_id_last_;
    view->prepare(ranges, s_.stores[stores_[store_index]]->order(), s_.config.safety);
}

void Step::prepare_views_of(uint32_t store_index, const Visibility& visibility) {
    const uint32_t begin = visibility.query_offsets[store_index];
    const uint32_t end = visibility.query_offsets[store_index + 1];
    const bool sparse = end - begin <= s_.config.budget.sparse_queries_max;
    QueryView* view = sparse ? &views_[view_first(store_index)] : nullptr;
    for (uint32_t query = begin; query < end; ++query) {
        prepare_query(store_index, ranges_of(visibility, query), view);
        if (view != nullptr) ++view;
    }
}

// What is refused changes no view: those of the step before may be of other stores, and what the
// views show is read ahead.
Status Step::prepare_views(const Visibility& visibility) {
    if (visibility.version != 0 && visibility.version == views_version_) return Status::ok();
    SHOAL_TRY(check_ranges(visibility));
    const size_t spans = (size_t{s_.limits.slot_count_max} + kernels::kSpanSlots - 1) /
                         kernels::kSpanSlots;
    for (uint32_t i = 0; i < stores_.size(); ++i) {
        const Store& store = *s_.stores[stores_[i]];
        seen_[i] = {s_.workspace.seen.as<kernels::SpanMask>() + i * spans,
                    (store.order().slot_end() + kernels::kSpanSlots - 1) / kernels::kSpanSlots};
        std::fill(seen_[i].begin(), seen_[i].end(), kernels::SpanMask{});
        prepare_views_of(i, visibility);
    }
    last_query_offsets_.assign(visibility.query_offsets.begin(), visibility.query_offsets.end());
    views_version_ = visibility.version;
    return Status::ok();
}

Status Step::check_written(uint32_t layer, uint32_t store_index) const {
    const Store& store = *s_.stores[stores_[store_index]];
    const SlotRange groups = s_.groups.of_layer(layer);
    const uint32_t slot = store.first_missing(groups.begin, seen_[store_index]);
    if (slot == store.order().slot_end()) return Status::ok();
    return invalid(fmt::format("visibility.ranges: slot {} is visible in layer {} but has no K "
                               "and V there",
                               slot, layer));
}

// With host.check_rows: no row is read that is not what was written to its slot.
Status Step::compare_rows(uint32_t layer, uint32_t store_index) {
    const Store& store = *s_.stores[stores_[store_index]];
    const SlotRange groups = s_.groups.of_layer(layer);
    for (uint32_t g = groups.begin; g < groups.end; ++g) {
        const GroupStore& group = store.group(g);
        if (!group.check.is_on()) return Status::ok();
        uint32_t slot = UINT32_MAX;
        SHOAL_TRY(find_wrong_row(group, seen_[store_index], slot));
        if (slot == UINT32_MAX) continue;
        return Status::error(StatusCode::corrupt,
                             fmt::format("layer {}, store {}: the row of slot {} is not what was "
                                         "written there (host.check_rows)",
                                         layer, stores_[store_index], slot));
    }
    return Status::ok();
}

// With a disk a few spans at a time: all that is visible does not fit in RAM.
Status Step::find_wrong_row(const GroupStore& group, std::span<const kernels::SpanMask> seen,
                            uint32_t& slot) {
    const auto span_count = static_cast<uint32_t>(seen.size());
    const uint32_t step = group.rows.spills() ? kSpansAtOnce : span_count;
    for (uint32_t begin = 0; begin < span_count; begin += step) {
        const uint32_t end = std::min(begin + step, span_count);
        group.rows.begin_wave();
        SHOAL_TRY(group.rows.hold({begin * kernels::kSpanSlots, end * kernels::kSpanSlots},
                                  offload::HoldFor::reading));
        slot = group.check.first_wrong(group.rows.view(), seen, {begin, end});
        if (slot != UINT32_MAX) return Status::ok();
    }
    for (const kernels::SpanMask& mask : seen) {
        s_.stats.rows_checked += static_cast<uint64_t>(std::popcount(mask.visible[0]) +
                                                       std::popcount(mask.visible[1]));
    }
    return Status::ok();
}

// With host.check_rows: a query attends no slot that it may not see.
Status Step::check_list(const Job& job) {
    if (!s_.config.host.check_rows) return Status::ok();
    const std::span<const kernels::SpanMask> masks = views_[job.view].masks();
    for (uint32_t i = 0; i < job.slots.count; ++i) {
        const uint32_t slot = job.slots.at(i);
        const size_t span = slot / kernels::kSpanSlots;
        const uint64_t word =
            span < masks.size() ? masks[span].visible[slot % kernels::kSpanSlots / 64] : 0;
        if (((word >> (slot % 64)) & 1U) != 0) continue;
        return Status::error(StatusCode::corrupt,
                             fmt::format("layer {}: query {} would attend slot {}, which it may "
                                         "not see (host.check_rows)",
                                         job.group->layer, job.query, slot));
    }
    return Status::ok();
}

}  // namespace shoal
