// What bench/gpu decides on the host: options, refusals, statistics, sizes, indices, output.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <limits>
#include <set>

#include "bench/gpu/needs.hpp"
#include "bench/gpu/options.hpp"
#include "bench/gpu/plan.hpp"
#include "bench/gpu/report.hpp"

namespace shoal::gpu {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Options, EverythingInOrderByDefault) {
    const Result<Options> options = parse_options({});
    ASSERT_TRUE(options.is_ok());
    ASSERT_EQ(options->parts.size(), kPartCount);
    for (uint32_t i = 0; i < kPartCount; ++i) EXPECT_EQ(options->parts[i], static_cast<Part>(i));
    EXPECT_FALSE(options->small);
}

TEST(Options, OnlySortsAndKeepsEachPartOnce) {
    const Result<Options> options =
        parse_options({"--only", "select,link,select", "--small", "--json", "a.json"});
    ASSERT_TRUE(options.is_ok());
    EXPECT_THAT(options->parts, ElementsAre(Part::link, Part::select));
    EXPECT_TRUE(options->small);
    EXPECT_EQ(options->json_path, "a.json");
}

TEST(Options, RefusalsNameTheArgumentAndWhatIsAllowed) {
    struct Case {
        std::vector<std::string> arguments;
        std::string names;
        std::string allows;
    };
    const std::vector<Case> cases = {
        {{"--only", "links"}, "\"links\"", "link, gather, label_scan, select, resolve_attend"},
        {{"--only", "link,"}, "\"\"", "write_back"},
        {{"--only"}, "--only", "needs a value"},
        {{"--json", ""}, "--json", "needs a value"},
        {{"--quick"}, "--quick", "--small"},
        {{"link"}, "link", "--only NAME"},
    };
    for (const Case& c : cases) {
        const Result<Options> options = parse_options(c.arguments);
        ASSERT_FALSE(options.is_ok()) << c.arguments.front();
        EXPECT_EQ(options.status().code(), StatusCode::invalid_argument);
        EXPECT_THAT(options.status().message(), HasSubstr(c.names));
        EXPECT_THAT(options.status().message(), HasSubstr(c.allows));
    }
}

TEST(Options, BudgetsFitTheRun) {
    double total = 0;
    for (uint32_t i = 0; i < kPartCount; ++i) total += part_info(static_cast<Part>(i)).budget_s;
    EXPECT_LE(total, kTotalBudgetS);
    for (uint32_t i = 0; i < kPartCount; ++i) {
        EXPECT_THAT(list_text(), HasSubstr(part_info(static_cast<Part>(i)).name));
        EXPECT_THAT(usage_text(), HasSubstr(part_info(static_cast<Part>(i)).name));
    }
}

TEST(Refusal, OneSentencePerCause) {
    EXPECT_EQ(refusal(13000, 13000, 1, ""), "");
    EXPECT_EQ(refusal(13010, 13000, 2, ""), "");
    EXPECT_EQ(refusal(13000, 13020, 1, ""), "") << "minor versions are compatible";
    EXPECT_THAT(refusal(0, 13000, 0, "insufficient driver"), HasSubstr("no NVIDIA driver"));
    EXPECT_THAT(refusal(12040, 13000, 0, "insufficient driver"),
                AllOf(HasSubstr("CUDA 12.4"), HasSubstr("needs 13.0")));
    EXPECT_THAT(refusal(13000, 13000, 0, "system not ready"), HasSubstr("system not ready"));
    EXPECT_THAT(refusal(13000, 13000, 0, ""), HasSubstr("no GPU"));
}

TEST(Statistics, MedianAndQuantiles) {
    EXPECT_EQ(summarise({}).count, 0U);
    EXPECT_EQ(summarise({}).median, 0.0);
    const Summary one = summarise({7});
    EXPECT_EQ(one.median, 7.0);
    EXPECT_EQ(one.p10, 7.0);
    const Summary many = summarise({10, 0, 20, 40, 30, 50, 60, 70, 80, 90, 100});
    EXPECT_DOUBLE_EQ(many.median, 50.0);
    EXPECT_DOUBLE_EQ(many.p10, 10.0);
    EXPECT_DOUBLE_EQ(many.p90, 90.0);
    EXPECT_DOUBLE_EQ(summarise({1, 3}).median, 2.0);
    const Summary rate = rate_of(many, 1000);
    EXPECT_DOUBLE_EQ(rate.median, 20.0);
    EXPECT_DOUBLE_EQ(rate.p10, 1000.0 / 90) << "a low rate is a long time";
    EXPECT_EQ(rate_of(Summary{}, 5).median, 0.0);
}

