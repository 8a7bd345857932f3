// The whole part on the emulator.
#include "bench/gpu/gather.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(SHOAL_LONG_IF_SANITIZED(PartGather), RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::gather, run_gather);
    using Names = std::set<std::string>;
    for (const std::string way : {"gather by loads", "gather by bulk copies"}) {
        EXPECT_EQ(run.values(way, "piece"), (Names{"128 B", "512 B", "4 KiB", "64 KiB"}));
        EXPECT_EQ(run.values(way, "memory"), (Names{"cudaHostAlloc", "registered"}));
        EXPECT_EQ(run.values(way, "order"), (Names{"random", "sorted"}));
        EXPECT_EQ(run.values(way, "ctas"), (Names{"1", "3"}));
    }
    test::expect_needs(run, gather_needs(run.plan));
    for (const std::string row : {"slowdown", "overlap", "neighbour's pace"}) {
        EXPECT_EQ(run.values(row, "of").size(), 9U) << row;      // 2 neighbours, 7 transfers
        EXPECT_EQ(run.values(row, "beside").size(), 9U) << row;
    }
}

}  // namespace
}  // namespace shoal::gpu
