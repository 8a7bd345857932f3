#include "offload/topology.hpp"

#include <fmt/format.h>
#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

namespace shoal::offload {

namespace {

struct BitmapFree {
    void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<std::remove_pointer_t<hwloc_bitmap_t>, BitmapFree>;

hwloc_topology_t load() {
    hwloc_topology_t topology = nullptr;
    if (hwloc_topology_init(&topology) != 0) return nullptr;
    if (hwloc_topology_load(topology) != 0) {
        hwloc_topology_destroy(topology);
        return nullptr;
    }
    return topology;
}

// Read once: loading takes milliseconds, and pinning needs it on every thread. Never destroyed,
// because workers may be pinned or unpinned while the process ends.
hwloc_topology_t machine() {
    static const hwloc_topology_t topology = load();
    return topology;
}

Topology from_affinity_mask() {
    Topology out;
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
        for (uint32_t i = 0; i < CPU_SETSIZE; ++i) {
            if (!CPU_ISSET(i, &mask)) continue;
            const auto core = static_cast<uint32_t>(out.processors.size());
            out.processors.push_back({.os_index = i, .core = core, .numa_node = 0});
        }
    }
    if (out.processors.empty()) out.processors.emplace_back();
    out.core_count = static_cast<uint32_t>(out.processors.size());
    return out;
}

// Index of `key` in order of first appearance.
uint32_t index_of(std::map<unsigned, uint32_t>& seen, unsigned key) {
    return seen.emplace(key, static_cast<uint32_t>(seen.size())).first->second;
}

}  // namespace

Topology read_topology() {
    const hwloc_topology_t topology = machine();
    const Bitmap allowed(hwloc_bitmap_alloc());
    // The process, not the thread: an engine may call from a thread that it has bound.
    if (topology == nullptr ||
        hwloc_get_cpubind(topology, allowed.get(), HWLOC_CPUBIND_PROCESS) != 0) {
        return from_affinity_mask();
    }

    struct Ranked {
        uint32_t sibling;  // 0 for the first hardware thread of its core
        Processor processor;
    };
    std::vector<Ranked> ranked;
    std::map<unsigned, uint32_t> cores;
    std::map<unsigned, uint32_t> nodes;
    std::map<uint32_t, uint32_t> siblings;
    hwloc_obj_t pu = nullptr;
    while ((pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != nullptr) {
        if (!hwloc_bitmap_isset(allowed.get(), pu->os_index)) continue;
        const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
        const int node = hwloc_bitmap_first(pu->nodeset);
        Processor processor;
        processor.os_index = pu->os_index;
        processor.core = index_of(cores, core != nullptr ? core->logical_index : pu->logical_index);
        processor.numa_node = index_of(nodes, static_cast<unsigned>(std::max(node, 0)));
        ranked.push_back({siblings[processor.core]++, processor});
    }
    if (ranked.empty()) return from_affinity_mask();
    std::stable_sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
        return std::tie(a.sibling, a.processor.numa_node) <
               std::tie(b.sibling, b.processor.numa_node);
    });

    Topology out;
    for (const Ranked& entry : ranked) out.processors.push_back(entry.processor);
    out.core_count = static_cast<uint32_t>(cores.size());
    out.numa_node_count = static_cast<uint32_t>(nodes.size());
    return out;
}

Status set_affinity(const std::vector<uint32_t>& os_indices) {
    const hwloc_topology_t topology = machine();
    if (topology == nullptr) {
        return Status::error(StatusCode::unsupported, "hwloc cannot read this machine");
    }
    const Bitmap set(hwloc_bitmap_alloc());
    for (const uint32_t index : os_indices) hwloc_bitmap_set(set.get(), index);
    if (hwloc_set_cpubind(topology, set.get(), HWLOC_CPUBIND_THREAD) != 0) {
        return Status::error(
            StatusCode::unsupported,
            fmt::format("binding a thread to {} processor(s), the first of them {}: {}",
                        os_indices.size(), os_indices.empty() ? 0 : os_indices.front(),
                        std::strerror(errno)));
    }
    return Status::ok();
}

Status pin_current_thread(uint32_t os_index) { return set_affinity({os_index}); }

std::vector<uint32_t> current_affinity() {
    std::vector<uint32_t> out;
    const hwloc_topology_t topology = machine();
    const Bitmap set(hwloc_bitmap_alloc());
    if (topology == nullptr ||
        hwloc_get_cpubind(topology, set.get(), HWLOC_CPUBIND_THREAD) != 0) {
        for (const Processor& processor : from_affinity_mask().processors) {
            out.push_back(processor.os_index);
        }
        return out;
    }
    for (int i = hwloc_bitmap_first(set.get()); i >= 0; i = hwloc_bitmap_next(set.get(), i)) {
        out.push_back(static_cast<uint32_t>(i));
    }
    return out;
}

}  // namespace shoal::offload
