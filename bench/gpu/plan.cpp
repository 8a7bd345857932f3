#include "bench/gpu/plan.hpp"

#include <algorithm>
#include <cstdlib>

#include "bench/gpu/report.hpp"
#include "kernels/views.hpp"
#include "shoal/status.hpp"

namespace shoal::gpu {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

Plan full_plan(const Memory& memory) {
    Plan plan;
    plan.pinned_bytes = 2 * kGiB;
    plan.register_bytes = kGiB;
    plan.stream_bytes = kGiB;
    plan.dma_bytes_max = 64 * kMiB;
    plan.dma_sample_bytes = 128 * kMiB;
    plan.gather_sample_bytes = 32 * kMiB;
    plan.cold_bytes = std::max(3 * memory.l2_bytes, 128 * kMiB);
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

uint64_t label_bytes(uint32_t tokens, uint32_t batch, uint32_t span_bytes) {
    return uint64_t{tokens} / kernels::kSpanSlots * kKvHeads * span_bytes * batch;
}

void drop_long_contexts(std::vector<uint32_t>& tokens, const char* what, uint64_t budget,
                        const std::vector<uint64_t>& bytes, std::vector<std::string>& notes) {
    const size_t before = tokens.size();
    while (tokens.size() > 1 && bytes[tokens.size() - 1] > budget) tokens.pop_back();
    if (tokens.size() != before) {
        notes.push_back(std::string(what) + ": at most " + std::to_string(tokens.back()) +
                        " tokens, device memory is short");
    }
}

}  // namespace

uint64_t step_bytes(const Plan& plan, uint32_t tokens, uint32_t span_bytes) {
    // Labels and hot rows of every layer; slot tables, masks, scores: 4 B a token or less each.
    return plan.step_layers * (label_bytes(tokens, 1, span_bytes) +
                               uint64_t{plan.step_hot_slots} * (kPieceBytes + 16) +
                               uint64_t{tokens} * 4 * 5);
}

uint32_t attend_slots(const Plan& plan, uint32_t batch) {
    const uint64_t call = uint64_t{batch} * plan.attend_rows.back() * kPieceBytes;
    uint32_t slots = 1;
    // A call's own rows twice: its last one may have been read first.
    while (uint64_t{slots} * batch * kPieceBytes < plan.cold_bytes + 2 * call) slots *= 2;
    return slots;
}

uint32_t whole_rounds(uint32_t sets, uint32_t at_least) {
    SHOAL_ASSERT(sets != 0);
    return (std::max(sets, at_least) + sets - 1) / sets * sets;
}

Plan make_plan(const Memory& memory, bool small, uint32_t span_bytes,
               std::vector<std::string>& notes) {
    Plan plan = small ? small_plan() : full_plan(memory);
    // A tenth stays free: the driver's own needs, fragmentation.
    const uint64_t device = memory.device_free_bytes / 10 * 9;
    const uint64_t host = memory.host_free_bytes / 2;
    halve_until(plan.pinned_bytes, 64 * kMiB, "pinned region",
                [&] { return plan.pinned_bytes <= host; }, notes);
    halve_until(plan.register_bytes, 64 * kMiB, "region that is registered",
                [&] { return plan.register_bytes <= host; }, notes);
    halve_until(plan.stream_bytes, 64 * kMiB, "streamed device buffer",
                [&] { return 3 * plan.stream_bytes <= device; }, notes);

    const auto attend_fits = [&] {
        return std::all_of(plan.batches.begin(), plan.batches.end(), [&](uint32_t batch) {
            return attend_slots(plan, batch) * uint64_t{batch} * kPieceBytes <= device;
        });
    };
    const size_t attend_rows = plan.attend_rows.size();
    while (plan.attend_rows.size() > 1 && !attend_fits()) plan.attend_rows.pop_back();
    if (plan.attend_rows.size() != attend_rows) {
        notes.push_back("attend: at most " + std::to_string(plan.attend_rows.back()) +
                        " rows, device memory is short");
    }

    std::vector<uint64_t> scan_bytes;
    for (const uint32_t tokens : plan.tokens) {
        scan_bytes.push_back(
            2 * label_bytes(tokens, plan.batches.back(), span_bytes) + plan.cold_bytes);
    }
    drop_long_contexts(plan.tokens, "label scan", device, scan_bytes, notes);
    std::vector<uint64_t> step_needs;
    for (const uint32_t tokens : plan.step_tokens) {
        step_needs.push_back(step_bytes(plan, tokens, span_bytes) + 2 * plan.stream_bytes);
    }
    drop_long_contexts(plan.step_tokens, "captured step", device, step_needs, notes);
    const uint64_t taken = step_needs[plan.step_tokens.size() - 1];
    const uint64_t left = device > taken ? device - taken : 0;
    const auto fit = static_cast<uint32_t>(
        std::min<uint64_t>(left / plan.step_weight_bytes, plan.step_weight_layers));
    if (fit < plan.step_weight_layers) {
        notes.push_back("captured step: weights of " + std::to_string(fit) + " layers instead of " +
                        std::to_string(plan.step_weight_layers) + ", device memory is short");
        plan.step_weight_layers = fit;
    }
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
