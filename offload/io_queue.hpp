// What the I/O engine needs of a device: operations go in, completions come out, in any order.
//
// io_uring and a pool of blocking threads are behind this, and so is whatever a test makes up. One
// thread, the one that called attach(), uses a queue; wake() alone may come from any.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "offload/tier.hpp"

namespace shoal::offload {

struct IoOperation {
    TransferKind kind = TransferKind::read;
    uint64_t offset = 0;
    std::span<const iovec> pieces;  // one run of bytes of the file; stays until the completion
    uint64_t tag = 0;               // comes back with the completion
};

struct IoCompletion {
    uint64_t tag = 0;
    int64_t result = 0;             // bytes, fewer than asked for at times; or -errno
};

class IoQueue {
public:
    static constexpr uint64_t kForever = UINT64_MAX;

    IoQueue() = default;
    virtual ~IoQueue() = default;
    IoQueue(const IoQueue&) = delete;
    IoQueue& operator=(const IoQueue&) = delete;

    // First call of the thread that uses it.
    virtual void attach() {}
    // Memory that most operations go to from now on, in place of what was named before; nothing is
    // in flight. Why nothing can be done about that, if so: operations work all the same.
    virtual Status use_memory(std::span<std::byte>) { return Status::ok(); }
    // Takes an operation; it may start as late as the next wait(). false: full, try again when
    // something was completed. Never refuses while nothing is in flight. Every operation taken is
    // completed some time: until then its memory is in use.
    virtual bool submit(const IoOperation& operation) = 0;
    // Completions that are there, without waiting; returns how many. All are there when it returns
    // fewer than there was room for.
    virtual size_t reap(std::span<IoCompletion> completions) = 0;
    // Starts what was submitted. Returns when `wanted` completions can be reaped, or some and it
    // took too long to get them all, after a wake() since the last wait(), or after `timeout_ns`.
    virtual void wait(uint32_t wanted, uint64_t timeout_ns) = 0;
    virtual void wake() = 0;
    // Processor time of threads of the queue's own.
    virtual uint64_t cpu_ns() const { return 0; }
};

}  // namespace shoal::offload
