// Events of a session's steps: complete, nested, bounded, and none unless asked for.
#include "runtime/trace.hpp"

#include <array>
#include <map>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using testing::test_config;

std::vector<TraceEvent> read_all(Session& session) {
    std::vector<TraceEvent> events;
    std::array<TraceEvent, 7> part;
    size_t got = part.size();
    while (got == part.size()) {
        got = session.read_trace(part);
        events.insert(events.end(), part.begin(), part.begin() + static_cast<ptrdiff_t>(got));
    }
    return events;
}

std::map<TraceStage, uint64_t> time_by_stage(const std::vector<TraceEvent>& events) {
    std::map<TraceStage, uint64_t> time;
    for (const TraceEvent& event : events) time[event.stage] += event.end_ns - event.begin_ns;
    return time;
}

TEST(SessionTrace, StepsHoldTheirStagesInOrder) {
    SHOAL_SKIP_ON_DISK();
    Driver driver(test_config(), small_model(), 2048);
    driver.step(300);
    ASSERT_TRUE(driver.session().trace(1000));
    for (int i = 0; i < 3; ++i) driver.step(1);
    driver.step(20);
    const std::vector<TraceEvent> events = read_all(driver.session());
    EXPECT_EQ(driver.session().trace_dropped(), 0U);

    std::map<TraceStage, int> count;
    std::vector<TraceEvent> inside;  // since the last step ended
    uint64_t last_ns = 0;
    for (const TraceEvent& event : events) {
        count[event.stage]++;
        EXPECT_LE(event.begin_ns, event.end_ns);
        EXPECT_GE(event.end_ns, last_ns) << "in the order in which they ended";
        EXPECT_LT(event.layer, 3U);
        last_ns = event.end_ns;
        if (event.stage != TraceStage::step) {
            EXPECT_GE(event.begin_ns, inside.empty() ? 0 : inside.back().end_ns) << "overlap";
            inside.push_back(event);
            continue;
        }
        ASSERT_FALSE(inside.empty());
        EXPECT_LE(event.begin_ns, inside.front().begin_ns);
        EXPECT_GE(event.end_ns, inside.back().end_ns);
        inside.clear();
    }
    EXPECT_TRUE(inside.empty()) << "events of a step that did not end";
    EXPECT_EQ(count[TraceStage::step], 4);
    EXPECT_EQ(count[TraceStage::attend], 3 * 3);
    EXPECT_EQ(count[TraceStage::exact], 3) << "20 queries are more than sparse_queries_max";
    EXPECT_EQ(count[TraceStage::score], count[TraceStage::select]);
    EXPECT_GE(count[TraceStage::score], 3 * 3);
    EXPECT_GE(count[TraceStage::append], 4 * 3);
}

TEST(SessionTrace, TimesAreThoseOfTheCounters) {
    Driver driver(test_config(), small_model(), 2048);
    driver.step(300);
    driver.session().reset_stats();
    ASSERT_TRUE(driver.session().trace(1000));
    for (int i = 0; i < 3; ++i) driver.step(1);
    driver.step(20);
    std::map<TraceStage, uint64_t> time = time_by_stage(read_all(driver.session()));
    const Stats stats = driver.session().stats();
    EXPECT_EQ(time[TraceStage::append], stats.append_ns);
    EXPECT_EQ(time[TraceStage::score], stats.score_ns);
    EXPECT_EQ(time[TraceStage::select], stats.select_ns);
    EXPECT_EQ(time[TraceStage::attend], stats.attend_ns);
    EXPECT_EQ(time[TraceStage::exact], stats.exact_ns);
    EXPECT_GE(time[TraceStage::step], stats.append_ns + stats.attend_ns + stats.exact_ns);
}

TEST(SessionTrace, KeepsWhatHasRoomAndCountsTheRest) {
    Driver driver(test_config(), small_model(), 2048);
    driver.step(300);
    EXPECT_TRUE(read_all(driver.session()).empty()) << "off unless asked for";
    ASSERT_TRUE(driver.session().trace(5));
    driver.step(1);
    const uint64_t dropped = driver.session().trace_dropped();
    EXPECT_GT(dropped, 0U);
    EXPECT_EQ(read_all(driver.session()).size(), 5U);
    driver.step(1);
    EXPECT_EQ(read_all(driver.session()).size(), 5U) << "reading makes room";
    EXPECT_EQ(driver.session().trace_dropped(), 2 * dropped);
    driver.step(1);
    ASSERT_TRUE(driver.session().trace(0));
    driver.step(1);
    EXPECT_TRUE(read_all(driver.session()).empty());
    EXPECT_EQ(driver.session().trace_dropped(), 0U);
    const Status refused = driver.session().trace(kTraceEventsMax + 1);
    EXPECT_EQ(refused.code(), StatusCode::invalid_argument);
    EXPECT_NE(refused.message().find("trace: 4194305 events"), std::string::npos);
}

TEST(Trace, RingKeepsItsOrder) {
    Trace trace;
    trace.start(3);
    std::array<TraceEvent, 2> out;
    uint64_t written = 0;
    uint64_t read = 0;
    for (int round = 0; round < 10; ++round) {
        while (written < read + 3) trace.add(TraceStage::append, 0, written++, 0);
        trace.add(TraceStage::append, 0, 1000, 0);  // no room
        ASSERT_EQ(trace.read(out), 2U);
        for (const TraceEvent& event : out) EXPECT_EQ(event.begin_ns, read++);
    }
    EXPECT_EQ(trace.dropped(), 10U);
    EXPECT_EQ(trace.read(out), 1U);
    EXPECT_EQ(out[0].begin_ns, read);
    EXPECT_EQ(trace.read(out), 0U);
}

TEST(Trace, EveryStageHasAName) {
    for (uint32_t stage = 0; stage < kTraceStageCount; ++stage) {
        EXPECT_STRNE(trace_stage_name(static_cast<TraceStage>(stage)), "unknown");
    }
    EXPECT_STREQ(trace_stage_name(static_cast<TraceStage>(kTraceStageCount)), "unknown");
}

}  // namespace
}  // namespace shoal
