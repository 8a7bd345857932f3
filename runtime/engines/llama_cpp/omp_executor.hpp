// Lends the engine's own OpenMP workers to Shoal.
//
// libgomp's workers spin through a device op and hold their cores, so any other pool runs beside
// them and is serial at best (measured: oneTBB 203 us where this one takes 102 us for a load of
// 100 us per thread; a spinning pool 3,900 us).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "shoal/types.hpp"

namespace shoal::llama_cpp {

class OmpExecutor {
public:
    // The OpenMP runtime that ggml's CPU backend is linked to, or null when it has none.
    // `worker_max`: workers that will ever be given work.
    static std::unique_ptr<OmpExecutor> find(uint32_t worker_max);

    // The engine's own thread count. A region of any other size makes libgomp end and restart
    // threads, so regions always have this size; workers from worker_max on then do nothing.
    void set_thread_count(uint32_t count);
    // 0 until the engine has said it.
    uint32_t engine_thread_count() const { return thread_count_.load(std::memory_order_relaxed); }

    // Valid as long as this object.
    Executor executor();

private:
    // int GOMP_parallel-style entry points, found by name.
    struct Runtime {
        void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
        int (*thread_index)();
    };
    OmpExecutor(Runtime runtime, uint32_t worker_max);

    void run(uint32_t count, Executor::Body body, void* context) const;
    uint32_t worker_count() const;

    Runtime runtime_;
    uint32_t worker_max_;
    std::atomic<uint32_t> thread_count_ = 0;
};

// Cores that this process may run on, at least 1.
uint32_t usable_core_count();

}  // namespace shoal::llama_cpp
