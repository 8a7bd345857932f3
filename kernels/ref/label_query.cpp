// label_query: the query's channels in log2 units, and the step of every class's weights. Shared
// by all CPU backends: about a microsecond for all heads of a layer.
#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

constexpr float kLog2E = 1.44269504F;

size_t class_of(uint32_t bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

// Calls visit(class, channel index, parameter index) for every channel.
template <typename Visit>
void for_each_code(const LabelFormat& format, Visit visit) {
    for (size_t i = 0; i < format.ops.size(); ++i) {
        for (size_t lane = 0; lane < 4; ++lane) {
            const uint16_t c = format.ops[i].code_index[lane];
            if (c != LabelOp::kNoChannel) visit(class_of(format.ops[i].bits), c, 4 * i + lane);
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
    const size_t parameter_count = label_parameter_count(format);
    out.q_ops.assign(parameter_count, 0.0F);
    out.weight.assign(parameter_count, 0.0F);
    out.mid.assign(parameter_count, 0.0F);
    float weight_max[3] = {0, 0, 0};
    for_each_code(format, [&](size_t kind, size_t c, size_t) {
        weight_max[kind] = std::max(weight_max[kind], std::abs(out.q[c]) * in.channel_scale_max[c]);
    });
    // 2 x 255 x 64 just fits the 16-bit sums of instruction sets without VNNI.
    constexpr float kWeightLimit[3] = {127.0F, 127.0F, 64.0F};
    for (size_t kind = 0; kind < 3; ++kind) out.step[kind] = weight_max[kind] / kWeightLimit[kind];
    for_each_code(format, [&](size_t kind, size_t c, size_t at) {
        const float step = out.step[kind];
        out.q_ops[at] = out.q[c];
        out.weight[at] = step > 0.0F ? out.q[c] / step : 0.0F;
        out.mid[at] = step * 0.5F * static_cast<float>((1U << format.channels[c].bits) - 1U);
    });
}

}  // namespace shoal::kernels::ref
