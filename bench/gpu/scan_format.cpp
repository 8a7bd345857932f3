#include "bench/gpu/scan_format.hpp"

#include "shoal/status.hpp"

namespace shoal::gpu {

ScanHead make_scan_head(const kernels::LabelFormat& format) {
    SHOAL_ASSERT(format.plane_count == kScanPlanes);
    SHOAL_ASSERT(format.ops.size() <= kScanOpsMax && !format.ops.empty());
    SHOAL_ASSERT(format.narrow_op_count == format.ops.size());
    ScanHead head{};
    for (uint32_t plane = 0; plane < kScanPlanes; ++plane) {
        for (uint32_t i = 0; i < format.ops.size(); ++i) {
            const kernels::LabelOp& op = format.ops[i];
            if (op.plane != plane) continue;
            const uint32_t j = head.op_count++;
            // (dword << left) >> right; the bits that a rotation brings round are masked off.
            head.ops[j] = {(op.right + 32 - op.left) % 32, op.mask};
            head.op_source[j] = i;
            head.half_code[j] = 0.5F * static_cast<float>(((1U << op.bits) - 1U) * op.factor);
        }
        head.plane_end[plane] = head.op_count;
    }
    return head;
}

ScanQuery make_scan_query(const kernels::LabelFormat& format, const ScanHead& head,
                          const kernels::LabelQuery* queries, const float* lse) {
    ScanQuery query{};
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        for (uint32_t j = 0; j < head.op_count; ++j) {
            for (uint32_t b = 0; b < 4; ++b) {
                const uint32_t source = head.op_source[j];
                const uint16_t channel = format.ops[source].code_index[b];
                if (channel == kernels::LabelOp::kNoChannel) continue;
                query.weight[g][4 * j + b] = queries[g].weight[4 * source + b];
                query.q[g][4 * j + b] = queries[g].q[channel];
            }
        }
        query.step[g] = queries[g].step[0];
        query.lse[g] = lse[g];
    }
    return query;
}

}  // namespace shoal::gpu