// How often a case runs that takes `each_s`, begun when its part has spent `spent_s` of 10 s.
uint32_t repetitions(double each_s, double spent_s, bool small = false) {
    Progress progress{0, 0, spent_s, 10, small};
    while (wants_another(progress)) {
        ++progress.done;
        progress.case_s += each_s;
        progress.part_s += each_s;
    }
    return progress.done;
}

TEST(Statistics, RepetitionsShrinkWithTheBudget) {
    EXPECT_EQ(repetitions(0.001, 0), kRepetitionsWanted);
    EXPECT_EQ(repetitions(0.05, 0), kRepetitionsMin) << "a slow case takes the least";
    EXPECT_EQ(repetitions(0.001, 11), kRepetitionsMin) << "the budget is spent";
    EXPECT_EQ(repetitions(0.001, 15), kRepetitionsLate);
    EXPECT_EQ(repetitions(0.001, 26), 0U) << "left out";
    EXPECT_EQ(repetitions(5, 0), kRepetitionsLate) << "one case does not eat the part";
    EXPECT_EQ(repetitions(0.001, 0, true), 1U);
}

TEST(Output, Text) {
    EXPECT_EQ(bytes_text(640), "640 B");
    EXPECT_EQ(bytes_text(4096), "4 KiB");
    EXPECT_EQ(bytes_text(uint64_t{3} << 30), "3 GiB");
    EXPECT_EQ(bytes_text(1025), "1025 B");
    EXPECT_EQ(number_text(0.5), "0.500");
    EXPECT_EQ(number_text(12.345), "12.35");
    EXPECT_EQ(number_text(123456), "123456");
    Row row{"gather", {{"piece", "512 B"}}, {51.5, 50, 52, 20}, "GB/s", 93.6, "bulk DMA", ""};
    EXPECT_THAT(table_line(row), AllOf(HasSubstr("gather  piece 512 B"), HasSubstr("51.50 GB/s"),
                                       HasSubstr("93.60 % of bulk DMA")));
    EXPECT_THAT(table_line(row), ::testing::Not(HasSubstr("runs)")));
    row.value.count = 5;
    EXPECT_THAT(table_line(row), HasSubstr("(5 runs)"));
}

TEST(Output, JsonHoldsEverything) {
    Report report(nullptr);
    report.fact("gpu", "a \"GPU\"\n");
    report.begin_part("link");
    report.add({"h2d", {{"bytes", "4096"}}, {1.5, 1.25, 1.75, 20}, "GB/s", 50, "bulk", "slow"});
    const double infinity = std::numeric_limits<double>::infinity();
    report.add({"nothing", {}, {infinity, 0, 0, 0}, "us", -1, "", ""});
    report.check("copied bytes", true, "all");
    report.check("gathered bytes", false, "3 differ");
    report.note("sizes shrank");
    report.end_part(2.5, 10);
    EXPECT_EQ(report.check_count(), 2U);
    EXPECT_EQ(report.failed_count(), 1U);
    const nlohmann::json json = nlohmann::json::parse(report.json());
    EXPECT_EQ(json["facts"]["gpu"], "a \"GPU\"\n");
    EXPECT_EQ(json["checks_failed"], 1);
    const nlohmann::json& part = json["parts"][0];
    EXPECT_EQ(part["name"], "link");
    EXPECT_EQ(part["seconds"], 2.5);
    EXPECT_EQ(part["rows"][0]["median"], 1.5);
    EXPECT_EQ(part["rows"][0]["params"]["bytes"], "4096");
    EXPECT_EQ(part["rows"][0]["percent_of"], "bulk");
    EXPECT_TRUE(part["rows"][1]["median"].is_null());
    EXPECT_FALSE(part["rows"][1].contains("percent"));
    EXPECT_EQ(part["checks"].size(), 2U);
    EXPECT_EQ(part["checks"][0]["passed"], false);
    EXPECT_EQ(part["notes"][0], "sizes shrank");
    EXPECT_TRUE(nlohmann::json::accept(Report(nullptr).json()));
    EXPECT_FALSE(report.write_json("/nonexistent/folder/a.json").is_ok());
}

constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint32_t kSpanBytes = 2304;

