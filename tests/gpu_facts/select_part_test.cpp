// The whole part on the emulator.
#include "bench/gpu/select.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartSelect, RunsWholeAndEveryCheckPasses) {
    Plan plan = test::tiny_plan();
    plan.tokens = {1024};  // the emulator's time is in the barriers of 512 threads, not in n
    plan.select_rows = {64};
    const test::PartRun run = test::run_part(Part::select, run_select, plan);
    EXPECT_EQ(run.values("select", "way").size(), 6U);
    test::expect_needs(run, select_needs(run.plan));
}

}  // namespace
}  // namespace shoal::gpu
