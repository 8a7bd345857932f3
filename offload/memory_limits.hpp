// What this machine lets the process take: physical memory, cgroup limits, locked memory.
#pragma once

#include <cstdint>
#include <string>

#include "shoal/text.hpp"

namespace shoal::offload {

using shoal::bytes_text;

enum class MemoryBound : uint8_t { mem_available, cgroup };

struct MemoryLimits {
    static constexpr uint64_t kUnlimited = UINT64_MAX;

    uint64_t mem_total_bytes = 0;      // MemTotal
    uint64_t mem_available_bytes = 0;  // MemAvailable: free, and what can be reclaimed at once
    // The level of the cgroup hierarchy (v1 or v2) that leaves the least. kUnlimited: none does.
    uint64_t cgroup_limit_bytes = kUnlimited;
    uint64_t cgroup_used_bytes = 0;    // of that level, without reclaimable page cache
    std::string cgroup_path;           // of that level, e.g. "/user.slice/run"
    uint64_t mapped_bytes = 0;         // in RAM of files that the process has mapped; available too
    uint64_t memlock_bytes = 0;        // RLIMIT_MEMLOCK, soft
    // Processor time the cgroup allows, in processors; 0 = no quota.
    double cpu_quota = 0;

    // The least of what the above leave.
    uint64_t available_bytes = 0;
    MemoryBound bound = MemoryBound::mem_available;  // which one that was

    // For messages: "21.4 GiB (cgroup limit 22.0 GiB, 0.6 GiB in use)".
    std::string available_text() const;
};

// Reads the files below `root` ("" = this machine; tests pass a folder with proc/ and sys/). Never
// fails: what cannot be read does not limit, and MemTotal stands in for a missing MemAvailable.
MemoryLimits read_memory_limits(const std::string& root = "");

}  // namespace shoal::offload
