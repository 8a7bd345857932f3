// The label scan of bench/gpu against kernels/ref.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "bench/gpu/label_scan.cuh"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/reference.hpp"
#include "tests/gpu_facts/support.hpp"

namespace shoal::gpu {
namespace {

using test::kSeeds;
using test::launch;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct ScanCase {
    uint32_t spans;
    uint32_t batch;
    uint32_t blocks;
};

// Everything that a scan reads and writes, on the CPU.
struct ScanData {
    explicit ScanData(const ScanCase& c)
        : scan_case(c), model(make_label_model(c.batch, kLabelScaleMax, 3)) {
        words.resize(size_t{c.batch} * c.spans * kKvHeads * model.span_bytes / 4);
        for (size_t i = 0; i < words.size(); ++i) {
            words[i] = label_word(11, i, model.span_bytes / 4, model.parameter_count);
        }
        for (uint32_t r = 0; r < c.batch; ++r) {
            const std::vector<ScanMask> one = make_scan_masks(c.spans);
            masks.insert(masks.end(), one.begin(), one.end());
        }
        masks.back().visible[1] &= 0xffffffffU;  // some slots not written
        masks.back().selectable[1] &= 0xffffffffU;
        scores.assign(size_t{c.batch} * c.spans * kSpanTokens, -7.0F);
        expected.resize(scores.size());
        sums.assign(size_t{c.batch} * c.blocks * kQueryHeads, -7.0F);
        histogram.assign(size_t{c.batch} * kHistogramBins, 0);
    }
    const std::byte* span(uint32_t request, uint32_t s) const {
        return reinterpret_cast<const std::byte*>(words.data()) +
               (size_t{request} * scan_case.spans + s) * kKvHeads * model.span_bytes;
    }
    ScanArgs args() {
        ScanArgs args;
        args.heads = model.scan_heads.data();
        args.queries = model.scan_queries.data();
        args.spans = span(0, 0);
        args.masks = masks.data();
        args.span_count = scan_case.spans;
        args.span_bytes = model.span_bytes;
        args.parameter_count = model.parameter_count;
        args.scores = scores.data();
        args.head_sums = sums.data();
        args.histogram = histogram.data();
        return args;
    }
    void reference(kernels::Combine combine) {
        expected_sums.assign(size_t{scan_case.batch} * kQueryHeads, 0.0);
        for (uint32_t r = 0; r < scan_case.batch; ++r) {
            for (uint32_t s = 0; s < scan_case.spans; ++s) {
                const size_t at = size_t{r} * scan_case.spans + s;
                scan_reference(model, r, span(r, s), masks[at], combine,
                               &expected[at * kSpanTokens], &expected_sums[r * kQueryHeads]);
            }
        }
    }

    ScanCase scan_case;
    LabelModel model;
    std::vector<uint32_t> words;
    std::vector<ScanMask> masks;
    std::vector<float> scores, expected, sums;
    std::vector<uint32_t> histogram;
    std::vector<double> expected_sums;
};

class ScanTest : public ::testing::TestWithParam<ScanCase> {};

TEST_P(ScanTest, SumMatchesTheReference) {
    ScanData data(GetParam());
    const ScanCase c = GetParam();
    data.reference(kernels::Combine::sum);
    std::vector<float> first;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
        std::fill(data.histogram.begin(), data.histogram.end(), 0U);
        launch(c.blocks, c.batch, kScanThreads, seed,
               [&] { label_scan<ScanCombine::sum, true>(data.args()); });
        const ScanError error = compare_scores(data.scores.data(), data.expected.data(),
                                               data.scores.size(), kernels::Combine::sum);
        EXPECT_TRUE(error.acceptable()) << error.text();
        if (seed == 0) first = data.scores;
        EXPECT_EQ(first, data.scores) << "the order of threads must not matter";
        std::vector<uint32_t> bins(data.histogram.size());
        for (size_t i = 0; i < data.scores.size(); ++i) {
            const size_t request = i / (size_t{c.spans} * kSpanTokens);
            const uint32_t key = ordered_key(data.scores[i]);
            if (key > kHiddenKey) ++bins[request * kHistogramBins + histogram_bin(key)];
        }
        EXPECT_EQ(bins, data.histogram);
        for (uint32_t r = 0; r < c.batch; ++r) {
            for (uint32_t h = 0; h < kQueryHeads; ++h) {
                double sum = 0;
                for (uint32_t b = 0; b < c.blocks; ++b) {
                    sum += data.sums[(size_t{r} * c.blocks + b) * kQueryHeads + h];
                }
                const double wanted = data.expected_sums[r * kQueryHeads + h];
                EXPECT_NEAR(std::log2(sum / wanted), 0.0, 0.1);
            }
        }
    }
}

TEST_P(ScanTest, MaxMatchesTheReference) {
    ScanData data(GetParam());
    const ScanCase c = GetParam();
    data.reference(kernels::Combine::max);
    launch(c.blocks, c.batch, kScanThreads, 2,
           [&] { label_scan<ScanCombine::max, false>(data.args()); });
    const ScanError error = compare_scores(data.scores.data(), data.expected.data(),
                                           data.scores.size(), kernels::Combine::max);
    EXPECT_TRUE(error.acceptable()) << error.text();
}

INSTANTIATE_TEST_SUITE_P(Sizes, ScanTest,
                         ::testing::Values(ScanCase{1, 1, 1}, ScanCase{5, 1, 2},
                                           ScanCase{3, 2, 4}, ScanCase{7, 1, 7}));

TEST(ScanFormat, RotationsTakeTheSameCodesAsShifts) {
    const LabelModel model = make_label_model(1, kLabelScaleMax, 3);
    for (uint32_t h = 0; h < kKvHeads; ++h) {
        const ScanHead& head = model.scan_heads[h];
        ASSERT_EQ(head.op_count, model.formats[h].ops.size());
        for (uint32_t j = 0; j < head.op_count; ++j) {
            const kernels::LabelOp& op = model.formats[h].ops[head.op_source[j]];
            for (uint32_t i = 0; i < 100; ++i) {
                const uint32_t dword = mix(i);
                EXPECT_EQ(__funnelshift_r(dword, dword, head.ops[j].rotate) & head.ops[j].mask,
                          ((dword << op.left) >> op.right) & op.mask);
            }
        }
    }
}

TEST(ScanFormat, LanesReadTheLayoutOfLabels) {
    const LabelModel model = make_label_model(1, kLabelScaleMax, 3);
    for (uint32_t slot = 0; slot < kSpanTokens; ++slot) {
        for (uint32_t plane = 0; plane < kScanPlanes; ++plane) {
            EXPECT_EQ(scan_dword(slot / 4, plane) + slot % 4,
                      kernels::label_dword_index(model.formats[0], plane, slot));
        }
    }
}

TEST(ScanError, SeesWrongScores) {
    const std::vector<float> right = {1, 2, 4, 8, 16, -kInfinity};
    std::vector<float> wrong = right;
    EXPECT_TRUE(compare_scores(right.data(), right.data(), 6, kernels::Combine::sum).acceptable());
    wrong[2] = 6;
    EXPECT_FALSE(compare_scores(wrong.data(), right.data(), 6, kernels::Combine::sum).acceptable());
    wrong = right;
    wrong[5] = 1;
    EXPECT_FALSE(compare_scores(wrong.data(), right.data(), 6, kernels::Combine::sum).acceptable());
    wrong = right;
    wrong[0] = std::nanf("");
    EXPECT_FALSE(compare_scores(wrong.data(), right.data(), 6, kernels::Combine::sum).acceptable());
}

}  // namespace
}  // namespace shoal::gpu
