// bench_executor: what a parallel loop costs, by the pause since the last one and the work in it.
// Ideal for two threads: half the work, half of it done by worker 1.
#include "offload/executor.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point begin) {
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

void spin_us(double us) {
    const Clock::time_point begin = Clock::now();
    while (us_since(begin) < us) {
    }
}

void measure(const shoal::Executor& executor, double pause_us, double work_us) {
    constexpr int kLoops = 301;
    constexpr uint32_t kParts = 8;
    std::vector<double> us;
    std::atomic<uint32_t> helped{0};
    for (int i = 0; i < kLoops; ++i) {
        spin_us(pause_us);
        const Clock::time_point begin = Clock::now();
        shoal::offload::run_on(executor, kParts, [&](uint32_t, uint32_t worker) {
            if (worker != 0) helped.fetch_add(1, std::memory_order_relaxed);
            spin_us(work_us / kParts);
        });
        us.push_back(us_since(begin));
    }
    std::sort(us.begin(), us.end());
    std::printf("%8.0f %8.0f %9.1f %9.1f %9.1f %9.2f\n", pause_us, work_us, us.front(),
                us[us.size() / 2], us[us.size() * 9 / 10],
                static_cast<double>(helped.load()) / (kLoops * kParts));
}

}  // namespace

int main() {
    const auto own = shoal::offload::OwnExecutor::create({.threads = 2});
    if (!own) return 1;
    const shoal::Executor executor = (*own)->executor();
    std::printf("two threads, microseconds; helped: share of parts that worker 1 took\n");
    std::printf("   pause     work   minimum    median       p90    helped\n");
    for (const double pause_us : {0.0, 10.0, 50.0, 150.0, 1000.0, 5000.0}) {
        for (const double work_us : {0.0, 20.0, 100.0, 1000.0}) {
            measure(executor, pause_us, work_us);
        }
    }
    return 0;
}
