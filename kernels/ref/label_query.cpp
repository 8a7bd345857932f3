// label_query: the query's channels in log2 units, and the steps of its integer weights. Shared
// by all CPU backends: about a microsecond for all heads of a layer.
#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

constexpr float kLog2E = 1.44269504F;

// Calls visit(op, channel index, parameter index) for every channel.
template <typename Visit>
void for_each_code(const LabelFormat& format, Visit visit) {
    for (size_t i = 0; i < format.ops.size(); ++i) {
        for (size_t lane = 0; lane < 4; ++lane) {
            const uint16_t c = format.ops[i].code_index[lane];
            if (c != LabelOp::kNoChannel) visit(format.ops[i], c, 4 * i + lane);
        }
    }
}

}  // namespace

void label_query(const LabelQueryInput& in, LabelQuery& out) {
    const LabelFormat& format = *in.format;
    out.q.resize(format.channels.size());
    for (size_t c = 0; c < format.channels.size(); ++c) {
        out.q[c] = in.q[format.channels[c].channel] * in.scale * kLog2E;
    }
    out.weight.assign(label_parameter_count(format), 0.0F);
    float weight_max[2] = {0, 0};
    for_each_code(format, [&](const LabelOp& op, size_t c, size_t) {
        float& largest = weight_max[op.bits == 8 ? 1 : 0];
        largest = std::max(largest, std::abs(out.q[c]) * in.channel_scale_max[c] /
                                        static_cast<float>(op.factor));
    });
    // 2 x 255 x 64 just fits the 16-bit sums of instruction sets without VNNI.
    // Where no code matters any small step will do, but for q x centre it must not be 0.
    out.step[0] = weight_max[0] > 0.0F ? weight_max[0] / 127.0F : 0x1.0p-20F;
    out.step[1] = weight_max[1] > 0.0F ? weight_max[1] / 64.0F : 0x1.0p-20F;
    for_each_code(format, [&](const LabelOp& op, size_t c, size_t at) {
        const float step = out.step[op.bits == 8 ? 1 : 0] * static_cast<float>(op.factor);
        out.weight[at] = out.q[c] / step;
    });
}

}  // namespace shoal::kernels::ref
