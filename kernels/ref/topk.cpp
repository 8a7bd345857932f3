// topk: sort everything, keep k. The definition every backend is tested against.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/ref/ref.hpp"

namespace shoal::kernels::ref {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t candidate_count(const TopkInput& in) {
    uint64_t count = 0;
    for (uint32_t p = 0; p < in.part_count; ++p) count += in.parts[p].count;
    return count;
}

}  // namespace

void topk(const TopkInput& in, TopkOutput& out, void*) {
    std::vector<uint32_t> order;
    for (uint32_t slot = 0; slot < in.slot_count; ++slot) {
        if (in.scores[slot] != -kInfinity) order.push_back(slot);
    }
    const auto better = [&](uint32_t a, uint32_t b) {
        return in.scores[a] != in.scores[b] ? in.scores[a] > in.scores[b] : a < b;
    };
    std::sort(order.begin(), order.end(), better);
    order.resize(std::min<size_t>(order.size(), in.k));
    out.count = static_cast<uint32_t>(order.size());
    out.threshold = out.count < in.k ? -kInfinity : in.scores[order.back()];
    out.guess_held = candidate_count(in) >= in.k;
    std::sort(order.begin(), order.end());
    std::copy(order.begin(), order.end(), out.slots);
}

}  // namespace shoal::kernels::ref
