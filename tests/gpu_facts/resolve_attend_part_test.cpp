// The whole part on the emulator.
#include "bench/gpu/resolve_attend.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(SHOAL_LONG_IF_SANITIZED(PartResolveAttend), RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::resolve_attend, run_resolve_attend);
    test::expect_needs(run, resolve_attend_needs(run.plan));
    EXPECT_EQ(run.values("resolve", "misses"), (std::set<std::string>{"0", "10", "50"}));
    EXPECT_EQ(run.values("attend", "rows"), (std::set<std::string>{"32", "96"}));
}

}  // namespace
}  // namespace shoal::gpu
