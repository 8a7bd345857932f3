// The definition of every op: plain loops, double accumulation. No SIMD, no shortcuts.
#pragma once

#include "kernels/backend.hpp"

namespace shoal::kernels::ref {

AppendResult append(const AppendInput& in);
void label_encode(const LabelEncodeInput& in, std::byte* span);
bool label_encode_row(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* span);
void label_encode_open(const LabelEncodeInput& in, uint32_t slot_in_span, std::byte* open);
void label_query(const LabelQueryInput& in, LabelQuery& out);
void label_scan(const LabelScanInput& in, LabelScanOutput& out);
void page_encode(const PageEncodeInput& in, std::byte* bounds);
void page_extend(const PageEncodeInput& in, std::byte* bounds);
void page_scan(const PageScanInput& in, PageScanOutput& out);
void topk(const TopkInput& in, TopkOutput& out, void* workspace);
void attend_part(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out);
void merge(const MergeInput& in, const MergeOutput& out);
void prefill(const PrefillInput& in, const PrefillOutput& out, void* workspace,
             const Executor& executor);

}  // namespace shoal::kernels::ref
