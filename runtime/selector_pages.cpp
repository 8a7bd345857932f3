#include "runtime/selector_pages.hpp"

#include <algorithm>
#include <bit>

#include "runtime/clock.hpp"

namespace shoal {

using kernels::kSpanSlots;

namespace {

size_t page_count_max(const SelectorLimits& limits) {
    return size_t{span_count_of(limits.slot_count_max)} * (kSpanSlots / limits.page_slots);
}
// Of one number per page; a multiple of 64, so that the pieces of the workspace stay aligned.
size_t list_bytes(const SelectorLimits& limits) {
    return (page_count_max(limits) * sizeof(uint32_t) + 63) / 64 * 64;
}

}  // namespace

uint64_t selectable_bits(const SelectInput& in, uint32_t page) {
    const uint32_t page_slots = in.pages->page_slots();
    return kernels::page_bits(in.masks[page * page_slots / kSpanSlots].selectable, page,
                              page_slots);
}

PageRanking::PageRanking(CombineKind combine, const kernels::Backend& backend,
                         const Executor& executor, const SelectorLimits& limits,
                         std::byte* workspace)
    : combine_(combine == CombineKind::sum ? kernels::Combine::sum : kernels::Combine::max),
      backend_(backend),
      normaliser_(executor, limits, workspace + 2 * list_bytes(limits)),
      scores_(reinterpret_cast<float*>(workspace)),
      pages_(reinterpret_cast<uint32_t*>(workspace + list_bytes(limits))),
      topk_workspace_(workspace + 2 * list_bytes(limits) +
                      HeadNormaliser::workspace_bytes(limits)) {}

uint64_t PageRanking::workspace_bytes(const SelectorLimits& limits) {
    return 2 * list_bytes(limits) + HeadNormaliser::workspace_bytes(limits) +
           kernels::topk_workspace_bytes(static_cast<uint32_t>(page_count_max(limits)));
}

void PageRanking::scan(const SelectInput& in, const SpanPart& part) const {
    const uint32_t pages_per_span = kSpanSlots / in.pages->page_slots();
    kernels::PageScanInput scan;
    in.pages->describe(in.group->piece, scan);
    scan.q_per_kv = in.group->q_per_kv;
    scan.q = in.q;
    scan.q_head_stride = in.q_head_stride;
    scan.scale = in.group->scale;
    scan.lse_guess = in.history->bound_lse.data();
    scan.masks = in.masks.data();
    scan.page_begin = part.spans.begin * pages_per_span;
    scan.page_end = part.spans.end * pages_per_span;
    scan.combine = combine_;
    kernels::PageScanOutput out;
    out.scores = scores_;
    out.head_sums = part.head_sums;
    backend_.page_scan(scan, out);
}

// Pages are few (8,192 at 131,072 slots): no candidates are kept of the scan, every score is read.
uint32_t PageRanking::sort_best(uint32_t page_count, uint32_t k) {
    kernels::TopkInput topk;
    topk.scores = scores_;
    topk.slot_count = page_count;
    topk.k = k;
    kernels::TopkOutput best;
    best.slots = pages_;
    backend_.topk(topk, best, topk_workspace_);
    std::sort(pages_, pages_ + best.count, [this](uint32_t a, uint32_t b) {
        return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b;
    });
    return best.count;
}

std::span<uint32_t> PageRanking::best(const SelectInput& in, uint32_t slots, SelectOutput& out) {
    Stats& stats = *out.stats;
    const uint64_t started = now_ns();
    SelectHistory& history = *in.history;
    history.prepare(in.group->q_head_count());
    const uint32_t span_end =
        std::min(static_cast<uint32_t>(in.masks.size()), in.pages->span_count());
    const uint32_t passes = normaliser_.run(span_end, history.bound_lse, history.spans,
                                            [&](const SpanPart& part) { scan(in, part); });
    const uint64_t scored = now_ns();

    const uint32_t page_slots = in.pages->page_slots();
    const uint32_t page_count = span_end * (kSpanSlots / page_slots);
    // A few more than whole pages would do: the safety set cuts some, a view may cut any.
    uint32_t wanted = slots / page_slots + 8;
    uint32_t used = 0;
    for (uint32_t held = 0; held < slots;) {
        wanted = std::min(wanted, page_count);
        const uint32_t count = sort_best(page_count, wanted);
        held = 0;
        for (used = 0; used < count && held < slots; ++used) {
            held += static_cast<uint32_t>(std::popcount(selectable_bits(in, pages_[used])));
        }
        if (count < wanted || wanted == page_count) break;
        wanted *= 2;
    }
    stats.rescans += passes - 1;
    const uint64_t selected = now_ns();
    stats.score_ns += scored - started;
    stats.select_ns += selected - scored;
    if (out.trace != nullptr) {
        out.trace->add(TraceStage::score, in.group->layer, started, scored);
        out.trace->add(TraceStage::select, in.group->layer, scored, selected);
    }
    stats.label_bytes_read += PageIndex::bytes(in.group->piece, page_slots, span_end * kSpanSlots);
    return {pages_, used};
}

void add_select_time(const SelectInput& in, uint64_t started, SelectOutput& out) {
    const uint64_t ended = now_ns();
    out.stats->select_ns += ended - started;
    if (out.trace != nullptr) {
        out.trace->add(TraceStage::select, in.group->layer, started, ended);
    }
}

uint32_t PageSelector::select(const SelectInput& in, SelectOutput& out) {
    const std::span<uint32_t> pages = ranking_.best(in, in.rows, out);
    const uint64_t started = now_ns();
    const uint32_t worst = pages.empty() ? 0 : pages.back();
    uint32_t room = in.rows;  // of the worst page: what the better ones leave
    for (size_t i = 0; i + 1 < pages.size(); ++i) {
        room -= static_cast<uint32_t>(std::popcount(selectable_bits(in, pages[i])));
    }
    std::sort(pages.begin(), pages.end());
    uint32_t count = 0;
    for (const uint32_t page : pages) {
        uint64_t bits = selectable_bits(in, page);
        const uint32_t first = page * in.pages->page_slots();
        uint32_t left = page == worst ? room : in.rows;
        for (; bits != 0 && left > 0; bits &= bits - 1, --left) {
            out.slots[count++] = first + static_cast<uint32_t>(std::countr_zero(bits));
        }
    }
    in.history->threshold = count == in.rows ? ranking_.score(worst) : -1.0F / 0.0F;
    ranking_.note_spans({out.slots, count}, *in.history);
    add_select_time(in, started, out);
    return count;
}

}  // namespace shoal
