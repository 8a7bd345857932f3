// The whole part on the emulator.
#include "bench/gpu/select.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartSelect, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::select, run_select);
    EXPECT_EQ(run.values("select", "way").size(), 6U);
    test::expect_needs(run, select_needs(run.plan));
}

}  // namespace
}  // namespace shoal::gpu
