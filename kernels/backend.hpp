// One table of functions per backend. `ref` is loops in double and defines every op; the others
// are tested against it on the same cases.
#pragma once

#include <string>

#include "kernels/append.hpp"
#include "kernels/attend.hpp"
#include "kernels/label.hpp"
#include "kernels/page_bounds.hpp"
#include "kernels/prefill.hpp"
#include "kernels/topk.hpp"

namespace shoal::kernels {

// Every function may be called from any thread; two calls must not share an output or a
// workspace. Those of `cpu` allocate nothing, except label_query the first time a LabelQuery is
// used.
struct Backend {
    const char* name = "";

    AppendResult (*append)(const AppendInput& in) = nullptr;

    void (*label_encode)(const LabelEncodeInput& in, std::byte* span) = nullptr;
    bool (*label_encode_row)(const LabelEncodeInput& in, uint32_t slot_in_span,
                             std::byte* span) = nullptr;
    void (*label_encode_open)(const LabelEncodeInput& in, uint32_t slot_in_span,
                              std::byte* open) = nullptr;
    void (*label_query)(const LabelQueryInput& in, LabelQuery& out) = nullptr;
    void (*label_scan)(const LabelScanInput& in, LabelScanOutput& out) = nullptr;

    void (*page_encode)(const PageEncodeInput& in, std::byte* bounds) = nullptr;
    void (*page_extend)(const PageEncodeInput& in, std::byte* bounds) = nullptr;
    void (*page_scan)(const PageScanInput& in, PageScanOutput& out) = nullptr;

    void (*topk)(const TopkInput& in, TopkOutput& out, void* workspace) = nullptr;

    // Writes the state of list entries [begin, end).
    void (*attend_part)(const AttendInput& in, uint32_t begin, uint32_t end,
                        const AttendPartial& out) = nullptr;
    void (*merge)(const MergeInput& in, const MergeOutput& out) = nullptr;
    void (*prefill)(const PrefillInput& in, const PrefillOutput& out, void* workspace,
                    const Executor& executor) = nullptr;
};

const Backend& ref_backend();
// The best instruction set of this machine, chosen at the first call.
const Backend& cpu_backend();
// Instruction set in use, e.g. "AVX3_DL"; for `shoal doctor` and bench output.
std::string cpu_target_name();

// Whether the backends serve this shape; if not, a sentence with the field, its value and what
// is allowed, else "".
std::string unsupported_reason(const PieceFormat& format, uint32_t q_per_kv);
// The same of a page length of page bounds.
std::string unsupported_page_reason(uint32_t page_slots);

}  // namespace shoal::kernels
