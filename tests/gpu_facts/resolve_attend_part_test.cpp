// The whole part on the emulator.
#include "bench/gpu/resolve_attend.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartResolveAttend, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::resolve_attend, run_resolve_attend);
    EXPECT_FALSE(run.json["rows"].empty());
}

}  // namespace
}  // namespace shoal::gpu