TEST(PlanSizes, ALargeMachineTakesThemWhole) {
    std::vector<std::string> notes;
    const Plan plan = make_plan({78 * kGiB, 120 * kGiB, 50 << 20, 132}, false, kSpanBytes, notes);
    EXPECT_TRUE(notes.empty()) << notes.front();
    EXPECT_EQ(plan.tokens.back(), 262144U);
    EXPECT_EQ(plan.step_weight_layers, kLayers);
    EXPECT_EQ(plan.pinned_bytes, 2 * kGiB);
    EXPECT_GE(plan.cold_bytes, uint64_t{150} << 20);
    EXPECT_EQ(kLayerWeightBytes, uint64_t{436207616}) << "Llama-3.1-8B: 218 M weights a layer";
}

std::vector<Needs> all_needs(const Plan& plan) {
    return {link_needs(plan),
            gather_needs(plan),
            label_scan_needs(plan, kSpanBytes),
            select_needs(plan),
            resolve_attend_needs(plan),
            step_graph_needs(plan, kSpanBytes),
            write_back_needs(plan)};
}

TEST(PlanSizes, ShrinkUntilTheyFitAndSaySo) {
    for (const uint64_t device : {uint64_t{1} << 28, kGiB, 4 * kGiB, 12 * kGiB, 24 * kGiB}) {
        std::vector<std::string> notes;
        const Plan plan = make_plan({device, kGiB, 50 << 20, 132}, false, kSpanBytes, notes);
        EXPECT_FALSE(notes.empty());
        EXPECT_EQ(plan.pinned_bytes & (plan.pinned_bytes - 1), 0U);
        for (const Needs& needs : all_needs(plan)) {
            EXPECT_LE(needs.device, device);
            EXPECT_LE(needs.pinned, kGiB);
        }
        EXPECT_FALSE(plan.tokens.empty());
        EXPECT_FALSE(plan.step_tokens.empty());
    }
    std::vector<std::string> notes;
    EXPECT_LT(make_plan({12 * kGiB, 64 * kGiB, 50 << 20, 132}, false, kSpanBytes, notes)
                  .step_weight_layers,
              kLayers);
    EXPECT_THAT(notes, ElementsAre(HasSubstr("layers instead of 32")));
}

TEST(PlanSizes, ColdMeansColdForEveryNumberOfRows) {
    std::vector<std::string> notes;
    const Plan plan = make_plan({78 * kGiB, 120 * kGiB, 50 << 20, 132}, false, kSpanBytes, notes);
    for (const uint32_t batch : plan.batches) {
        const uint32_t slots = attend_slots(plan, batch);
        EXPECT_EQ(slots & (slots - 1), 0U);
        for (const uint32_t rows : plan.attend_rows) {
            // Every call but the one that reads a slot again.
            const uint64_t between = uint64_t{slots / rows - 1} * rows * batch * kPieceBytes;
            EXPECT_GE(between, plan.cold_bytes) << rows << " rows, batch " << batch;
        }
        EXPECT_LE(uint64_t{slots} * batch * kPieceBytes, kGiB);
    }
    notes.clear();
    const Plan tight = make_plan({kGiB / 2, kGiB, 50 << 20, 132}, false, kSpanBytes, notes);
    EXPECT_LE(uint64_t{attend_slots(tight, 8)} * 8 * kPieceBytes, kGiB / 2);
    EXPECT_THAT(notes, ::testing::Contains(HasSubstr("attend: at most 1024 rows")));
}

TEST(PlanSizes, GathersShrinkWithTheirNeighbours) {
    std::vector<std::string> notes;
    const Plan plan = make_plan({100 << 20, 64 * kGiB, 50 << 20, 132}, false, kSpanBytes, notes);
    EXPECT_LE(gather_needs(plan).device, uint64_t{100} << 20);
    EXPECT_LT(plan.gemm_size, 4096U);
    EXPECT_THAT(notes, ::testing::Contains(HasSubstr("bytes gathered at a time")));
}

TEST(PlanSizes, ReplaysAreWholeRounds) {
    EXPECT_EQ(whole_rounds(6, 8), 12U);
    EXPECT_EQ(whole_rounds(8, 8), 8U);
    EXPECT_EQ(whole_rounds(64, 4), 64U);
    EXPECT_EQ(whole_rounds(1, 4), 4U);
    EXPECT_EQ(whole_rounds(3, 1), 3U);
}

