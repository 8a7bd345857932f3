// Merge of partial softmax states, head by head, in part order. One read of the states: 4 B per
// channel, head and part, which is little beside the 128 rows or more that made each of them.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/merge.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu.hpp"
#include "kernels/cpu/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr uint32_t kPartsAtOnce = 64;

// Parts of one head [first, first + count): adds factor * state to `out` and to the sum.
HWY_INLINE float add_parts(const MergeInput& in, uint32_t head, uint32_t first, uint32_t count,
                           float max, float* out) {
    const F32Tag d;
    const size_t state_floats = attend_partial_floats(in.q_head_count, in.v_head_dim);
    const float* states = in.partials + first * state_floats;
    HWY_ALIGN float factors[kPartsAtOnce] = {};
    for (uint32_t part = 0; part < count; ++part) {
        factors[part] = states[part * state_floats + head] - max;
    }
    for (uint32_t part = 0; part < count; part += kLanes) {
        hn::Store(exp_below(hn::Load(d, factors + part)), d, factors + part);
    }
    float sum = 0.0F;
    for (uint32_t part = 0; part < count; ++part) {
        const float* state = states + part * state_floats;
        const float* values = state + 2 * size_t{in.q_head_count} + size_t{head} * in.v_head_dim;
        sum += factors[part] * state[in.q_head_count + head];
        const F32Vec factor = hn::Set(d, factors[part]);
        for (uint32_t c = 0; c < in.v_head_dim; c += kLanes) {
            hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, values + c), hn::LoadU(d, out + c)), d,
                       out + c);
        }
    }
    return sum;
}

void merge_here(const MergeInput& in, const MergeOutput& out) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const F32Tag d;
    const size_t state_floats = attend_partial_floats(in.q_head_count, in.v_head_dim);
    for (uint32_t head = 0; head < in.q_head_count; ++head) {
        float* row = out.out + head * out.out_head_stride;
        std::fill_n(row, in.v_head_dim, 0.0F);
        float max = kNone;
        for (uint32_t part = 0; part < in.part_count; ++part) {
            max = std::max(max, in.partials[part * state_floats + head]);
        }
        float sum = 0.0F;
        for (uint32_t part = 0; part < in.part_count && max != kNone; part += kPartsAtOnce) {
            const uint32_t count = std::min(in.part_count - part, kPartsAtOnce);
            sum += add_parts(in, head, part, count, max, row);
        }
        if (out.lse != nullptr) out.lse[head] = max == kNone ? kNone : max + std::log(sum);
        if (max == kNone) continue;
        const F32Vec inverse = hn::Set(d, 1.0F / sum);
        for (uint32_t c = 0; c < in.v_head_dim; c += kLanes) {
            hn::StoreU(hn::Mul(inverse, hn::LoadU(d, row + c)), d, row + c);
        }
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(merge_here);
void merge(const MergeInput& in, const MergeOutput& out) {
    HWY_DYNAMIC_DISPATCH(merge_here)(in, out);
}

}  // namespace shoal::kernels::cpu
#endif
