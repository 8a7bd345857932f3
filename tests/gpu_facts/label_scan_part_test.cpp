// The whole part on the emulator.
#include "bench/gpu/label_scan.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartLabelScan, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::label_scan, run_label_scan);
    EXPECT_FALSE(run.json["rows"].empty());
}

}  // namespace
}  // namespace shoal::gpu
