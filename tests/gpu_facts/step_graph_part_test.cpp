// The whole part on the emulator.
#include "bench/gpu/step_graph.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartStepGraph, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::step_graph, run_step_graph);
    EXPECT_FALSE(run.json["rows"].empty());
}

}  // namespace
}  // namespace shoal::gpu
