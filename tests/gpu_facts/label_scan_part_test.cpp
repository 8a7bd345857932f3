// The whole part on the emulator.
#include "bench/gpu/label_scan.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartLabelScan, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::label_scan, run_label_scan);
    test::expect_needs(run, label_scan_needs(run.plan, test::label_span_bytes()));
    EXPECT_EQ(run.values("label scan", "combine").size(), 3U);
    EXPECT_EQ(run.values("label scan", "tokens"), (std::set<std::string>{"512", "1024"}));
}

}  // namespace
}  // namespace shoal::gpu
