// From transfers to operations of a device: neighbours merged, a bounded number in flight, what
// came short resumed, what failed together taken apart.
//
// A plain state machine: no thread, no clock, no memory taken after construction. Whoever drives it
// calls add(), step() and the queue's wait() in turn, all from one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "offload/io_queue.hpp"
#include "offload/transfer_list.hpp"

namespace shoal::offload {

class IoEngine {
public:
    // Ends a transfer: 0 or an errno.
    using Finish = std::function<void(Transfer& transfer, int error)>;
    static constexpr uint32_t kDepthMost = 1024;

    // `depth`: operations in flight at most, 1 .. kDepthMost. What a device stops at is resumed at
    // a multiple of `alignment`.
    IoEngine(IoQueue& queue, uint32_t depth, uint32_t alignment, Finish finish);

    ~IoEngine();    // idle by then
    IoEngine(const IoEngine&) = delete;
    IoEngine& operator=(const IoEngine&) = delete;

    // Takes over all of `transfers`. They are served in this order but for this: reads go before
    // writes, and 256 at a time are sorted by offset.
    void add(TransferList& transfers);
    // Ends the canceled ones that no operation has (ECANCELED), or all of them.
    void drop_canceled();
    void drop_all();

    // Takes what the queue has completed, then gives it what fits. Returns how many completions.
    size_t step();

    bool is_idle() const { return busy_count_ == 0 && waiting_count_ == 0; }
    bool is_full() const { return busy_count_ == depth_; }
    uint32_t busy_count() const { return busy_count_; }

    struct Counts {
        std::atomic<uint64_t> reads{0};         // operations, each once however often resumed
        std::atomic<uint64_t> writes{0};
        std::atomic<uint64_t> repeats{0};       // after EINTR, EAGAIN, or failure of a merged one
        std::atomic<uint64_t> short_results{0};
        std::atomic<uint64_t> strays{0};        // completions of nothing that is in flight
    };
    // From any thread.
    const Counts& counts() const { return counts_; }

private:
    struct Operation;
    struct Lane;
    using Drop = bool (*)(const Transfer&);

    void drop(Drop wanted);
    void refill(Lane& lane);
    Lane* next_lane();
    void open(TransferKind kind, Transfer& first);
    bool prepare_next();
    bool submit(Operation& operation);
    void complete(const IoCompletion& completion);
    void advance(Operation& operation, uint64_t bytes);
    void fail(Operation& operation, int error);
    void release(Operation& operation);

    IoQueue& queue_;
    const uint32_t depth_;
    const uint32_t alignment_;
    const Finish finish_;

    std::unique_ptr<Lane> reads_;
    std::unique_ptr<Lane> writes_;
    TransferList apart_;              // of merged operations that failed: each on its own now
    uint64_t waiting_count_ = 0;      // transfers that no operation has
    std::vector<Operation> operations_;  // [depth]
    std::vector<iovec> pieces_;          // [depth, kPiecesMost]
    std::vector<uint32_t> free_;         // indices of operations, a stack
    std::vector<uint32_t> ready_;        // [depth], a ring: to be submitted, first ones first
    uint32_t ready_first_ = 0;
    uint32_t ready_count_ = 0;
    uint32_t busy_count_ = 0;            // operations that are not free
    Counts counts_;
};

}  // namespace shoal::offload
