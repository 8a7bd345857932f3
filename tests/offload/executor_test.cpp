#include "offload/executor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "offload/topology.hpp"

namespace shoal::offload {
namespace {

using Clock = std::chrono::steady_clock;

std::unique_ptr<OwnExecutor> make(uint32_t threads, uint32_t warm_us = 200) {
    auto made = OwnExecutor::create({.threads = threads, .warm_us = warm_us});
    EXPECT_TRUE(made);
    return std::move(*made);
}

class ExecutorTest : public ::testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Threads, ExecutorTest, ::testing::Values(1U, 2U, 3U, 8U));

TEST_P(ExecutorTest, EveryIndexOnceOnAKnownWorker) {
    const auto own = make(GetParam());
    const Executor executor = own->executor();
    EXPECT_EQ(thread_count_of(executor), GetParam());
    for (const uint32_t count : {0U, 1U, 2U, 3U, 7U, 64U, 1000U}) {
        std::vector<std::atomic<uint32_t>> hits(count);
        std::atomic<uint32_t> worker_max{0};
        run_on(executor, count, [&](uint32_t index, uint32_t worker) {
            hits[index] += 1;
            uint32_t seen = worker_max;
            while (worker > seen && !worker_max.compare_exchange_weak(seen, worker)) {
            }
        });
        for (uint32_t i = 0; i < count; ++i) ASSERT_EQ(hits[i], 1U) << i << " of " << count;
        EXPECT_LT(worker_max, GetParam());
    }
}

TEST_P(ExecutorTest, OneWorkerIsOneThreadAtATime) {
    const auto own = make(GetParam());
    const Executor executor = own->executor();
    std::vector<uint64_t> plain_sum(GetParam());  // a race here is a TSan report
    uint64_t expected = 0;
    for (uint32_t round = 0; round < 3000; ++round) {
        run_on(executor, 9, [&](uint32_t index, uint32_t worker) { plain_sum[worker] += index; });
        expected += 36;
    }
    uint64_t sum = 0;
    for (const uint64_t part : plain_sum) sum += part;
    EXPECT_EQ(sum, expected);
}

// What a loop writes is seen after run() returns, and what was written before is seen inside.
TEST_P(ExecutorTest, PlainDataPassesThroughLoops) {
    const auto own = make(GetParam());
    const Executor executor = own->executor();
    std::vector<uint32_t> data(64, 0);
    for (uint32_t round = 1; round <= 2000; ++round) {
        data[round % 64] += 1;
        run_on(executor, 64, [&](uint32_t index, uint32_t) { data[(index + round) % 64] += 1; });
    }
    for (uint32_t i = 0; i < 64; ++i) ASSERT_GE(data[i], 2000U + 2000U / 64);
}

TEST_P(ExecutorTest, PausesBetweenLoops) {
    const auto own = make(GetParam(), 50);
    const Executor executor = own->executor();
    std::atomic<uint32_t> done{0};
    for (uint32_t round = 0; round < 60; ++round) {
        std::this_thread::sleep_for(std::chrono::microseconds(20 * (round % 7)));
        run_on(executor, 5, [&](uint32_t, uint32_t) { done += 1; });
    }
    EXPECT_EQ(done, 300U);
}

TEST(Executor, CreateAndDestroyInEveryState) {
    for (uint32_t round = 0; round < 50; ++round) {
        const auto own = make(2, round % 3 == 0 ? 0 : 2000);
        if (round % 5 == 0) continue;  // never used
        std::atomic<uint32_t> done{0};
        run_on(own->executor(), 1 + round % 4, [&](uint32_t, uint32_t) { done += 1; });
        EXPECT_EQ(done, 1 + round % 4);
    }
}

TEST(Executor, TwoExecutorsDoNotDisturbEachOther) {
    const auto a = make(2);
    const auto b = make(2);
    std::atomic<uint32_t> done{0};
    const auto loop = [&](const Executor& executor) {
        for (int i = 0; i < 500; ++i) {
            run_on(executor, 4, [&](uint32_t, uint32_t worker) { done += worker < 2; });
        }
    };
    std::thread other([&] { loop(a->executor()); });
    loop(b->executor());
    other.join();
    EXPECT_EQ(done, 4000U);
}

TEST(Executor, EmptyExecutorRunsInlineInOrder) {
    std::vector<uint32_t> order;
    run_on(Executor{}, 5, [&](uint32_t index, uint32_t worker) {
        EXPECT_EQ(worker, 0U);
        order.push_back(index);
    });
    EXPECT_EQ(order, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(thread_count_of(Executor{}), 1U);
}

TEST(Executor, OneThreadOrOnePartRunsInTheCaller) {
    const auto check = [](const Executor& executor, uint32_t count) {
        run_on(executor, count, [caller = std::this_thread::get_id()](uint32_t, uint32_t worker) {
            EXPECT_EQ(std::this_thread::get_id(), caller);
            EXPECT_EQ(worker, 0U);
        });
    };
    const auto one = make(1);
    check(one->executor(), 5);
    const auto two = make(2);
    check(two->executor(), 1);
}

TEST(Executor, TooManyThreadsAreRefused) {
    const auto refused = OwnExecutor::create({.threads = 1025});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().code(), StatusCode::invalid_argument);
    EXPECT_NE(refused.status().message().find("host.threads = 1025"), std::string::npos);
}

// Runs loops until another worker than the caller has taken part. The caller sleeps in its parts,
// so that a worker gets its turn on a busy machine too.
template <typename BodyFunction>
bool run_until_worker_helps(const Executor& executor, BodyFunction&& body) {
    std::atomic<bool> helped{false};
    const Clock::time_point deadline = Clock::now() + std::chrono::seconds(30);
    while (!helped && Clock::now() < deadline) {
        run_on(executor, 8, [&](uint32_t, uint32_t worker) {
            if (worker != 0) {
                body();
                helped = true;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        });
    }
    return helped;
}

TEST(Executor, WorkersArePinnedAndTheCallerIsNot) {
    if (read_topology().processors.size() < 2) GTEST_SKIP() << "one processor: nothing is bound";
    const std::vector<uint32_t> before = current_affinity();
    const auto own = make(2);
    std::vector<uint32_t> affinity;
    std::mutex mutex;
    ASSERT_TRUE(run_until_worker_helps(own->executor(), [&] {
        const std::lock_guard lock(mutex);
        affinity = current_affinity();
    }));
    EXPECT_EQ(affinity.size(), 1U);
    EXPECT_EQ(own->pins_refused(), 0U);
    EXPECT_EQ(current_affinity(), before);
}

TEST(Executor, WorkersHaveProcessorsOfTheirOwn) {
    const uint32_t cores = read_topology().core_count;
    if (cores < 2) GTEST_SKIP() << "one core: nothing to spread over";
    const uint32_t threads = std::min(cores, 8U);
    const auto own = make(threads);
    std::mutex mutex;
    std::vector<std::set<uint32_t>> processors(threads);
    for (int round = 0; round < 20; ++round) {
        run_on(own->executor(), threads * 4, [&](uint32_t, uint32_t worker) {
            {
                const std::lock_guard lock(mutex);
                if (worker != 0) processors[worker] = {current_affinity().front()};
            }
            std::this_thread::sleep_for(std::chrono::microseconds(500));
        });
    }
    std::set<uint32_t> all;
    size_t seen = 0;
    for (const auto& set : processors) {
        all.insert(set.begin(), set.end());
        seen += set.size();
    }
    EXPECT_EQ(all.size(), seen);
}

TEST(Executor, WorkersGetTheirAffinityBack) {
    const std::vector<uint32_t> before = current_affinity();
    auto own = make(2);
    ASSERT_TRUE(run_until_worker_helps(own->executor(), [] {}));
    own.reset();
    auto unpinned = std::move(*OwnExecutor::create({.threads = 2, .pin = false}));
    std::vector<uint32_t> affinity;
    std::mutex mutex;
    ASSERT_TRUE(run_until_worker_helps(unpinned->executor(), [&] {
        const std::lock_guard lock(mutex);
        affinity = current_affinity();
    }));
    EXPECT_EQ(affinity, before);
}

double seconds_of_load(const Executor& executor) {
    std::atomic<uint64_t> sink{0};
    const Clock::time_point begin = Clock::now();
    run_on(executor, 16, [&](uint32_t index, uint32_t) {
        uint64_t x = index + 1;
        for (int i = 0; i < 400000; ++i) x = x * 6364136223846793005U + 1442695040888963407U;
        sink += x;
    });
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The best of many tries: other programs may take a core at any moment.
TEST(Executor, TwoThreadsAreFasterThanOne) {
    if (read_topology().core_count < 2) GTEST_SKIP() << "one core: two threads cannot be faster";
    const auto one = make(1);
    const auto two = make(2);
    double best = 0;
    const Clock::time_point deadline = Clock::now() + std::chrono::seconds(20);
    while (best < 1.6 && Clock::now() < deadline) {
        const double alone = seconds_of_load(one->executor());
        best = std::max(best, alone / seconds_of_load(two->executor()));
    }
    EXPECT_GE(best, 1.6);
}

}  // namespace
}  // namespace shoal::offload
