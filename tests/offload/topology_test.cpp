#include "offload/topology.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>
#include <vector>

namespace shoal::offload {
namespace {

TEST(Topology, ListsProcessorsOfThisProcess) {
    const Topology topology = read_topology();
    ASSERT_GE(topology.processors.size(), 1U);
    ASSERT_GE(topology.core_count, 1U);
    const std::vector<uint32_t> allowed = current_affinity();
    std::set<uint32_t> seen;
    std::set<uint32_t> cores_of_first;
    for (size_t i = 0; i < topology.processors.size(); ++i) {
        const Processor& processor = topology.processors[i];
        EXPECT_TRUE(seen.insert(processor.os_index).second) << "listed twice";
        EXPECT_TRUE(std::count(allowed.begin(), allowed.end(), processor.os_index));
        EXPECT_LT(processor.core, topology.core_count);
        EXPECT_LT(processor.numa_node, topology.numa_node_count);
        if (i < topology.core_count) cores_of_first.insert(processor.core);
    }
    EXPECT_EQ(cores_of_first.size(), topology.core_count) << "one of each core comes first";
}

TEST(Topology, PinReadsBack) {
    const Topology topology = read_topology();
    for (const Processor& processor : topology.processors) {
        std::thread([&] {
            ASSERT_TRUE(pin_current_thread(processor.os_index));
            EXPECT_EQ(current_affinity(), std::vector<uint32_t>{processor.os_index});
        }).join();
    }
}

TEST(Topology, AffinityIsRestored) {
    std::thread([] {
        const std::vector<uint32_t> before = current_affinity();
        ASSERT_FALSE(before.empty());
        ASSERT_TRUE(pin_current_thread(before.back()));
        ASSERT_TRUE(set_affinity(before));
        EXPECT_EQ(current_affinity(), before);
    }).join();
}

TEST(Topology, UnknownProcessorIsAStatus) {
    std::thread([] {
        const std::vector<uint32_t> before = current_affinity();
        EXPECT_FALSE(pin_current_thread(1000000));
        EXPECT_FALSE(set_affinity({}));
        EXPECT_EQ(current_affinity(), before);
    }).join();
}

}  // namespace
}  // namespace shoal::offload
