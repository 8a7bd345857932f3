#include "bench/gpu/plan.hpp"

#include <algorithm>
#include <cstdlib>

#include "bench/gpu/needs.hpp"
#include "bench/gpu/report.hpp"
#include "shoal/status.hpp"

namespace shoal::gpu {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

Plan full_plan(const Machine& machine) {
    Plan plan;
    plan.pinned_bytes = 2 * kGiB;
    plan.register_bytes = kGiB;
    plan.stream_bytes = kGiB;
    plan.dma_bytes_max = 64 * kMiB;
    plan.dma_sample_bytes = 128 * kMiB;
    plan.gather_sample_bytes = 32 * kMiB;
    plan.cold_bytes = std::max(3 * machine.l2_bytes, 128 * kMiB);
    plan.gemm_size = 4096;
    plan.gemm_depth = 512;
    plan.pieces = {128, 256, 512, 1024, 4096, 8192, 65536};
    plan.ctas = {1, 2, 4, 8, 16, 32, 64};
    plan.tokens = {32768, 65536, 131072, 262144};
    plan.batches = {1, 8};
    plan.select_rows = {1024, 2048};
    plan.attend_rows = {1024, 2048, 4096};
    plan.step_tokens = {131072, 262144};
    plan.step_layers = kLayers;
    plan.step_weight_layers = kLayers;
    plan.step_weight_bytes = kLayerWeightBytes;
    plan.step_rows = 2048;
    plan.step_hot_slots = 4096;
    return plan;
}

Plan small_plan() {
    Plan plan;
    plan.pinned_bytes = 4 * kMiB;
    plan.register_bytes = 8 * kMiB;
    plan.stream_bytes = 4 * kMiB;
    plan.dma_bytes_max = kMiB;
    plan.dma_sample_bytes = kMiB;
    plan.gather_sample_bytes = kMiB;
    plan.cold_bytes = 0;
    plan.gemm_size = 128;
    plan.gemm_depth = 64;
    plan.pieces = {128, 4096, 65536};
    plan.ctas = {1, 3};
    plan.tokens = {2048, 8192};
    plan.batches = {1, 2};
    plan.select_rows = {64, 1024};
    plan.attend_rows = {64, 192};
    plan.step_tokens = {2048};
    plan.step_layers = 3;
    plan.step_weight_layers = 2;
    plan.step_weight_bytes = kMiB;
    plan.step_rows = 128;
    plan.step_hot_slots = 256;
    return plan;
}

// Halves `bytes` until `fits` or it is as small as `floor`.
template <typename Fits>
void halve_until(uint64_t& bytes, uint64_t floor, const char* what, Fits fits,
                 std::vector<std::string>& notes) {
    const uint64_t wanted = bytes;
    while (bytes > floor && !fits()) bytes /= 2;
    if (bytes != wanted) {
        notes.push_back(std::string(what) + ": " + bytes_text(bytes) + " instead of " +
                        bytes_text(wanted) + ", memory is short");
    }
}

// Drops the largest until `fits` or one is left.
template <typename Fits>
void drop_until(std::vector<uint32_t>& values, const char* what, const char* unit, Fits fits,
                std::vector<std::string>& notes) {
    const size_t wanted = values.size();
    while (values.size() > 1 && !fits()) values.pop_back();
    if (values.size() != wanted) {
        notes.push_back(std::string(what) + ": at most " + std::to_string(values.back()) + " " +
                        unit + ", device memory is short");
    }
}

void fit_transfers(Plan& plan, uint64_t device, uint64_t host, std::vector<std::string>& notes) {
    halve_until(plan.pinned_bytes, 64 * kMiB, "pinned region",
                [&] { return gather_needs(plan).pinned <= host; }, notes);
    halve_until(plan.register_bytes, 64 * kMiB, "region that is registered",
                [&] { return plan.register_bytes <= host; }, notes);
    halve_until(plan.stream_bytes, 64 * kMiB, "streamed device buffer",
                [&] { return 3 * plan.stream_bytes <= device; }, notes);
    halve_until(plan.dma_sample_bytes, kMiB, "bytes copied at a time", [&] {
        plan.dma_bytes_max = std::min(plan.dma_bytes_max, plan.dma_sample_bytes);
        return link_needs(plan).device <= device && link_needs(plan).pinned <= host;
    }, notes);
    plan.dma_bytes_max = std::min(plan.dma_bytes_max, plan.dma_sample_bytes);
    const uint32_t gemm_size = plan.gemm_size;
    while (plan.gemm_size > 1024 && gather_needs(plan).device > device) plan.gemm_size /= 2;
    if (plan.gemm_size != gemm_size) {
        notes.push_back("product beside a gather: " + std::to_string(plan.gemm_size) +
                        " rows and columns, device memory is short");
    }
    halve_until(plan.gather_sample_bytes, kMiB, "bytes gathered at a time",
                [&] { return gather_needs(plan).device <= device; }, notes);
}

// What is dropped first is what decides least: long lists, long contexts, the batch, then how
// cold things are.
void fit_kernels(Plan& plan, uint64_t device, uint32_t span_bytes,
                 std::vector<std::string>& notes) {
    const auto attend_fits = [&] { return resolve_attend_needs(plan).device <= device; };
    const auto scan_fits = [&] {
        return std::max(label_scan_needs(plan, span_bytes).device, select_needs(plan).device) <=
               device;
    };
    drop_until(plan.attend_rows, "attend", "rows", attend_fits, notes);
    drop_until(plan.tokens, "label scan and select", "tokens", scan_fits, notes);
    const auto both_fit = [&] { return attend_fits() && scan_fits(); };
    drop_until(plan.batches, "batch", "requests", both_fit, notes);
    halve_until(plan.cold_bytes, kMiB, "bytes between two uses of a buffer", both_fit, notes);
}

void fit_step(Plan& plan, uint64_t device, uint32_t span_bytes, std::vector<std::string>& notes) {
    const uint32_t weight_layers = plan.step_weight_layers;
    const uint32_t layers = plan.step_layers;
    const auto fits = [&] { return step_graph_needs(plan, span_bytes).device <= device; };
    plan.step_weight_layers = 0;
    drop_until(plan.step_tokens, "captured step", "tokens", fits, notes);
    while (plan.step_layers > 1 && !fits()) plan.step_layers /= 2;
    if (plan.step_layers != layers) {
        notes.push_back("captured step: " + std::to_string(plan.step_layers) +
                        " layers instead of " + std::to_string(layers) +
                        ", device memory is short");
    }
    plan.step_weight_layers = weight_layers;
    while (plan.step_weight_layers > 0 && !fits()) --plan.step_weight_layers;
    if (plan.step_weight_layers != weight_layers) {
        notes.push_back("captured step: weights of " + std::to_string(plan.step_weight_layers) +
                        " layers instead of " + std::to_string(weight_layers) +
                        ", device memory is short");
    }
}

}  // namespace

