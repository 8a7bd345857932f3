// The tables of the backends, and the one table of shapes that they serve.
#include "kernels/backend.hpp"

#include <bit>

#include "kernels/cpu/cpu.hpp"
#include "kernels/ref/ref.hpp"

namespace shoal::kernels {
namespace {

constexpr Backend kRef = {
    .name = "ref",
    .append = &ref::append,
    .label_encode = &ref::label_encode,
    .label_encode_row = &ref::label_encode_row,
    .label_encode_open = &ref::label_encode_open,
    .label_query = &ref::label_query,
    .label_scan = &ref::label_scan,
    .page_encode = &ref::page_encode,
    .page_extend = &ref::page_extend,
    .page_scan = &ref::page_scan,
    .topk = &ref::topk,
    .attend_part = &ref::attend_part,
    .merge = &ref::merge,
    .prefill = &ref::prefill,
};

constexpr Backend kCpu = {
    .name = "cpu",
    .append = &cpu::append,
    .label_encode = &cpu::label_encode,
    // A few dozen scalar operations each: nothing to gain from vectors.
    .label_encode_row = &ref::label_encode_row,
    .label_encode_open = &ref::label_encode_open,
    .label_query = &ref::label_query,
    .label_scan = &cpu::label_scan,
    .page_encode = &cpu::page_encode,
    .page_extend = &cpu::page_extend,
    .page_scan = &cpu::page_scan,
    .topk = &cpu::topk,
    .attend_part = &cpu::attend_part,
    .merge = &cpu::merge,
    .prefill = &cpu::prefill,
};

// What all backends serve. A row of the table: field, smallest, largest, step.
struct Limit {
    const char* field;
    uint32_t min;
    uint32_t max;
    uint32_t step;
};
constexpr Limit kKHeadDim = {"k_head_dim", 32, 256, 16};
constexpr Limit kVHeadDim = {"v_head_dim", 32, 256, 16};
constexpr Limit kQPerKv = {"q_per_kv", 1, 16, 1};
constexpr Limit kKvHeadCount = {"kv_head_count", 1, UINT32_MAX, 1};

std::string refuse(const Limit& limit, uint32_t value) {
    if (value >= limit.min && value <= limit.max && value % limit.step == 0) return "";
    std::string text = std::string(limit.field) + " = " + std::to_string(value) + ": must be ";
    if (limit.max == UINT32_MAX) return text + std::to_string(limit.min) + " or more";
    text += std::to_string(limit.min) + " to " + std::to_string(limit.max);
    if (limit.step > 1) text += ", a multiple of " + std::to_string(limit.step);
    return text;
}

bool known(DType dtype) {
    return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32 ||
           dtype == DType::q8;
}

}  // namespace

const Backend& ref_backend() { return kRef; }

const Backend& cpu_backend() { return kCpu; }

std::string cpu_target_name() { return cpu::target_name(); }

std::string unsupported_reason(const PieceFormat& format, uint32_t q_per_kv) {
    if (!known(format.k_dtype)) return "k_dtype: must be f16, bf16 or f32";
    if (!known(format.v_dtype)) return "v_dtype: must be f16, bf16 or f32";
    for (const std::string& reason :
         {refuse(kKvHeadCount, format.kv_head_count), refuse(kKHeadDim, format.k_head_dim),
          refuse(kVHeadDim, format.v_head_dim), refuse(kQPerKv, q_per_kv)}) {
        if (!reason.empty()) return reason;
    }
    return "";
}

std::string unsupported_page_reason(uint32_t page_slots) {
    const bool in_range = page_slots >= kPageSlotsMin && page_slots <= kPageSlotsMax;
    if (in_range && std::has_single_bit(page_slots)) return "";
    return "page_slots = " + std::to_string(page_slots) + ": must be a power of two from " +
           std::to_string(kPageSlotsMin) + " to " + std::to_string(kPageSlotsMax);
}

}  // namespace shoal::kernels
