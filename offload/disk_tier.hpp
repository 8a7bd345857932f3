// The tier over a spill file: direct I/O through io_uring, or through blocking threads where a
// machine refuses io_uring, with the same results.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "offload/io_engine.hpp"
#include "offload/io_path.hpp"
#include "offload/spill_file.hpp"
#include "offload/tier.hpp"
#include "offload/uring_queue.hpp"

namespace shoal::offload {

enum class IoPathKind : uint8_t {
    automatic,   // io_uring, or threads when it is refused
    io_uring,    // or nothing
    threads,
};

struct DiskTierOptions {
    static constexpr uint32_t kDepth = 128;
    static constexpr uint32_t kThreads = 32;

    TierOptions tier;
    uint32_t depth = kDepth;       // operations in flight, 1 .. IoEngine::kDepthMost
    IoPathKind path = IoPathKind::automatic;
    uint32_t threads = kThreads;   // of the path over threads
    // Called during create() when io_uring was asked for and refused, and during use_memory() when
    // the kernel does not register that memory (its limit of locked memory): a line each.
    std::function<void(const std::string& line)> log;
    RingSetup ring_setup;          // for tests
};

class DiskTier final : public Tier {
public:
    // Starts one thread, which owns ring and engine (threads: and as many more). `unavailable`: the
    // path that was asked for is refused.
    static Result<std::unique_ptr<DiskTier>> create(SpillFile file,
                                                    const DiskTierOptions& options = {});
    // The same machine without a thread, over any queue: start() and wait() drive it, in the time
    // of `options.clock`. The queue completes what it was given before it is destroyed.
    static std::unique_ptr<DiskTier> create_driven(std::unique_ptr<IoQueue> queue, uint64_t bytes,
                                                   uint32_t alignment, uint32_t depth,
                                                   TierOptions options = {});
    // What is in no operation ends with ECANCELED; waits for the rest, since a device may write to
    // its memory still.
    ~DiskTier() override;

    // Changed by use_memory() alone.
    const IoPath& path() const { return path_; }

private:
    DiskTier(std::unique_ptr<IoQueue> queue, uint64_t bytes, uint32_t alignment, uint32_t depth,
             TierOptions options);
    void do_start(std::span<Transfer* const> transfers) override;
    void do_cancel() override;
    void do_use_memory(std::span<std::byte> memory) override;
    bool do_poll(uint64_t deadline_ns) override;
    void do_count(TierCounters& counters) const override;

    void run();
    size_t turn();
    bool has_news();
    void take_memory();
    void notify();

    std::optional<SpillFile> file_;       // none of a tier that is driven
    IoPath path_;
    std::unique_ptr<IoQueue> queue_;
    IoEngine engine_;
    std::function<void(const std::string& line)> log_;
    std::atomic<bool> memory_refused_{false};
    bool is_stopping_ = false;           // what turn() saw
    bool is_turning_ = false;            // of a tier that is driven: within turn()

    std::mutex mutex_;
    TransferList started_;               // guarded by mutex_
    bool cancel_ = false;                // guarded by mutex_
    bool stop_ = false;                  // guarded by mutex_
    std::optional<std::span<std::byte>> new_memory_;  // for the queue, guarded by mutex_
    Status memory_status_ = Status::ok();             // what it said, guarded by mutex_
    std::condition_variable memory_taken_;
    std::atomic<bool> is_asleep_{false};
    std::thread thread_;
};

}  // namespace shoal::offload
