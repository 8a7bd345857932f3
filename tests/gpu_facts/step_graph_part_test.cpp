// The whole part on the emulator.
#include "bench/gpu/step_graph.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(SHOAL_LONG_IF_SANITIZED(PartStepGraph), RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::step_graph, run_step_graph);
    test::expect_needs(run, step_graph_needs(run.plan, test::label_span_bytes()));
    EXPECT_EQ(run.values("captured step, per layer", "weights").size(), 3U);
    EXPECT_EQ(run.values("captured step, per layer", "misses").size(), 3U);
    EXPECT_EQ(run.values("stage adds, per layer", "stage").size(), 5U);
}

}  // namespace
}  // namespace shoal::gpu
