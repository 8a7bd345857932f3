// The CPU's answer to everything that the GPU is asked, by kernels/ref; and the inputs of both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/gpu/scan_format.hpp"

namespace shoal::gpu {

// Formats and queries of one layer. Labels take 128 bits a token and KV head: 12 channels of 4
// bits and 40 of 2, different channels for each head.
struct LabelModel {
    std::vector<kernels::LabelFormat> formats;  // [kKvHeads]
    std::vector<kernels::LabelQuery> queries;   // [batch, kQueryHeads]
    std::vector<float> lse;                     // [batch, kQueryHeads] log2 domain
    std::vector<ScanHead> scan_heads;           // [kKvHeads]
    std::vector<ScanQuery> scan_queries;        // [batch, kKvHeads]
    uint32_t span_bytes = 0;                    // of one KV head; the same for all
    uint32_t parameter_count = 0;
};
// `scale_max`: the largest range step that the labels will hold.
LabelModel make_label_model(uint32_t batch, float scale_max, uint32_t seed);

// All slots visible; the first 4 and the last 65 of the store are not selectable.
std::vector<ScanMask> make_scan_masks(uint32_t span_count);

// One span of all KV heads by kernels/ref. scores: [128]. head_sums: [kQueryHeads], added to.
void scan_reference(const LabelModel& model, uint32_t request, const std::byte* span,
                    const ScanMask& mask, kernels::Combine combine, float* scores,
                    double* head_sums);

// How far scores are from the reference, in the log2 domain (`max` scores are there already).
// Integer weights of 8 bits cost about 1.5 % of the scores' standard deviation.
struct ScanError {
    double rms_share = 0;      // rms error / standard deviation of the reference
    double max_share = 0;      // largest error / standard deviation
    uint32_t misplaced = 0;    // -inf in one and not in the other, or NaN
    bool acceptable() const { return misplaced == 0 && rms_share < 0.03 && max_share < 0.25; }
    std::string text() const;
};
ScanError compare_scores(const float* scores, const float* expected, size_t count,
                         kernels::Combine combine);

struct Selection {
    std::vector<int32_t> slots;  // [k] ascending, then -1
    float threshold = 0;
    uint32_t count = 0;
};
Selection select_reference(const float* scores, uint32_t slot_count, uint32_t k);

// Scores as a scan gives them: positive, spread over powers of two; some hidden; `distinct` 0: as
// random as a float allows, else so many different values, so that ties decide.
std::vector<float> make_scores(uint32_t count, uint32_t distinct, uint32_t seed);

// Attention of kQueryHeads heads over token pieces in bf16, in list order. out:
// [kQueryHeads, kHeadDim], lse: [kQueryHeads] natural log.
void attend_reference(const std::vector<std::byte*>& pieces, const float* q, float scale,
                      float* out, float* lse);
std::vector<float> make_queries(uint32_t batch, uint32_t seed);

// The slot table of resolve.cuh, one id after another: its definition.
class ResolveModel {
public:
    ResolveModel(uint32_t token_count, uint32_t hot_slot_count, uint32_t grace);

    struct Misses {
        std::vector<uint32_t> from;
        std::vector<uint32_t> to;
    };
    // `slots`: [ids.size()]. Ids are different, or -1.
    Misses step(const std::vector<int32_t>& ids, std::vector<int32_t>& slots);
    const std::vector<int32_t>& owner() const { return owner_; }

private:
    uint32_t victim();

    std::vector<int32_t> table_;
    std::vector<int32_t> owner_;
    std::vector<uint32_t> stamp_;
    uint32_t grace_;
    uint32_t step_ = 0;
    uint32_t hand_ = 0;
    uint32_t scanned_ = 0;  // slots the clock has passed in this step
    uint32_t start_ = 0;    // where it stood
};

// Root of the sum of squared differences / root of the sum of squares of `expected`.
double relative_error(const float* values, const float* expected, size_t count);

}  // namespace shoal::gpu
