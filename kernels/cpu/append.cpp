#include "kernels/cpu/cpu.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::cpu {
AppendResult append(const AppendInput& in) { return ref::append(in); }
}  // namespace shoal::kernels::cpu
