// What a step does besides when rows lie on disk: wanting and waiting. step_ahead.cpp reads ahead.
#include "runtime/clock.hpp"
#include "runtime/step.hpp"

namespace shoal {

// Starts to put rows of parts [begin, end) into RAM; `end` becomes smaller when not all fit.
void Step::start_parts(const Store& store, std::span<const Job> jobs, uint32_t begin,
                       uint32_t& end) {
    if (s_.cache == nullptr) return;
    offload::BlockCache& cache = *s_.cache;
    cache.begin_wave();
    part_wants_.clear();
    for (uint32_t index = begin; index < end; ++index) {
        const uint32_t wanted = cache.wanted_count();
        const Part part = part_of(jobs, index);
        store.group(part.job->group->index).rows.want(part.job->slots, part.begin, part.end);
        if (index != begin && cache.wave_block_count() > cache.wave_blocks_max()) {
            cache.want_only(wanted);
            end = index;
            break;
        }
        part_wants_.push_back(cache.wanted_count());
    }
    const uint64_t started = begin_fetch();
    cache.start_acquire();
    if (begin == 0) look_ahead(attended_store_);
    end_fetch(started);
}

// Waits for the rows of the first `count` of the parts that were started last.
Status Step::finish_parts(uint32_t count) {
    if (s_.cache == nullptr) return Status::ok();
    const uint64_t started = begin_fetch();
    const Status fetched = s_.cache->finish_acquire(part_wants_[count - 1]);
    end_fetch(started);
    return fetched;
}

// How many parts are waited for together, so that the others' reads go on beneath their attention.
uint32_t Step::parts_at_once(uint32_t parts) const {
    constexpr uint32_t kPieces = 4;
    if (s_.cache == nullptr) return parts;
    return std::max(2 * s_.limits.thread_count, (parts + kPieces - 1) / kPieces);
}

uint64_t Step::begin_fetch() {
    const uint64_t started = now_ns();
    end_stage(started);
    return started;
}

void Step::end_fetch(uint64_t started) {
    stage_began_ns_ = now_ns();
    s_.stats.fetch_ns += stage_began_ns_ - started;
    s_.trace.add(TraceStage::fetch, layer_, started, stage_began_ns_);
}

// The blocks that the wave wants: what the step waits for here was not hidden.
Status Step::fetch_wanted() {
    const uint64_t started = begin_fetch();
    const Status fetched = s_.cache->acquire();
    end_fetch(started);
    return fetched;
}

// One pass, or with a disk as many as it takes: each over the rows that half of the RAM holds,
// while those of the next are on their way into the other half.
Status Step::attend_passes(const offload::BlockStore& rows,
                           std::span<const kernels::SpanMask> seen, kernels::PrefillInput& in,
                           kernels::PrefillOutput& out) {
    constexpr uint32_t kSpan = kernels::kSpanSlots;
    const auto span_count = static_cast<uint32_t>(seen.size());
    uint32_t begin = 0;
    uint32_t span = span_count;
    do {
        if (rows.spills()) {
            span = want_pass(rows, seen, begin);
            SHOAL_TRY(fetch_wanted());
            rows.prefetch({span * kSpan, (2 * span - begin) * kSpan});
        }
        in.pass = {begin * kSpan, span == span_count ? UINT32_MAX : span * kSpan};
        const bool in_one = begin == 0 && span == span_count;
        out.state = in_one ? nullptr : s_.workspace.prefill_state.data();
        s_.backend->prefill(in, out, s_.workspace.prefill.data(), s_.executor);
        begin = span;
    } while (begin < span_count);
    return Status::ok();
}

// Names the rows of a pass that begins at span `begin`; returns the span where it ends.
uint32_t Step::want_pass(const offload::BlockStore& rows, std::span<const kernels::SpanMask> seen,
                         uint32_t begin) {
    offload::BlockCache& cache = *s_.cache;
    cache.begin_wave();
    uint32_t span = begin;
    for (; span < seen.size(); ++span) {
        if (seen[span].none_visible()) continue;
        const uint32_t wanted = cache.wanted_count();
        rows.want(SlotRange{span * kernels::kSpanSlots, (span + 1) * kernels::kSpanSlots});
        if (span == begin || cache.wave_block_count() <= cache.wave_blocks_max() / 2) continue;
        cache.want_only(wanted);
        break;
    }
    return span;
}

}  // namespace shoal
