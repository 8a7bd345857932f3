// Whether guessing rows pays: the trial by itself, and in sessions on a disk whose time the test
// moves, so that what a step takes is the same in every run.
#include <gmock/gmock.h>

#include <algorithm>
#include <optional>

#include "runtime/prefetch_trial.hpp"
#include "tests/runtime/prefetch_support.hpp"

namespace shoal {
namespace {

using testing::PacedDisk;
using testing::paged_disk_config;
using testing::PiecewiseEngine;

constexpr uint32_t kLayers = 6;
constexpr uint32_t kTokens = 2000;
constexpr uint64_t kReadNs = 100'000;      // a block; a layer needs some ten
constexpr uint64_t kComputeNs = 1'000'000; // a layer, outside of the session

// A whole trial; returns whether it ended with "does not pay".
bool run_trial(PrefetchTrial& trial, uint64_t with_ns, uint64_t without_ns) {
    bool off = false;
    for (uint32_t i = 0; i < PrefetchTrial::kTrialSteps; ++i) {
        const bool first = i % PrefetchTrial::kRunSteps == 0;
        const uint64_t noise = first ? 1'000'000'000 : i % 3;
        off = trial.end_step((trial.guesses() ? with_ns : without_ns) + noise);
    }
    return off;
}

TEST(PrefetchTrial, KeepsWhatPaysAndDropsWhatDoesNot) {
    PrefetchTrial trial;
    EXPECT_TRUE(trial.guesses());
    EXPECT_FALSE(run_trial(trial, 1000, 2000));
    EXPECT_NEAR(static_cast<double>(trial.with_ns()), 1000, 3);
    EXPECT_NEAR(static_cast<double>(trial.without_ns()), 2000, 3);
    for (uint32_t i = 0; i < PrefetchTrial::kHeldSteps; ++i) {
        ASSERT_TRUE(trial.guesses());
        ASSERT_FALSE(trial.end_step(5000));
    }
    EXPECT_TRUE(run_trial(trial, 2000, 2000 - 10)) << "tried again, and lost";
    for (uint32_t i = 0; i < PrefetchTrial::kHeldSteps; ++i) {
        ASSERT_FALSE(trial.guesses());
        ASSERT_FALSE(trial.end_step(1));
    }
    EXPECT_TRUE(trial.guesses()) << "and once more";
}

// Steps that something else on the machine makes longer, more of one kind than of the other.
TEST(PrefetchTrial, IsNotMisledByALoadedMachine) {
    PrefetchTrial trial;
    for (uint32_t i = 0; i < PrefetchTrial::kTrialSteps; ++i) {
        const bool is_disturbed = i % 3 != 0 && trial.guesses();
        const uint64_t step_ns = trial.guesses() ? 1000 : 1100;
        EXPECT_FALSE(trial.end_step(step_ns + (is_disturbed ? 1'000'000 : 0)));
    }
    EXPECT_EQ(trial.with_ns(), 1000U);
    EXPECT_EQ(trial.without_ns(), 1100U);
    EXPECT_TRUE(trial.guesses());
}

// What an engine says of the queries to come, and what that costs it.
struct Hints {
    float error = 0.0F;
    uint64_t cost_ns = 0;
};

class TimedSession {
public:
    explicit TimedSession(const Config& config) : disk_(kReadNs) {
        const ModelShape shape = testing::small_model(kLayers, 2, 2, 64);
        SessionOptions options;
        options.slots_per_store = kTokens + 2 * PrefetchTrial::kTrialSteps + 100;
        options.queries_per_step_max = 8;
        options.log = [this](LogLevel, const std::string& line) { lines_.push_back(line); };
        auto made = SessionMaker::create(testing::with_least_memory(config, shape, options),
                                         shape, options, disk_.maker());
        if (!made) throw std::runtime_error(made.status().message());
        engine_.emplace(std::move(*made), shape);
        store_ = engine_->open();
        engine_->put(store_, kTokens);
    }

    Session& session() { return engine_->session(); }
    uint64_t switched_off() { return session().stats().prefetch_switched_off; }
    // In one more step.
    bool guesses() {
        const uint64_t before = session().stats().prefetch_guesses;
        step();
        return session().stats().prefetch_guesses != before;
    }
    const std::vector<std::string>& lines() const { return lines_; }

