// Which processors this process may run on, and pinning threads to them.
#pragma once

#include <cstdint>
#include <vector>

#include "shoal/status.hpp"

namespace shoal::offload {

struct Processor {
    uint32_t os_index = 0;    // as in /proc/cpuinfo and taskset
    uint32_t core = 0;        // 0 .. core_count - 1; hardware threads of one core share it
    uint32_t numa_node = 0;   // 0 .. numa_node_count - 1, in the system's order
};

// What the affinity of the process and the cpuset of its cgroup leave of the machine.
struct Topology {
    // One hardware thread of every core first, nodes together, then the second ones, and so on:
    // the first n are the n to use.
    std::vector<Processor> processors;  // at least 1
    uint32_t core_count = 1;
    uint32_t numa_node_count = 1;
};

// Through hwloc. When hwloc fails: the affinity mask alone, every processor a core, one node.
Topology read_topology();

// Binds the calling thread to one processor (Processor::os_index).
Status pin_current_thread(uint32_t os_index);
// Binds the calling thread to a set of processors, e.g. to what current_affinity() gave before.
Status set_affinity(const std::vector<uint32_t>& os_indices);
// os_index of every processor the calling thread may run on, ascending.
std::vector<uint32_t> current_affinity();

}  // namespace shoal::offload
