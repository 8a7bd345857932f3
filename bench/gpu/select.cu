// The best k of n scores: CUB's sort and its select, and our own kernel with a histogram of the
// scores or last step's threshold as the floor.
#include "bench/gpu/select.cuh"

#include "bench/gpu/cub_select.cuh"
#include "bench/gpu/parts.hpp"
#include "bench/gpu/reference.hpp"
#include "bench/gpu/select_buffers.cuh"

namespace shoal::gpu {
namespace {

struct Case {
    uint32_t n;
    uint32_t k;
    uint32_t batch;
    uint32_t distinct;
    Params params() const {
        return {{"n", std::to_string(n)},
                {"k", std::to_string(k)},
                {"batch", std::to_string(batch)}};
    }
};

bool same_as(const std::vector<Selection>& expected, const SelectBuffers& buffers,
             const Case& c) {
    const std::vector<int32_t> slots = buffers.slots.download(0, size_t{c.k} * c.batch);
    const std::vector<SelectResult> results = buffers.result.download(0, c.batch);
    for (uint32_t r = 0; r < c.batch; ++r) {
        const Selection& want = expected[r];
        if (!std::equal(want.slots.begin(), want.slots.end(), slots.begin() + size_t{r} * c.k) ||
            results[r].count != want.count || results[r].threshold != want.threshold) {
            return false;
        }
    }
    return true;
}

// `share` of the exact threshold of each request, as the guess.
void set_guess(SelectBuffers& buffers, const std::vector<Selection>& expected, float share) {
    std::vector<float> guess;
    for (const Selection& one : expected) guess.push_back(share * one.threshold);
    buffers.guess.upload(guess);
}

void time_own(Context& context, SelectBuffers& buffers, const Case& c,
              const std::vector<Selection>& expected, cudaStream_t stream) {
    struct Way {
        const char* name;
        bool histogram;
        bool counted;  // the histogram is made here, not taken from a scan
        float share;
    };
    // 0.85: what is meant by last step's threshold being a little off.
    const Way ways[] = {{"own, histogram made here", true, true, 1},
                        {"own, histogram of the scan", true, false, 1},
                        {"own, guess 0.85 of the threshold", false, false, 0.85F},
                        {"own, guess 2 x the threshold (fails)", false, false, 2.0F}};
    // A kernel leaves its histogram zero, so every call of a graph has one of its own; all of them
    // are filled again between two runs of the graph, untimed.
    const size_t bins = size_t{c.batch} * kHistogramBins;
    const DeviceArray<uint32_t> kept(kSelectCalls * bins), filled(kSelectCalls * bins);
    buffers.histogram.fill_bytes(0);
    buffers.enqueue_count(c.n, c.batch, stream);
    for (uint32_t i = 0; i < kSelectCalls; ++i) {
        SHOAL_CUDA(cudaMemcpyAsync(kept.data() + i * bins, buffers.histogram.data(), bins * 4,
                                   cudaMemcpyDeviceToDevice, stream));
    }
    const auto refill = [&](cudaStream_t s) {
        SHOAL_CUDA(cudaMemcpyAsync(filled.data(), kept.data(), kept.bytes(),
                                   cudaMemcpyDeviceToDevice, s));
    };
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    for (const Way& way : ways) {
        set_guess(buffers, expected, way.share);
        buffers.histogram.fill_bytes(0);
        const auto enqueue = [&](cudaStream_t s, uint32_t i) {
            if (way.counted) buffers.enqueue_count(c.n, c.batch, s);
            SelectArgs args = buffers.args(c.n, c.k, way.histogram);
            if (way.histogram && !way.counted) args.histogram = filled.data() + i * bins;
            SelectBuffers::enqueue_select(args, c.batch, s);
        };
        buffers.slots.fill_bytes(0x55);
        refill(stream);
        enqueue(stream, 0);
        SHOAL_CUDA(cudaStreamSynchronize(stream));
        const bool same = same_as(expected, buffers, c);
        enqueue(stream, 1);
        SHOAL_CUDA(cudaStreamSynchronize(stream));
        context.report.check(std::string(way.name) + ", n " + std::to_string(c.n) + ", k " +
                                 std::to_string(c.k) + ", batch " + std::to_string(c.batch) +
                                 (c.distinct != 0 ? ", ties" : ""),
                             same && same_as(expected, buffers, c), "slots, threshold, twice");
        if (c.distinct != 0) continue;
        // The way that fails takes a millisecond.
        const uint32_t inner = context.calls(way.share > 1 ? 2 : kSelectCalls);
        Row row = make_row("select", c.params(),
                           time_captured(context, stream, inner, enqueue, refill), "us");
        row.params.emplace_back("way", way.name);
        context.add(std::move(row));
    }
}

void time_cub(Context& context, const SelectBuffers& buffers, const Case& c,
              const Selection& expected, cudaStream_t stream) {
    CubSelect cub(buffers.scores.data(), c.n, c.k, expected.threshold);
    const auto check = [&](const char* name, uint32_t count) {
        const std::vector<uint32_t> got = cub.out.download(0, count);
        const bool same = count >= expected.count &&
                          std::equal(expected.slots.begin(),
                                     expected.slots.begin() + expected.count, got.begin());
        context.report.check(name, same, "n " + std::to_string(c.n) + ", k " + std::to_string(c.k));
    };
    cub.enqueue_sort(stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    check("CUB sort", c.k);
    Row row = make_row("select", c.params(),
                       time_captured(context, stream, context.calls(4),
                                     [&](cudaStream_t s, uint32_t) { cub.enqueue_sort(s); }),
                       "us");
    row.params.emplace_back("way", "CUB sort of all");
    context.add(row);
    cub.enqueue_select_if(stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    // Without ties at the threshold it is the selection.
    check("CUB select", cub.count.download()[0]);
    row = make_row("select", c.params(),
                   time_captured(context, stream, context.calls(20),
                                 [&](cudaStream_t s, uint32_t) { cub.enqueue_select_if(s); }),
                   "us");
    row.params.emplace_back("way", "CUB select, threshold known");
    context.add(row);
}

}  // namespace

void run_select(Context& context) {
    const Stream stream;
    const uint32_t batch_max = context.plan.batches.back();
    SelectBuffers buffers(context.plan.tokens.back(), context.plan.select_rows.back(), batch_max);
    for (auto n = context.plan.tokens.rbegin(); n != context.plan.tokens.rend(); ++n) {
        for (const uint32_t k : context.plan.select_rows) {
            for (const uint32_t distinct : {0U, 5U}) {  // 5 values: nearly all are ties
                for (const uint32_t batch : context.plan.batches) {
                    const Case c = {*n, k, batch, distinct};
                    std::vector<float> scores;
                    std::vector<Selection> expected;
                    for (uint32_t r = 0; r < batch; ++r) {
                        const std::vector<float> one = make_scores(*n, distinct, 31 + r);
                        expected.push_back(select_reference(one.data(), *n, k));
                        scores.insert(scores.end(), one.begin(), one.end());
                    }
                    buffers.scores.upload(scores);
                    if (batch == 1 && distinct == 0) {
                        time_cub(context, buffers, c, expected[0], stream);
                    }
                    time_own(context, buffers, c, expected, stream);
                }
            }
        }
    }
}

}  // namespace shoal::gpu