    // Nanoseconds of the disk's clock. `in_the_middle`: done after the first layers.
    uint64_t step(const Hints& hints = {}, const std::function<void()>& in_the_middle = {}) {
        const uint64_t began_ns = disk_.now_ns();
        engine_->begin(store_);
        for (uint32_t l = 0; l < kLayers; ++l) {
            disk_.pass(kComputeNs);
            if (l + 1 < kLayers && session().wants_hint({l + 1})) {
                disk_.pass(hints.cost_ns);
                engine_->hint(l + 1, hints.error);
            }
            engine_->serve(l);
            if (l == kLayers / 2 && in_the_middle) in_the_middle();
        }
        engine_->end();
        return disk_.now_ns() - began_ns;
    }
    void trial(const Hints& hints = {}) {
        for (uint32_t i = 0; i < PrefetchTrial::kTrialSteps; ++i) step(hints);
    }

private:
    PacedDisk disk_;
    std::vector<std::string> lines_;
    std::optional<PiecewiseEngine> engine_;
    StoreId store_;
};

TEST(PrefetchTrialOfASession, SwitchesAUselessGuessOff) {
    SHOAL_SKIP_IN_RERUNS();
    Config config = paged_disk_config(PrefetchKind::query);
    config.prefetch.percent = 400;
    TimedSession timed(config);
    const Hints elsewhere{-100.0F, 0};
    timed.trial(elsewhere);
    EXPECT_EQ(timed.switched_off(), 1U);
    EXPECT_EQ(std::count_if(timed.lines().begin(), timed.lines().end(),
                            [](const std::string& line) {
                                return line.find("guessing rows does not pay: a step takes ") == 0;
                            }),
              1);
    const uint64_t guesses = timed.session().stats().prefetch_guesses;
    for (uint32_t i = 0; i < 8; ++i) timed.step(elsewhere);
    EXPECT_EQ(timed.session().stats().prefetch_guesses, guesses);
    EXPECT_GT(timed.session().stats().prefetch_hints, guesses / 2);
}

// Hints that are right save the waits of five layers; what they cost the engine counts too.
TEST(PrefetchTrialOfASession, CountsWhatAHintCostsTheEngine) {
    SHOAL_SKIP_IN_RERUNS();
    const Config config = paged_disk_config(PrefetchKind::query);
    TimedSession cheap(config);
    uint64_t with_ns = 0;
    uint64_t without_ns = 0;
    for (uint32_t i = 0; i < PrefetchTrial::kTrialSteps; ++i) {
        const bool with = i / PrefetchTrial::kRunSteps % 2 == 0;
        (with ? with_ns : without_ns) += cheap.step();
    }
    EXPECT_EQ(cheap.switched_off(), 0U);
    ASSERT_GT(without_ns, with_ns);
    const uint64_t saved_ns = (without_ns - with_ns) / (PrefetchTrial::kTrialSteps / 2);

    TimedSession good(config);
    good.trial({0.0F, saved_ns / (2 * kLayers)});
    EXPECT_EQ(good.switched_off(), 0U) << "half of what it saves";
    TimedSession dear(config);
    dear.trial({0.0F, 2 * saved_ns / kLayers});
    EXPECT_EQ(dear.switched_off(), 1U) << "twice what it saves";
}

TEST(PrefetchTrialOfASession, IsNotMisledByStatisticsResetInAStep) {
    SHOAL_SKIP_IN_RERUNS();
    TimedSession timed(paged_disk_config(PrefetchKind::query));
    for (uint32_t i = 0; i < PrefetchTrial::kTrialSteps; ++i) {
        const bool with = i / PrefetchTrial::kRunSteps % 2 == 0;
        timed.step({}, [&] {
            if (with) timed.session().reset_stats();
        });
    }
    EXPECT_EQ(timed.switched_off(), 0U);
    EXPECT_TRUE(timed.guesses());
}

// Its outcome is of what was tried: another way to guess, or to select, is tried anew.
TEST(PrefetchTrialOfASession, BeginsAgainWhenThePolicyChanges) {
    SHOAL_SKIP_IN_RERUNS();
    using Change = std::function<void(Config&)>;
    struct ChangeCase {
        const char* name;
        Change change;
        bool begins_again;
    };
    const ChangeCase cases[] = {
        {"nothing", [](Config&) {}, false},
        {"safety", [](Config& config) { config.safety.window = 12; }, false},
        {"stats", [](Config& config) { config.stats.recall_every = 7; }, false},
        {"kind", [](Config& config) { config.prefetch.kind = PrefetchKind::last_query; }, true},
        {"percent", [](Config& config) { config.prefetch.percent = 100; }, true},
        {"selector",
         [](Config& config) { config.selector.combine = CombineKind::max; }, true},
        {"rows", [](Config& config) { config.budget.rows = 48; }, true},
        {"sharing",
         [](Config& config) {
             config.sharing.kind = SharingKind::tidal;
             config.sharing.anchors = {0, 3};
         },
         true},
    };
    for (const ChangeCase& c : cases) {
        SCOPED_TRACE(c.name);
        Config config = paged_disk_config(PrefetchKind::query);
        config.prefetch.percent = 400;
        TimedSession timed(config);
        timed.trial({-100.0F, 0});
        ASSERT_EQ(timed.switched_off(), 1U);
        ASSERT_FALSE(timed.guesses());
        config = timed.session().config();
        c.change(config);
        const Status status = timed.session().reconfigure(config);
        ASSERT_TRUE(status) << status.message();
        EXPECT_EQ(timed.guesses(), c.begins_again);
    }
}

// What a layer asked under a policy of long ago is no guess.
TEST(PrefetchTrialOfASession, ForgetsOldQueriesWhenThePolicyChanges) {
    SHOAL_SKIP_IN_RERUNS();
    Config config = paged_disk_config(PrefetchKind::last_query);
    TimedSession timed(config);
    for (uint32_t i = 0; i < 2; ++i) timed.step();
    config = timed.session().config();
    for (const PrefetchKind kind : {PrefetchKind::known, PrefetchKind::last_query}) {
        config.prefetch.kind = kind;
        ASSERT_TRUE(timed.session().reconfigure(config));
        timed.session().reset_stats();
        timed.step();
    }
    EXPECT_EQ(timed.session().stats().prefetch_guesses, 1U)
        << "of the first layer of the next step, whose query this step asked";
}

}  // namespace
}  // namespace shoal
