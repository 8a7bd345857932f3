// topk: every backend against ref, sizes chosen to hurt.
#include <algorithm>
#include <numeric>
#include <set>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Scores { normal, all_equal, few_values, mostly_hidden, all_hidden, zeros, ascending,
                    clustered };
// Which slots come as candidates, as the label scan would hand them over.
enum class Guess { none, good, too_high, exactly_k, everything };

struct TopkCase {
    uint32_t slots = 1;
    uint32_t k = 1;
    Scores scores = Scores::normal;
    const char* note = "";
};

const TopkCase kCases[] = {
    {.slots = 1, .k = 1},
    {.slots = 1, .k = 5, .note = "fewer than k"},
    {.slots = 3, .k = 2},
    {.slots = 127, .k = 128, .note = "fewer than k"},
    {.slots = 128, .k = 128, .note = "exactly k"},
    {.slots = 129, .k = 128},
    {.slots = 4097, .k = 1024, .scores = Scores::all_equal, .note = "ties: lowest slot wins"},
    {.slots = 5000, .k = 700, .scores = Scores::few_values, .note = "ties at the threshold"},
    {.slots = 4096, .k = 64, .scores = Scores::mostly_hidden},
    {.slots = 4096, .k = 1024, .scores = Scores::mostly_hidden, .note = "hidden: fewer than k"},
    {.slots = 1000, .k = 10, .scores = Scores::all_hidden, .note = "nothing to choose"},
    {.slots = 1000, .k = 10, .scores = Scores::zeros, .note = "-0 ties with +0"},
    {.slots = 70001, .k = 1024, .scores = Scores::ascending, .note = "best at the end"},
    {.slots = 65536, .k = 512, .scores = Scores::clustered, .note = "best side by side"},
    {.slots = 65543, .k = 1024},
    {.slots = 40000, .k = 1},
};

std::vector<float> make_scores(const TopkCase& c, uint32_t seed) {
    std::vector<float> scores = random_normal(c.slots, seed, 3.0F);
    for (uint32_t i = 0; i < c.slots; ++i) {
        const bool in_cluster = i > c.slots / 3 && i < c.slots / 3 + 4000;
        switch (c.scores) {
            case Scores::normal: break;
            case Scores::all_equal: scores[i] = -2.5F; break;
            case Scores::few_values: scores[i] = std::nearbyint(scores[i]); break;
            case Scores::mostly_hidden: scores[i] = i % 16 == 3 ? scores[i] : -kInfinity; break;
            case Scores::all_hidden: scores[i] = -kInfinity; break;
            case Scores::zeros: scores[i] = i % 7 == 0 ? 0.0F : i % 7 == 3 ? -0.0F : -1.0F; break;
            case Scores::ascending: scores[i] = static_cast<float>(i) - 30000.0F; break;
            case Scores::clustered: scores[i] += in_cluster ? 50.0F : 0.0F; break;
        }
    }
    return scores;
}

float candidate_threshold(std::vector<float> scores, uint32_t k, Guess guess) {
    if (guess == Guess::none || guess == Guess::too_high) return kInfinity;
    if (guess == Guess::everything) return -std::numeric_limits<float>::max();
    std::sort(scores.begin(), scores.end(), std::greater<>());
    const size_t rank = guess == Guess::exactly_k ? k : k + k / 3;
    return scores[std::min(rank, scores.size()) - 1];
}

struct Choice {
    explicit Choice(uint32_t k) : slots(k) { out.slots = slots.data(); }
    std::vector<uint32_t> chosen() { return {slots.data(), slots.data() + out.count}; }
    Guarded<uint32_t> slots;
    TopkOutput out;
};

class TopkTest : public ::testing::TestWithParam<BackendCase> {
protected:
    void check(const TopkCase& c, const std::vector<float>& scores, Guess guess) {
        // Candidates in three parts, the second empty, as if three threads had scanned.
        std::vector<uint32_t> candidates;
        const float threshold = candidate_threshold(scores, c.k, guess);
        for (uint32_t slot = 0; slot < c.slots; ++slot) {
            if (scores[slot] > -kInfinity && scores[slot] >= threshold) candidates.push_back(slot);
        }
        const uint32_t half = static_cast<uint32_t>(candidates.size() / 2);
        const CandidatePart parts[3] = {
            {candidates.data(), half},
            {candidates.data() + half, 0},
            {candidates.data() + half, static_cast<uint32_t>(candidates.size()) - half}};
        TopkInput in{scores.data(), c.slots, c.k, parts, guess == Guess::none ? 0U : 3U};
        Choice run(c.k);
        Choice expected(c.k);
        Guarded<std::byte> workspace(topk_workspace_bytes(c.slots));
        GetParam().backend->topk(in, run.out, workspace.data());
        ref_backend().topk(in, expected.out, nullptr);
        EXPECT_EQ(run.chosen(), expected.chosen());
        EXPECT_EQ(run.out.threshold, expected.out.threshold);
        EXPECT_EQ(run.out.guess_held, expected.out.guess_held);
        EXPECT_TRUE(run.slots.intact() && workspace.intact());
    }
    TargetScope scope_{GetParam()};
};

TEST_P(TopkTest, AgreesWithRefWhateverTheGuess) {
    for (const TopkCase& c : kCases) {
        const std::vector<float> scores = make_scores(c, c.slots + c.k);
        for (const Guess guess : {Guess::none, Guess::good, Guess::too_high, Guess::exactly_k,
                                  Guess::everything}) {
            SCOPED_TRACE(std::to_string(c.slots) + " slots, k " + std::to_string(c.k) + ", guess " +
                         std::to_string(static_cast<int>(guess)) + " " + c.note);
            check(c, scores, guess);
        }
    }
}

TEST_P(TopkTest, ChoosesExtremeScores) {
    std::vector<float> scores = random_normal(300, 1);
    scores[7] = std::numeric_limits<float>::infinity();
    scores[9] = std::numeric_limits<float>::max();
    scores[11] = -std::numeric_limits<float>::max();
    scores[13] = std::numeric_limits<float>::denorm_min();
    for (const uint32_t k : {1U, 2U, 150U, 299U, 300U}) {
        check({.slots = 300, .k = k}, scores, Guess::none);
        check({.slots = 300, .k = k}, scores, Guess::everything);
    }
}

// Property: nothing left out beats anything chosen, over random shapes.
TEST_P(TopkTest, NothingLeftOutIsBetter) {
    std::minstd_rand random(11);
    for (int round = 0; round < 60; ++round) {
        const uint32_t slots = 1 + static_cast<uint32_t>(random() % 3000);
        const uint32_t k = 1 + static_cast<uint32_t>(random() % 500);
        const std::vector<float> scores =
            make_scores({.slots = slots, .k = k, .scores = static_cast<Scores>(random() % 8)}, k);
        Choice run(k);
        Guarded<std::byte> workspace(topk_workspace_bytes(slots));
        GetParam().backend->topk({scores.data(), slots, k, nullptr, 0}, run.out, workspace.data());
        const std::vector<uint32_t> chosen = run.chosen();
        EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
        const std::set<uint32_t> chosen_set(chosen.begin(), chosen.end());
        ASSERT_EQ(chosen_set.size(), chosen.size());
        for (uint32_t slot = 0; slot < slots; ++slot) {
            if (chosen_set.contains(slot) || !std::isfinite(scores[slot])) continue;
            ASSERT_EQ(chosen.size(), k);
            ASSERT_LE(scores[slot], run.out.threshold);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, TopkTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& tested) { return case_name(tested.param); });

}  // namespace
}  // namespace shoal::kernels::test
