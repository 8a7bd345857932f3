#include "kernels/cpu/cpu.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels {
size_t topk_workspace_bytes(uint32_t slot_count_max) { return slot_count_max * size_t{8} + 64; }
namespace cpu {
void topk(const TopkInput& in, TopkOutput& out, void* workspace) { ref::topk(in, out, workspace); }
}  // namespace cpu
}  // namespace shoal::kernels
