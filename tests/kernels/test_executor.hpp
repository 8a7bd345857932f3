// The smallest Executor: threads that take the next index until none is left.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "shoal/types.hpp"

namespace shoal::kernels::test {

class TestExecutor {
public:
    explicit TestExecutor(uint32_t thread_count) : thread_count_(thread_count) {}
    Executor get() { return {this, &run, &thread_count}; }

private:
    static uint32_t thread_count(const void* self) {
        return static_cast<const TestExecutor*>(self)->thread_count_;
    }
    static void run(void* self, uint32_t count, Executor::Body body, void* context) {
        std::atomic<uint32_t> next{0};
        const auto work = [&](uint32_t worker) {
            for (uint32_t index = next++; index < count; index = next++) {
                body(context, index, worker);
            }
        };
        std::vector<std::thread> threads;
        for (uint32_t w = 1; w < static_cast<TestExecutor*>(self)->thread_count_; ++w) {
            threads.emplace_back(work, w);
        }
        work(0);
        for (std::thread& thread : threads) thread.join();
    }

    uint32_t thread_count_ = 1;
};

}  // namespace shoal::kernels::test
