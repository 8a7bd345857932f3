// The tier over a spill file: direct I/O through io_uring, or through blocking threads where a
// machine refuses io_uring, with the same results.
#pragma once

#include <atomic>
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
    // Memory that most transfers go to, alive as long as the tier. Registered with the kernel when
    // the limit of locked memory allows; a transfer elsewhere works as well.
    std::span<const std::span<std::byte>> buffers{};
    // Called during create(), once, when io_uring was asked for and refused.
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

    const IoPath& path() const { return path_; }

private:
    DiskTier(std::unique_ptr<IoQueue> queue, uint64_t bytes, uint32_t alignment, uint32_t depth,
             TierOptions options);
    void do_start(std::span<Transfer* const> transfers) override;
    void do_cancel() override;
    bool do_poll(uint64_t deadline_ns) override;
    void do_count(TierCounters& counters) const override;

    void run();
    size_t turn();
    bool has_news();
    void notify();

    std::optional<SpillFile> file_;       // none of a tier that is driven
    IoPath path_;
    std::unique_ptr<IoQueue> queue_;
    IoEngine engine_;
    bool is_stopping_ = false;           // what turn() saw
    bool is_turning_ = false;            // of a tier that is driven: within turn()

    std::mutex mutex_;
    TransferList started_;               // guarded by mutex_
    bool cancel_ = false;                // guarded by mutex_
    bool stop_ = false;                  // guarded by mutex_
    std::atomic<bool> is_asleep_{false};
    std::thread thread_;
};

}  // namespace shoal::offload
