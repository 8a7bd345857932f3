// The I/O queue over io_uring: one ring, one file, no thread of its own.
#pragma once

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "offload/io_queue.hpp"
#include "offload/spill_file.hpp"

namespace shoal::offload {

// How a ring is made; tests put a function in its place that refuses. 0 or -errno.
using RingSetup = std::function<int(unsigned entries, io_uring* ring, io_uring_params* params)>;

struct UringOptions {
    uint32_t depth = 128;     // operations in flight at most
    int file = -1;            // to be read and written, open as long as the queue; -1: none, to ask
    RingSetup setup{};        // empty: the system's
};

class UringQueue final : public IoQueue {
public:
    // Fails with `unavailable`, saying why, where the kernel or a container refuses io_uring.
    static Result<std::unique_ptr<UringQueue>> create(const UringOptions& options);
    ~UringQueue() override;

    void attach() override;
    // Registers it, which saves the kernel pinning it for each operation; all of it is taken.
    Status use_memory(std::span<std::byte> memory) override;
    bool submit(const IoOperation& operation) override;
    size_t reap(std::span<IoCompletion> completions) override;
    void wait(uint32_t wanted, uint64_t timeout_ns) override;
    void wake() override;

    // What it got from the kernel: "single issuer, deferred task work, registered file, ...".
    std::string features() const;

private:
    UringQueue() = default;
    Status open_ring(const UringOptions& options);
    void register_file(int file);
    void add_feature(const std::string& feature);
    int buffer_of(const iovec& piece) const;
    void arm_wake();

    io_uring ring_{};
    bool has_ring_ = false;
    bool starts_disabled_ = false;
    Descriptor wake_;
    int file_ = -1;
    bool file_is_registered_ = false;
    std::vector<iovec> registered_;
    std::string features_;
    std::string memory_feature_;
};

}  // namespace shoal::offload
