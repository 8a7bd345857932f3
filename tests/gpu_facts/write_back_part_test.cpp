// The whole part on the emulator.
#include "bench/gpu/write_back.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartWriteBack, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::write_back, run_write_back);
    test::expect_needs(run, write_back_needs(run.plan));
    EXPECT_EQ(run.values("graph launch to acknowledgement", "batch"),
              (std::set<std::string>{"1", "2"}));
    EXPECT_EQ(run.values("host asks, row written, host sees", "batch").size(), 1U);
}

TEST(PartWriteBack, AnAcknowledgementBeforeItsRowsFailsTheCheck) {
    const std::vector<uint4> rows(8, make_uint4(1, 2, 3, 4));
    std::vector<uint4> slot;
    for (const uint4& unit : rows) slot.push_back(stamped(unit, 5));
    AckCheck check;
    check.compare(slot.data(), rows, 5);
    Report report(nullptr);
    check.report_to(report, "in time");
    EXPECT_EQ(report.failed_count(), 0U);
    slot[6] = stamped(rows[6], 4);
    check.compare(slot.data(), rows, 5);
    check.report_to(report, "one unit is of the write before");
    EXPECT_EQ(report.failed_count(), 1U);
    AckCheck().report_to(report, "nothing was acknowledged");
    EXPECT_EQ(report.failed_count(), 2U);
}

}  // namespace
}  // namespace shoal::gpu
