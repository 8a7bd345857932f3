#include "kernels/cpu/cpu.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::cpu {
void label_scan(const LabelScanInput& in, LabelScanOutput& out) { ref::label_scan(in, out); }
}  // namespace shoal::kernels::cpu
