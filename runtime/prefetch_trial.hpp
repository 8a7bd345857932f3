// Whether guessing what to read ahead pays: how long steps take with and without it, in turns.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace shoal {

class PrefetchTrial {
public:
    // A trial: runs of steps with and without guesses, in turns. Of each run the first step, which
    // still has what the run before read, does not count.
    static constexpr uint32_t kRunSteps = 4;
    static constexpr uint32_t kRuns = 16;
    static constexpr uint32_t kTrialSteps = kRunSteps * kRuns;
    // Its outcome holds for so many steps; then it is tried again.
    static constexpr uint32_t kHeldSteps = 2048;

    // Whether the coming step guesses.
    bool guesses() const {
        return step_ < kTrialSteps ? step_ / kRunSteps % 2 == 0 : pays_;
    }
    // A step ended that would have guessed, and took so long. True when a trial has just found that
    // guessing does not pay.
    bool end_step(uint64_t step_ns) {
        if (step_ < kTrialSteps && step_ % kRunSteps != 0) {
            Times& times = guesses() ? with_ : without_;
            times.ns[times.count++] = step_ns;
        }
        ++step_;
        if (step_ == kTrialSteps) return decide();
        if (step_ == kTrialSteps + kHeldSteps) restart();
        return false;
    }
    // Of the last trial: nanoseconds of a step, first quartiles. What else the machine does only
    // makes steps longer: the short ones say what they take by themselves.
    uint64_t with_ns() const { return with_.quartile; }
    uint64_t without_ns() const { return without_.quartile; }

    void restart() { *this = PrefetchTrial(); }

private:
    struct Times {
        std::array<uint64_t, size_t{(kRunSteps - 1) * kRuns / 2}> ns = {};
        uint32_t count = 0;
        uint64_t quartile = 0;
        void find_quartile() {
            std::sort(ns.begin(), ns.end());
            quartile = ns[ns.size() / 4];
        }
    };

    bool decide() {
        with_.find_quartile();
        without_.find_quartile();
        pays_ = with_.quartile < without_.quartile;
        return !pays_;
    }

    uint32_t step_ = 0;
    bool pays_ = true;
    Times with_;
    Times without_;
};

}  // namespace shoal
