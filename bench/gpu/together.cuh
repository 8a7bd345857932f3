// Two works at once: what each costs the other, and how much of the time they really ran together.
#pragma once

#include "bench/gpu/cuda.cuh"

namespace shoal::gpu {

// A unit of work, some 0.1 ms long.
struct Work {
    std::string name;
    Enqueue enqueue;
};
struct OnStream {
    const Stream& stream;
    const Work& work;
};

// What is timed lasts at least so long, and the background so long before it: the host has
// submitted everything by then.
inline constexpr double kWindowUs = 1000;
inline constexpr double kLeadUs = 300;

struct Together {
    Summary alone;        // of the window's work
    Summary beside;       // the same while the other runs
    Summary covered;      // percent of the window in which the other was at work
    Summary pace;         // of the other meanwhile, percent of its own alone
    uint32_t units = 0;   // of work in the window
};

// Runs `front` in a window while `back` is at work before, all through and after it. Samples in
// which back came to its end first are thrown away, and back is made longer.
class Beside {
public:
    Beside(const Context& context, const OnStream& front, const OnStream& back)
        : context_(context), front_(front), back_(back) {}

    Together measure() {
        Together result;
        const double unit_us = unit_alone(front_);
        back_us_ = unit_alone(back_);
        if (unit_us <= 0 || back_us_ <= 0) return result;
        result.units = rounds_for(kWindowUs, unit_us);
        const Enqueue window = [&](cudaStream_t stream) {
            for (uint32_t i = 0; i < result.units; ++i) front_.work.enqueue(stream);
        };
        result.alone = time_stream(context_, front_.stream, window);
        lead_ = rounds_for(kLeadUs, back_us_);
        // Room for the window to take twice as long as alone.
        rounds_ = rounds_for(2 * result.alone.median, back_us_);
        std::vector<double> us, covered, pace;
        const double case_begin = now_s();
        while (context_.another(static_cast<uint32_t>(us.size()), case_begin)) {
            const Sample sample = run(window);
            if (sample.overlap.covered < 0.99 && rounds_ < kRoundsMax) {
                rounds_ *= 2;
                continue;
            }
            us.push_back(sample.us);
            covered.push_back(100 * sample.overlap.covered);
            pace.push_back(100 * sample.overlap.pace);
        }
        result.beside = summarise(std::move(us));
        result.covered = summarise(std::move(covered));
        result.pace = summarise(std::move(pace));
        return result;
    }

private:
    static constexpr uint32_t kUnits = 8;
    static constexpr uint32_t kRoundsMax = 4096;
    struct Sample {
        double us;
        Overlap overlap;
    };
    static uint32_t rounds_for(double us, double unit_us) {
        return static_cast<uint32_t>(std::clamp(us / unit_us, 1.0, double{kRoundsMax / 2})) + 1;
    }
    double unit_alone(const OnStream& on) const {
        const Summary us = time_stream(context_, on.stream, [&](cudaStream_t stream) {
            for (uint32_t i = 0; i < kUnits; ++i) on.work.enqueue(stream);
        });
        return us.median / kUnits;
    }
    Sample run(const Enqueue& window) {
        while (ends_.size() <= rounds_) ends_.push_back(std::make_unique<Event>());
        for (uint32_t i = 0; i < lead_; ++i) back_.work.enqueue(back_.stream);
        ends_[0]->record(back_.stream);
        ends_[0]->hold(front_.stream);
        begin_.record(front_.stream);
        window(front_.stream);
        end_.record(front_.stream);
        for (uint32_t i = 1; i <= rounds_; ++i) {
            back_.work.enqueue(back_.stream);
            ends_[i]->record(back_.stream);
        }
        end_.wait();
        ends_[rounds_]->wait();
        std::vector<double> ends;
        for (uint32_t i = 0; i <= rounds_; ++i) ends.push_back(ends_[i]->us_since(*ends_[0]));
        const double begin = begin_.us_since(*ends_[0]);
        const double end = end_.us_since(*ends_[0]);
        return {end - begin, overlap_of(ends, begin, end, back_us_)};
    }

    const Context& context_;
    OnStream front_;
    OnStream back_;
    Event begin_, end_;
    std::vector<std::unique_ptr<Event>> ends_;
    double back_us_ = 0;
    uint32_t lead_ = 0;
    uint32_t rounds_ = 0;
};

inline void report_together(const Context& context, const OnStream& front, const OnStream& back) {
    const Together t = Beside(context, front, back).measure();
    if (t.beside.count == 0) {
        return context.report.note(front.work.name + " beside " + back.work.name +
                                   ": left out, the budget is spent");
    }
    const auto slower = [&](double us) { return 100 * (us / t.alone.median - 1); };
    const Params params = {{"of", front.work.name}, {"beside", back.work.name}};
    Row row = make_row("slowdown", params,
                       {slower(t.beside.median), slower(t.beside.p10), slower(t.beside.p90),
                        t.beside.count},
                       "%");
    row.note = number_text(t.alone.median) + " us alone, " + std::to_string(t.units) + " units";
    context.add(row);
    row = make_row("overlap", params, t.covered, "%");
    row.note = "of that time the neighbour was at work";
    context.add(row);
    row = make_row("neighbour's pace", params, t.pace, "%");
    row.note = "of its own alone";
    context.add(row);
}

}  // namespace shoal::gpu
