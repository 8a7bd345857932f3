// The I/O queue over blocking reads and writes: as many threads as operations in flight. For
// machines that refuse io_uring.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "offload/io_queue.hpp"

namespace shoal::offload {

class PreadQueue final : public IoQueue {
public:
    // `file` stays open as long as the queue. `depth`: operations in flight at most; `threads`:
    // 1 .. depth, those of them that the device sees at a time.
    PreadQueue(int file, uint32_t depth, uint32_t threads);
    ~PreadQueue() override;

    bool submit(const IoOperation& operation) override;
    size_t reap(std::span<IoCompletion> completions) override;
    void wait(uint32_t wanted, uint64_t timeout_ns) override;
    void wake() override;
    uint64_t cpu_ns() const override;

private:
    void run();
    IoCompletion carry_out(const IoOperation& operation) const;

    const int file_;
    const uint32_t depth_;
    std::mutex mutex_;
    std::condition_variable work_;
    std::condition_variable done_;
    // Guarded by mutex_. Rings of `depth` each: what no thread has yet, what is ready to be reaped.
    std::vector<IoOperation> operations_;
    uint32_t operation_first_ = 0;
    uint32_t operation_count_ = 0;
    std::vector<IoCompletion> completions_;
    uint32_t completion_first_ = 0;
    uint32_t completion_count_ = 0;
    uint32_t in_flight_ = 0;      // taken and not reaped
    uint32_t wanted_ = 0;         // of a thread in wait()
    bool is_woken_ = false;
    bool is_stopping_ = false;
    std::vector<std::thread> threads_;
};

// Processor time of a thread that runs.
uint64_t thread_cpu_ns(const std::thread& thread);
// Keeps signals of the process away from the calling thread: SIGXFSZ of a write too many comes back
// as EFBIG, and handlers run where the program expects them.
void block_signals();

}  // namespace shoal::offload
