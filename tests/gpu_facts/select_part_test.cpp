// The whole part on the emulator.
#include "bench/gpu/select.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartSelect, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::select, run_select);
    EXPECT_FALSE(run.json["rows"].empty());
}

}  // namespace
}  // namespace shoal::gpu
