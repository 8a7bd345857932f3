// The label scan of one layer, cold, by context length and batch.
#include "bench/gpu/label_scan.cuh"

#include <algorithm>
#include <cmath>

#include "bench/gpu/label_buffers.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

enum class Variant : uint8_t { max, sum, sum_histogram };
constexpr Variant kVariants[] = {Variant::max, Variant::sum, Variant::sum_histogram};

const char* variant_name(Variant variant) {
    switch (variant) {
        case Variant::max: return "max";
        case Variant::sum: return "sum";
        case Variant::sum_histogram: return "sum, histogram";
    }
    return "";
}

void enqueue(Variant variant, const ScanArgs& args, dim3 grid, cudaStream_t stream) {
    switch (variant) {
        case Variant::max:
            launch(stream, {grid, kScanThreads}, label_scan<ScanCombine::max, false>, args);
            break;
        case Variant::sum:
            launch(stream, {grid, kScanThreads}, label_scan<ScanCombine::sum, false>, args);
            break;
        case Variant::sum_histogram:
            launch(stream, {grid, kScanThreads}, label_scan<ScanCombine::sum, true>, args);
            break;
    }
}

// Some spans of every request against kernels/ref: the first, the last, and some between. The
// reference takes a millisecond a span.
void check(Context& context, Variant variant, LabelBuffers& labels, uint32_t batch,
           uint32_t tokens, cudaStream_t stream) {
    const uint32_t spans = tokens / kSpanTokens;
    const auto combine = variant == Variant::max ? kernels::Combine::max : kernels::Combine::sum;
    labels.clear();
    enqueue(variant, labels.args(0, spans), labels.grid(spans, batch), stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    std::vector<float> got, expected;
    std::vector<double> sums(kQueryHeads);
    for (uint32_t r = 0; r < batch; ++r) {
        for (uint32_t i = 0; i < 6; ++i) {
            const uint32_t s = static_cast<uint32_t>(uint64_t{spans - 1} * i / 5);
            const size_t at = size_t{r} * spans + s;
            const std::vector<float> scores = labels.scores.download(at * kSpanTokens, kSpanTokens);
            got.insert(got.end(), scores.begin(), scores.end());
            const std::vector<std::byte> bytes = labels.download_span(0, at);
            expected.resize(got.size());
            scan_reference(labels.model, r, bytes.data(), labels.host_masks[s], combine,
                           &expected[got.size() - kSpanTokens], sums.data());
        }
    }
    const ScanError error = compare_scores(got.data(), expected.data(), got.size(), combine);
    context.report.check(std::string("label scan, ") + variant_name(variant) + ", batch " +
                             std::to_string(batch) + ", " + std::to_string(tokens) + " tokens",
                         error.acceptable(), error.text());
    if (variant != Variant::sum_histogram) return;
    const std::vector<float> all = labels.scores.download(0, size_t{tokens});
    std::vector<uint32_t> bins(kHistogramBins);
    for (const float score : all) {
        const uint32_t key = ordered_key(score);
        if (key > kHiddenKey) ++bins[histogram_bin(key)];
    }
    context.report.check("histogram of the first request's scores",
                         bins == labels.histogram.download(0, kHistogramBins), "2048 bins");
}

// Every span of one request, and the sums of 2^(s - lse) that give a head's log-sum-exp.
void check_sums(Context& context, LabelBuffers& labels, uint32_t tokens, cudaStream_t stream) {
    const uint32_t spans = tokens / kSpanTokens;
    const dim3 grid = labels.grid(spans, 1);
    labels.clear();
    enqueue(Variant::sum, labels.args(0, spans), grid, stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    const std::vector<float> got = labels.scores.download(0, tokens);
    const std::vector<float> parts = labels.sums.download(0, size_t{grid.x} * kQueryHeads);
    std::vector<float> expected(tokens);
    std::vector<double> sums(kQueryHeads);
    for (uint32_t s = 0; s < spans; ++s) {
        const std::vector<std::byte> bytes = labels.download_span(0, s);
        scan_reference(labels.model, 0, bytes.data(), labels.host_masks[s], kernels::Combine::sum,
                       &expected[size_t{s} * kSpanTokens], sums.data());
    }
    double worst = 0;
    for (uint32_t head = 0; head < kQueryHeads; ++head) {
        double sum = 0;
        for (uint32_t b = 0; b < grid.x; ++b) sum += parts[size_t{b} * kQueryHeads + head];
        worst = std::max(worst, std::abs(std::log2(sum / sums[head])));
        if (!(sum > 0)) worst = 1e9;
    }
    const ScanError error =
        compare_scores(got.data(), expected.data(), got.size(), kernels::Combine::sum);
    context.report.check("label scan, every span of " + std::to_string(tokens) + " tokens",
                         error.acceptable(), error.text());
    context.report.check("label scan, head sums", worst < 0.05,
                         "log2 off by " + number_text(worst));
}

}  // namespace

void run_label_scan(Context& context) {
    const Stream stream;
    const Summary read = measure_read(context, stream);
    context.add(make_row("hbm read", {}, read, "GB/s"));
    const uint32_t batch_max = context.plan.batches.back();
    LabelBuffers labels(context, batch_max, context.plan.tokens.back(), 2, stream);
    for (auto tokens = context.plan.tokens.rbegin(); tokens != context.plan.tokens.rend();
         ++tokens) {
        const uint32_t spans = *tokens / kSpanTokens;
        labels.set_masks(spans, batch_max);
        if (*tokens == context.plan.tokens.front()) {
            check_sums(context, labels, *tokens, stream);
        }
        for (const uint32_t batch : context.plan.batches) {
            const double bytes = labels.bytes_of(spans) * batch;
            const uint32_t sets = labels.set_count(spans, batch);
            for (const Variant variant : kVariants) {
                check(context, variant, labels, batch, *tokens, stream);
                const uint32_t inner = whole_rounds(sets, context.calls(8));
                const Summary us =
                    time_captured(context, stream, inner, [&](cudaStream_t s, uint32_t i) {
                        enqueue(variant, labels.args(i % sets, spans, batch),
                                labels.grid(spans, batch), s);
                    });
                const Params params = {{"tokens", std::to_string(*tokens)},
                                       {"batch", std::to_string(batch)},
                                       {"combine", variant_name(variant)}};
                context.add(make_row("label scan time", params, us, "us"));
                context.add(with_percent(
                    make_row("label scan", params, gb_per_s(us, bytes), "GB/s"), read.median,
                    "hbm read"));
            }
        }
    }
}

}  // namespace shoal::gpu
