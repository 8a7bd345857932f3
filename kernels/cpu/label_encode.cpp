#include "kernels/cpu/cpu.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels::cpu {
void label_encode(const LabelEncodeInput& in, std::byte* span) { ref::label_encode(in, span); }
bool label_encode_row(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* span) {
    return ref::label_encode_row(in, slot_in_span, span);
}
void label_encode_open(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* open) {
    ref::label_encode_open(in, slot_in_span, open);
}
}  // namespace shoal::kernels::cpu
