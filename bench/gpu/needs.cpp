// Array by array as the parts allocate them. The tests hold what a part really held against this,
// so an array that is added to a part and not here fails one.
#include "bench/gpu/needs.hpp"

#include <algorithm>

#include "bench/gpu/scan_format.hpp"

namespace shoal::gpu {
namespace {

constexpr uint64_t kSmall = 1024;          // counters and sums: arrays of a few bytes
constexpr uint64_t kHistogramBytes = 8192;  // of one request

uint64_t gemm_bytes(const Plan& plan) {
    const uint64_t size = plan.gemm_size;
    return 2 * size * plan.gemm_depth * 2 + size * size * 4;
}

// As LabelBuffers. Masks are there twice while those of another length replace them.
uint64_t label_buffer_bytes(const Plan& plan, uint64_t tokens, uint64_t batch, uint64_t sets,
                            uint32_t span_bytes) {
    const uint64_t spans = tokens / kSpanTokens * batch;
    const uint64_t head_sums = batch * 4 * plan.processors * kQueryHeads * 4;
    const uint64_t queries = kKvHeads * (sizeof(ScanHead) + batch * sizeof(ScanQuery));
    return sets * spans * kKvHeads * span_bytes + plan.cold_bytes +
           spans * (kSpanTokens * 4 + 2 * sizeof(ScanMask)) + batch * kHistogramBytes + head_sums +
           queries;
}

// As SelectBuffers: scores and candidates, and under a byte a kilobyte for the parts' counts.
uint64_t select_buffer_bytes(uint64_t tokens, uint64_t rows, uint64_t batch) {
    return batch * (tokens * 8 + tokens / 1024 + kHistogramBytes + rows * 4 + 32) + kSmall;
}

// As ResolveBuffers.
uint64_t resolve_buffer_bytes(uint64_t sets, uint64_t tokens, uint64_t hot_slots, uint64_t ids) {
    return sets * (tokens * 4 + hot_slots * 8 + ids * 16 + 8) + kSmall;
}

// As AttendBuffers: two blocks a multiprocessor, or one for each KV head, leave a partial result.
uint64_t attend_buffer_bytes(const Plan& plan, uint64_t batch) {
    const uint64_t splits = plan.processors / 4 + batch;
    return splits * kQueryHeads * (kHeadDim + 2) * 4 +
           batch * (2 * kQueryHeads * kHeadDim + kQueryHeads + kKvHeads) * 4;
}

}  // namespace

Needs link_needs(const Plan& plan) {
    const uint64_t sample = std::max(plan.dma_sample_bytes, plan.dma_bytes_max);
    return {2 * std::max(plan.stream_bytes, sample) + kSmall,
            std::max(2 * sample, plan.register_bytes)};
}

Needs gather_needs(const Plan& plan) {
    const uint64_t lists = plan.gather_sample_bytes / plan.pieces.front() * 4;
    const uint64_t neighbours = std::min(plan.stream_bytes, kNeighbourReadBytes) +
                                gemm_bytes(plan) + kNeighbourFetchBytes / kPieceBytes * 4;
    const uint64_t staging = std::min(plan.pinned_bytes, kFillChunk);
    // Pinned by the driver, and mapped and registered.
    return {plan.gather_sample_bytes + std::max({lists, neighbours, staging}) + kSmall,
            2 * plan.pinned_bytes};
}

Needs label_scan_needs(const Plan& plan, uint32_t span_bytes) {
    const uint64_t labels =
        label_buffer_bytes(plan, plan.tokens.back(), plan.batches.back(), 2, span_bytes);
    return {std::max(plan.stream_bytes, labels) + kSmall, 0};
}

Needs select_needs(const Plan& plan) {
    const uint64_t tokens = plan.tokens.back();
    const uint64_t batch = plan.batches.back();
    const uint64_t own = 2 * kSelectCalls * batch * kHistogramBytes;
    // CUB: four lists; a sort of pairs keeps two more, and counters by the thousand scores.
    const uint64_t cub = 4 * 4 * tokens + 10 * tokens + (uint64_t{256} << 10);
    return {select_buffer_bytes(tokens, plan.select_rows.back(), batch) + std::max(own, cub), 0};
}

Needs resolve_attend_needs(const Plan& plan) {
    uint64_t most = plan.stream_bytes + kSmall;
    for (const uint64_t batch : plan.batches) {
        const uint64_t slots = attend_slots(plan, static_cast<uint32_t>(batch));
        most = std::max({most,
                         resolve_buffer_bytes(batch, plan.tokens.back(), plan.step_hot_slots,
                                              plan.step_rows),
                         batch * slots * (kPieceBytes + 4) + attend_buffer_bytes(plan, batch)});
    }
    return {most, 0};
}

Needs step_graph_needs(const Plan& plan, uint32_t span_bytes) {
    const uint64_t tokens = plan.step_tokens.back();
    const uint64_t layers = plan.step_layers;
    const uint64_t before = std::max({plan.stream_bytes, std::min(plan.pinned_bytes, kFillChunk),
                                      std::min(plan.dma_bytes_max, plan.pinned_bytes)});
    const uint64_t step =
        label_buffer_bytes(plan, tokens, 1, layers, span_bytes) +
        select_buffer_bytes(tokens, plan.step_rows, 1) +
        resolve_buffer_bytes(layers, tokens, plan.step_hot_slots, plan.step_rows) +
        attend_buffer_bytes(plan, 1) + layers * plan.step_hot_slots * kPieceBytes +
        plan.step_weight_layers * plan.step_weight_bytes;
    return {std::max(before, step) + kSmall, plan.pinned_bytes};
}

Needs write_back_needs(const Plan& plan) {
    const uint64_t rows = uint64_t{plan.batches.back()} * kPieceBytes;
    return {rows + kSmall, kRingSlots * rows + kSmall};
}

}  // namespace shoal::gpu
