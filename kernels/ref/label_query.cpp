// label_query: the query's channels in log2 units, and the step of every class's weights. Shared
// by all CPU backends: about a microsecond for all heads of a layer.
#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

constexpr float kLog2E = 1.44269504F;

size_t class_of(uint32_t bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

}  // namespace

void label_query(const LabelQueryInput& in, LabelQuery& out) {
    const LabelFormat& format = *in.format;
    out.q.resize(format.channels.size());
    for (size_t c = 0; c < format.channels.size(); ++c) {
        out.q[c] = in.q[format.channels[c].channel] * in.scale * kLog2E;
    }
    out.q_ops.assign(4 * format.ops.size(), 0.0F);
    float weight_max[3] = {0, 0, 0};
    for (size_t i = 0; i < format.ops.size(); ++i) {
        const size_t kind = class_of(format.ops[i].bits);
        for (size_t lane = 0; lane < 4; ++lane) {
            const uint16_t c = format.ops[i].code_index[lane];
            if (c == LabelOp::kNoChannel) continue;
            out.q_ops[4 * i + lane] = out.q[c];
            weight_max[kind] =
                std::max(weight_max[kind], std::abs(out.q[c]) * in.channel_scale_max[c]);
        }
    }
    for (size_t kind = 0; kind < 3; ++kind) {
        // 2 x 255 x 64 just fits the 16-bit sums of instruction sets without VNNI.
        const float weight_limit = kind == 2 ? 64.0F : 127.0F;
        out.step[kind] = weight_max[kind] / weight_limit;
        out.inverse_step[kind] = out.step[kind] > 0.0F ? 1.0F / out.step[kind] : 0.0F;
    }
}

}  // namespace shoal::kernels::ref
