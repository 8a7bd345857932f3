// Makes the scores of heads that share a selection comparable, whatever scores them.
//
// A head's score is taken relative to its log-sum-exp over what the query sees, first estimated
// from some spans (that of the last step is off by several bits for most heads: queries differ too
// much), then corrected by the pass itself. When the estimate was so wrong that heads moved apart,
// the pass is repeated. Raw scores of different heads are never compared.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "offload/executor.hpp"
#include "runtime/selector.hpp"

namespace shoal {

// Parts of a pass are cut by span index alone, so that sums over them never depend on the threads.
inline constexpr uint32_t kPartSpans = 16;
inline uint32_t span_count_of(uint32_t slots) {
    return (slots + kernels::kSpanSlots - 1) / kernels::kSpanSlots;
}
inline uint32_t part_count_of(uint32_t spans) { return (spans + kPartSpans - 1) / kPartSpans; }

// What a scan is asked for: scores of some spans under the lse that the history holds now.
struct SpanPart {
    SlotRange spans;               // of spans, not slots
    uint32_t index = 0;            // of the part in its pass
    uint32_t pass = 0;             // 0: a look beforehand; 1: the pass; 2 on: repeated
    double* head_sums = nullptr;   // [head_count] out: sum of 2^(score - lse) over visible slots
};

class HeadNormaliser {
public:
    // A multiple of 64; `workspace` is aligned to as much.
    static size_t workspace_bytes(const SelectorLimits& limits);
    HeadNormaliser(const Executor& executor, const SelectorLimits& limits, std::byte* workspace);

    // Calls scan(const SpanPart&), on any thread, for every part of spans [0, span_end) until the
    // heads' `lse` is right for the scores it made. Returns the number of passes.
    // `heavy`: spans that hold much of the mass, ascending.
    template <typename Scan>
    uint32_t run(uint32_t span_end, std::span<float> lse, std::span<const uint32_t> heavy,
                 Scan&& scan);

    // Keeps the spans that most of `chosen` lie in, for the next step's `heavy`.
    void note_spans(std::span<const uint32_t> chosen, std::vector<uint32_t>& heavy);
    static constexpr uint32_t kHeavySpansMax = 12;

private:
    static constexpr uint32_t kPassesMax = 8;

    void pick_samples(uint32_t span_end, std::span<const uint32_t> heavy);
    void correct_by_samples(std::span<float> lse) const;
    // Moves `lse` to this step's; true when the scores must be made again.
    bool drifted(uint32_t part_count, std::span<float> lse) const;

    // A span looked at before the pass, and how many spans it stands for.
    struct Sample {
        uint32_t span = 0;
        double weight = 1;
    };
    Executor executor_;
    std::vector<Sample> samples_;
    std::vector<std::pair<uint32_t, uint32_t>> span_counts_;  // slots chosen, span
    double* head_sums_ = nullptr;                             // [part or sample, head_count]
};

template <typename Scan>
uint32_t HeadNormaliser::run(uint32_t span_end, std::span<float> lse,
                             std::span<const uint32_t> heavy, Scan&& scan) {
    const size_t heads = lse.size();
    pick_samples(span_end, heavy);
    offload::run_on(executor_, static_cast<uint32_t>(samples_.size()), [&](uint32_t i, uint32_t) {
        scan(SpanPart{{samples_[i].span, samples_[i].span + 1}, i, 0, head_sums_ + i * heads});
    });
    correct_by_samples(lse);
    const uint32_t parts = part_count_of(span_end);
    uint32_t pass = 0;
    do {
        ++pass;
        offload::run_on(executor_, parts, [&](uint32_t part, uint32_t) {
            const uint32_t begin = part * kPartSpans;
            scan(SpanPart{{begin, std::min(begin + kPartSpans, span_end)}, part, pass,
                          head_sums_ + part * heads});
        });
    } while (drifted(parts, lse) && pass < kPassesMax);
    return pass;
}

}  // namespace shoal