uint32_t attend_slots(const Plan& plan, uint32_t batch) {
    const uint64_t call = uint64_t{batch} * plan.attend_rows.back() * kPieceBytes;
    uint32_t slots = 1;
    // A call's own rows twice: its last one may have been read first.
    while (uint64_t{slots} * batch * kPieceBytes < plan.cold_bytes + 2 * call) slots *= 2;
    return slots;
}

uint32_t log2_of(uint64_t value) {
    SHOAL_ASSERT(value != 0 && (value & (value - 1)) == 0);
    uint32_t log2 = 0;
    while ((value >>= 1) != 0) ++log2;
    return log2;
}

uint32_t whole_rounds(uint32_t sets, uint32_t at_least) {
    SHOAL_ASSERT(sets != 0);
    return (std::max(sets, at_least) + sets - 1) / sets * sets;
}

Plan make_plan(const Machine& machine, bool small, uint32_t span_bytes,
               std::vector<std::string>& notes) {
    Plan plan = small ? small_plan() : full_plan(machine);
    plan.processors = machine.processors;
    // A tenth stays free: the driver's own needs, fragmentation.
    const uint64_t device = machine.device_free_bytes / 10 * 9;
    fit_transfers(plan, device, machine.host_free_bytes / 2, notes);
    fit_kernels(plan, device, span_bytes, notes);
    fit_step(plan, device, span_bytes, notes);
    return plan;
}

uint64_t host_free_bytes(const std::string& meminfo, const std::string& cgroup_max,
                         const std::string& cgroup_current) {
    uint64_t free_bytes = 0;
    const size_t at = meminfo.find("MemAvailable:");
    if (at != std::string::npos) free_bytes = std::strtoull(&meminfo[at + 13], nullptr, 10) * 1024;
    if (cgroup_max.empty() || cgroup_max.compare(0, 3, "max") == 0) return free_bytes;
    const uint64_t limit = std::strtoull(cgroup_max.c_str(), nullptr, 10);
    const uint64_t used = std::strtoull(cgroup_current.c_str(), nullptr, 10);
    return std::min(free_bytes, limit > used ? limit - used : 0);
}

Overlap overlap_of(const std::vector<double>& ends_us, double begin_us, double end_us,
                   double alone_us) {
    Overlap overlap;
    double covered_us = 0;
    double launches = 0;
    for (size_t i = 1; i < ends_us.size(); ++i) {
        const double both = std::min(ends_us[i], end_us) - std::max(ends_us[i - 1], begin_us);
        if (both <= 0) continue;
        covered_us += both;
        launches += both / (ends_us[i] - ends_us[i - 1]);
    }
    if (covered_us <= 0) return overlap;
    overlap.covered = covered_us / (end_us - begin_us);
    overlap.pace = launches * alone_us / covered_us;
    return overlap;
}

std::vector<uint32_t> make_indices(uint32_t count, uint32_t universe_log2, Order order,
                                   uint32_t seed) {
    SHOAL_ASSERT(universe_log2 >= 1 && universe_log2 <= 31);
    const uint32_t mask = (1U << universe_log2) - 1U;
    SHOAL_ASSERT(count <= mask + 1U);
    // Each round is a bijection of [0, 2^n): odd multiplier plus constant, then a shifted xor.
    const uint32_t shift = (universe_log2 + 1) / 2;
    std::vector<uint32_t> indices(count);
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t x = i;
        for (uint32_t round = 0; round < 4; ++round) {
            x = (x * 0x9e3779b1U + seed * 0x85ebca6bU + round * 0xc2b2ae35U) & mask;
            x ^= x >> shift;
        }
        indices[i] = x;
    }
    if (order == Order::sorted) std::sort(indices.begin(), indices.end());
    return indices;
}

double layer_bound_us(const StepBound& bound) {
    const double hbm = (bound.label_bytes + bound.weight_bytes + bound.row_bytes) / bound.hbm_rate;
    const double link = bound.miss_bytes / bound.link_rate;
    return hbm + std::max(0.0, link - bound.hidden_us);
}

}  // namespace shoal::gpu
