// The selection of bench/gpu against kernels/ref.
#include <gtest/gtest.h>

#include <cctype>
#include <limits>
#include <vector>

#include "bench/gpu/reference.hpp"
#include "bench/gpu/select.cuh"
#include "tests/gpu_facts/support.hpp"

namespace shoal::gpu {
namespace {

using test::kSeeds;
using test::launch;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Keys, OrderFloatsAndComeBack) {
    const std::vector<float> values = {-kInfinity, -3.5F, -1e-30F, 0.0F, 1e-40F, 1.0F, 1e30F};
    for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_EQ(key_value(ordered_key(values[i])), values[i]);
        if (i > 0) {
            EXPECT_LT(ordered_key(values[i - 1]), ordered_key(values[i]));
        }
    }
    EXPECT_EQ(ordered_key(-0.0F), ordered_key(0.0F));
    EXPECT_EQ(ordered_key(-kInfinity), kHiddenKey);
    for (const float value : values) {
        const uint32_t key = ordered_key(value);
        if (key <= kHiddenKey) continue;
        EXPECT_GE(key, bin_floor(histogram_bin(key)));
        EXPECT_LT(histogram_bin(key), kHistogramBins);
    }
}

enum class Guess { histogram, exact, low, much_too_low, too_high, none };

struct SelectCase {
    const char* note;
    uint32_t slots;
    uint32_t k;
    uint32_t distinct;  // make_scores
    Guess guess;
    uint32_t batch = 1;
};

class SelectTest : public ::testing::TestWithParam<SelectCase> {};

TEST_P(SelectTest, MatchesTheReference) {
    const SelectCase c = GetParam();
    std::vector<float> scores;
    std::vector<Selection> expected;
    std::vector<float> guess;
    for (uint32_t r = 0; r < c.batch; ++r) {
        const std::vector<float> one = make_scores(c.slots, c.distinct, 17 + r);
        scores.insert(scores.end(), one.begin(), one.end());
        expected.push_back(select_reference(one.data(), c.slots, c.k));
        const float exact = expected.back().threshold;
        switch (c.guess) {
            case Guess::low: guess.push_back(0.8F * exact); break;
            case Guess::much_too_low: guess.push_back(1e-30F); break;
            case Guess::too_high: guess.push_back(4.0F * exact); break;
            case Guess::none: guess.push_back(-kInfinity); break;
            default: guess.push_back(exact); break;
        }
    }
    const uint32_t parts = select_part_count(c.slots);
    for (uint32_t seed = 0; seed < 3; ++seed) {
        std::vector<uint32_t> histogram(size_t{c.batch} * kHistogramBins, 0);
        std::vector<uint32_t> candidates(scores.size(), 0xabababab);
        std::vector<uint32_t> counts(size_t{c.batch} * parts, 0xabababab);
        std::vector<uint32_t> arrived(c.batch, 0);
        std::vector<int32_t> slots(size_t{c.batch} * c.k, -7);
        std::vector<SelectResult> result(c.batch);
        SelectArgs args;
        args.scores = scores.data();
        args.slot_count = c.slots;
        args.k = c.k;
        if (c.guess == Guess::histogram) args.histogram = histogram.data();
        args.guess = guess.data();
        args.candidates = candidates.data();
        args.part_counts = counts.data();
        args.arrived = arrived.data();
        args.slots = slots.data();
        args.result = result.data();
        if (c.guess == Guess::histogram) {
            launch(parts, c.batch, kSelectThreads, seed, [&] {
                count_scores<kSelectThreads>(scores.data(), c.slots, histogram.data());
            });
        }
        launch(parts, c.batch, kSelectThreads, seed, [&] { select_slots<kSelectThreads>(args); });
        for (uint32_t r = 0; r < c.batch; ++r) {
            const std::vector<int32_t> own(slots.begin() + r * c.k, slots.begin() + (r + 1) * c.k);
            EXPECT_EQ(own, expected[r].slots) << "seed " << seed;
            EXPECT_EQ(result[r].count, expected[r].count);
            EXPECT_EQ(result[r].threshold, expected[r].threshold);
            EXPECT_EQ(arrived[r], 0U);
            if (c.guess == Guess::too_high || c.guess == Guess::much_too_low) {
                EXPECT_EQ(result[r].guess_held, 0U);
            }
        }
        EXPECT_EQ(histogram, std::vector<uint32_t>(histogram.size(), 0U)) << "left zero";
    }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, SelectTest,
    ::testing::Values(
        SelectCase{"one part", 2048, 64, 0, Guess::histogram},
        SelectCase{"several parts", 12288, 300, 0, Guess::histogram},
        SelectCase{"last part not full", 8196, 100, 0, Guess::histogram, 2},
        SelectCase{"exact guess", 12288, 300, 0, Guess::exact},
        SelectCase{"low guess", 12288, 300, 0, Guess::low, 2},
        SelectCase{"too many candidates", 12288, 300, 0, Guess::much_too_low},
        SelectCase{"too few candidates", 12288, 300, 0, Guess::too_high},
        SelectCase{"no guess", 4096, 128, 0, Guess::none},
        SelectCase{"one value: the lowest slots", 8192, 100, 1, Guess::histogram},
        SelectCase{"one value, guess", 8192, 1024, 1, Guess::exact},
        SelectCase{"few values: ties across parts", 12288, 1000, 5, Guess::histogram},
        SelectCase{"few values, low guess", 12288, 1000, 5, Guess::low},
        SelectCase{"k is 1", 4096, 1, 0, Guess::histogram},
        SelectCase{"fewer visible than k", 256, 256, 0, Guess::histogram},
        SelectCase{"fewer visible than k, guess", 256, 256, 0, Guess::none}),
    [](const auto& test_info) {
        std::string name = test_info.param.note;
        for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
        return name;
    });

}  // namespace
}  // namespace shoal::gpu