TEST(PlanSizes, SmallFitsAnything) {
    std::vector<std::string> notes;
    const Plan plan = make_plan({kGiB * 3, kGiB, 50 << 20, 132}, true, kSpanBytes, notes);
    EXPECT_TRUE(notes.empty());
    EXPECT_LE(plan.pinned_bytes + plan.register_bytes, uint64_t{64} << 20);
    EXPECT_GE(plan.step_hot_slots, plan.step_rows);
}

TEST(PlanSizes, HostMemoryIsTheSmallestLimit) {
    const std::string meminfo = "MemTotal: 9 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n";
    EXPECT_EQ(host_free_bytes(meminfo, "", ""), 2048U * 1024);
    EXPECT_EQ(host_free_bytes(meminfo, "max\n", "5\n"), 2048U * 1024);
    EXPECT_EQ(host_free_bytes(meminfo, "1000000\n", "400000\n"), 600000U);
    EXPECT_EQ(host_free_bytes(meminfo, "1000\n", "4000\n"), 0U);
    EXPECT_EQ(host_free_bytes("", "", ""), 0U);
}

TEST(Indices, AreDifferentInRangeAndRepeatable) {
    for (const uint32_t log2 : {1U, 2U, 5U, 10U, 19U}) {
        const uint32_t universe = 1U << log2;
        const uint32_t count = std::min(universe, 4096U);
        const std::vector<uint32_t> random = make_indices(count, log2, Order::random, 3);
        EXPECT_EQ(random, make_indices(count, log2, Order::random, 3));
        const std::set<uint32_t> seen(random.begin(), random.end());
        EXPECT_EQ(seen.size(), count);
        EXPECT_LT(*seen.rbegin(), universe);
        const std::vector<uint32_t> sorted = make_indices(count, log2, Order::sorted, 3);
        EXPECT_TRUE(std::is_sorted(sorted.begin(), sorted.end()));
        EXPECT_TRUE(std::equal(sorted.begin(), sorted.end(), seen.begin()));
    }
    EXPECT_NE(make_indices(64, 19, Order::random, 1), make_indices(64, 19, Order::random, 2));
}

TEST(Indices, RandomOnesSpreadOverTheUniverse) {
    const std::vector<uint32_t> random = make_indices(4096, 20, Order::random, 7);
    std::vector<uint32_t> quarters(16);
    uint32_t neighbours = 0;
    for (size_t i = 0; i < random.size(); ++i) {
        ++quarters[random[i] >> 16];
        if (i > 0 && random[i] == random[i - 1] + 1) ++neighbours;
    }
    for (const uint32_t count : quarters) EXPECT_NEAR(count, 256, 80);
    EXPECT_LT(neighbours, 8U);
}

TEST(Overlaps, CoverAndPaceOfTheBackground) {
    // Four launches of 10 us; alone they take 10.
    const std::vector<double> steady = {0, 10, 20, 30, 40};
    EXPECT_DOUBLE_EQ(overlap_of(steady, 5, 25, 10).covered, 1);
    EXPECT_DOUBLE_EQ(overlap_of(steady, 5, 25, 10).pace, 1);
    EXPECT_DOUBLE_EQ(overlap_of(steady, 5, 25, 5).pace, 0.5) << "twice as slow as alone";
    EXPECT_DOUBLE_EQ(overlap_of(steady, 20, 60, 10).covered, 0.5) << "it ended first";
    EXPECT_DOUBLE_EQ(overlap_of(steady, 20, 60, 10).pace, 1) << "of the covered part";
    // One launch had to wait for the other work to end: 10 us of work in 100.
    EXPECT_NEAR(overlap_of({0, 10, 110, 120}, 10, 110, 10).pace, 0.1, 1e-12);
    EXPECT_DOUBLE_EQ(overlap_of(steady, 50, 60, 10).covered, 0);
    EXPECT_DOUBLE_EQ(overlap_of({0}, 0, 10, 10).pace, 0) << "nothing ran";
}

TEST(Bound, ALayerIsItsBytesAndWhatIsNotHidden) {
    StepBound bound{30e6, 0, 8e6, 8e6, 3e6, 5e4, 0};
    EXPECT_DOUBLE_EQ(layer_bound_us(bound), 38.0 / 3 + 160);
    bound.hidden_us = 100;
    EXPECT_DOUBLE_EQ(layer_bound_us(bound), 38.0 / 3 + 60);
    bound.hidden_us = 1000;
    EXPECT_DOUBLE_EQ(layer_bound_us(bound), 38.0 / 3);
}

}  // namespace
}  // namespace shoal::gpu
