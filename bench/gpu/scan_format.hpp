// Labels in the form that the GPU scan takes: made on the host from kernels/label.hpp's formats and
// queries, the same bytes in the spans.
#pragma once

#include <cstdint>

#include "bench/gpu/plan.hpp"
#include "kernels/label.hpp"

namespace shoal::gpu {

inline constexpr uint32_t kScanOpsMax = 16;
inline constexpr uint32_t kScanParametersMax = 4 * kScanOpsMax;
inline constexpr uint32_t kScanPlanes = 4;
inline constexpr uint32_t kSpanTokens = 128;

// Codes of one op out of a dword: a rotation to the right, then a mask.
struct ScanOp {
    uint32_t rotate;
    uint32_t mask;
};

// One KV head's format, its ops ordered by plane. Parameters and weights follow this order too:
// parameter 4 j + b belongs to byte b of op j.
struct ScanHead {
    uint32_t op_count;
    uint32_t plane_end[kScanPlanes];          // ops of plane p: up to here
    ScanOp ops[kScanOpsMax];
    uint32_t op_source[kScanOpsMax];          // the op's place in the span's parameters
    float half_code[kScanOpsMax];             // half the largest code, times the factor
};

// One request's query heads of one KV head.
struct ScanQuery {
    float weight[kQueryPerKv][kScanParametersMax];  // q / step, ordered as ScanHead; 0: no channel
    float q[kQueryPerKv][kScanParametersMax];
    float step[kQueryPerKv];
    float lse[kQueryPerKv];
};

// As kernels::SpanMask.
struct ScanMask {
    uint64_t visible[2];
    uint64_t selectable[2];
};

// `format` has 2- and 4-bit channels, kScanPlanes planes and at most kScanOpsMax ops; anything
// else is refused by an assertion: the bench makes its own formats.
ScanHead make_scan_head(const kernels::LabelFormat& format);
// `queries` and `lse`: kQueryPerKv of them, prepared for `format`.
ScanQuery make_scan_query(const kernels::LabelFormat& format, const ScanHead& head,
                          const kernels::LabelQuery* queries, const float* lse);

}  // namespace shoal::gpu
