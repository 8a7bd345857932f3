// Runs a whole part of gpu_facts on the emulator, at sizes that take a second. Each test that
// includes this includes the part's own source: without nvcc it is built nowhere else.
#pragma once

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <set>
#include <string>
#include <vector>

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/needs.hpp"
#include "bench/gpu/options.hpp"
#include "bench/gpu/parts.hpp"
#include "bench/gpu/reference.hpp"

// With a sanitizer a switch of fibers takes twenty times as long: such a suite runs apart there.
#ifdef SHOAL_SANITIZED
#define SHOAL_LONG_IF_SANITIZED(suite) Long##suite
#else
#define SHOAL_LONG_IF_SANITIZED(suite) suite
#endif

namespace shoal::gpu::test {

struct PartRun {
    Plan plan;
    nlohmann::json json;  // of the part
    uint32_t check_count = 0;
    uint64_t device_peak = 0;
    uint64_t pinned_peak = 0;

    // The rows called `what` have, between them, these values of the parameter.
    std::set<std::string> values(const std::string& what, const std::string& parameter) const {
        std::set<std::string> all;
        for (const auto& row : json["rows"]) {
            if (row["what"] == what) all.insert(row["params"].value(parameter, ""));
        }
        return all;
    }
};

inline DeviceFacts emulated_device() {
    DeviceFacts facts;
    facts.name = "emulator";
    facts.compute_major = 9;
    facts.processor_count = 2;
    facts.has_bulk_copy = true;
    return facts;
}

inline Plan tiny_plan() {
    Plan plan;
    plan.processors = emulated_device().processor_count;
    plan.pinned_bytes = 1 << 20;
    plan.register_bytes = 1 << 20;
    plan.stream_bytes = 1 << 18;
    plan.dma_bytes_max = 1 << 18;
    plan.dma_sample_bytes = 1 << 18;
    plan.gather_sample_bytes = 1 << 17;
    plan.cold_bytes = 1 << 16;
    plan.gemm_size = 128;
    plan.gemm_depth = 64;
    plan.pieces = {128, 512, 4096, 65536};
    plan.ctas = {1, 3};
    plan.tokens = {512, 1024};
    plan.batches = {1, 2};
    plan.select_rows = {16, 64};
    plan.attend_rows = {32, 96};
    plan.step_tokens = {256};
    plan.step_layers = 2;
    plan.step_weight_layers = 2;
    plan.step_weight_bytes = 1 << 14;
    plan.step_rows = 50;
    plan.step_hot_slots = 128;
    return plan;
}

inline PartRun run_part(Part part, void (*run)(Context&), const Plan& plan = tiny_plan()) {
    PartRun result;
    result.plan = plan;
    const DeviceFacts device = emulated_device();
    Report report(nullptr);
    report.begin_part(part_info(part).name);
    held_on_device.peak = held_on_device.now;
    held_pinned.peak = held_pinned.now;
    Context context{report, result.plan, device, true, 1000, now_s()};
    run(context);
    result.device_peak = held_on_device.peak;
    result.pinned_peak = held_pinned.peak;
    EXPECT_EQ(held_on_device.now, 0U);
    EXPECT_EQ(held_pinned.now, 0U);
    result.check_count = report.check_count();
    result.json = nlohmann::json::parse(report.json())["parts"][0];
    EXPECT_GT(result.check_count, 0U);
    for (const auto& check : result.json["checks"]) {
        EXPECT_TRUE(check["passed"]) << check.dump();
    }
    for (const auto& note : result.json["notes"]) ADD_FAILURE() << note;
    return result;
}

// What the plan counts for a part is what it held: never less, and little more.
inline void expect_needs(const PartRun& run, const Needs& needs) {
    EXPECT_LE(run.device_peak, needs.device);
    EXPECT_GE(run.device_peak * 13, needs.device * 10);
    EXPECT_LE(run.pinned_peak, needs.pinned);
    EXPECT_GE(run.pinned_peak * 13, needs.pinned * 10);
}
inline uint32_t label_span_bytes() { return make_label_model(1, kLabelScaleMax, 3).span_bytes; }

}  // namespace shoal::gpu::test
