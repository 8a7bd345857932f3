// Parallel loops: the default Executor, and the one way in which Shoal calls any Executor.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::offload {

// Calls body(index, worker) for every index in [0, count); returns when all are done. Indices are
// given out in ascending order, one at a time. Runs inline, as worker 0, when `executor` is empty
// or count is 1. Allocates nothing. `body` must not throw and must not call run_on().
template <typename BodyFunction>
void run_on(const Executor& executor, uint32_t count, BodyFunction&& body) {
    if (executor.run == nullptr || count <= 1) {
        for (uint32_t i = 0; i < count; ++i) body(i, uint32_t{0});
        return;
    }
    using Stored = std::remove_reference_t<BodyFunction>;
    const auto call = [](void* context, uint32_t index, uint32_t worker) {
        (*static_cast<Stored*>(context))(index, worker);
    };
    executor.run(executor.self, count, call,
                 const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

// Threads of an executor; 1 for an empty one.
inline uint32_t thread_count_of(const Executor& executor) {
    return executor.thread_count == nullptr ? 1 : executor.thread_count(executor.self);
}

struct ExecutorOptions {
    // The caller included. 0: a thread for every core, at most the processor time of the cgroup.
    uint32_t threads = 0;
    // Bind each worker to a processor of its own, if there are as many. The calling thread is never
    // bound: its affinity belongs to the program, and threads it starts later would inherit it.
    bool pin = true;
    // How long a worker that has nothing to do keeps looking before it sleeps. Covers what an
    // engine does between two calls of one step.
    uint32_t warm_us = 200;
};

// A oneTBB arena whose workers are pinned through hwloc. The thread that calls run() is worker 0
// and takes part. Calls of run() come from one thread at a time and do not nest.
class OwnExecutor {
public:
    // Threads that create() would have, without making any.
    static Result<uint32_t> planned_thread_count(const ExecutorOptions& options);
    // Workers start at the first run() that needs them. Fails with `invalid_argument` when
    // options.threads is above 1,024.
    static Result<std::unique_ptr<OwnExecutor>> create(const ExecutorOptions& options);
    // Waits for the workers to leave.
    ~OwnExecutor();
    OwnExecutor(const OwnExecutor&) = delete;
    OwnExecutor& operator=(const OwnExecutor&) = delete;

    // Valid while this object lives.
    Executor executor();
    uint32_t thread_count() const;
    // Workers that asked to be pinned and were refused; they run unbound.
    uint32_t pins_refused() const;

private:
    class Impl;
    explicit OwnExecutor(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace shoal::offload
