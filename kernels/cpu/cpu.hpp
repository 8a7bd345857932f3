// The CPU backend: SIMD through Highway, instruction set chosen at run time.
#pragma once

#include "kernels/backend.hpp"

namespace shoal::kernels::cpu {

// Highway's name of the instruction set in use.
const char* target_name();

AppendResult append(const AppendInput& in);
AppendResult append_q8(const AppendInput& in);  // to rows of q8
void label_encode(const LabelEncodeInput& in, std::byte* span);
void label_scan(const LabelScanInput& in, LabelScanOutput& out);
void page_encode(const PageEncodeInput& in, std::byte* bounds);
void page_extend(const PageEncodeInput& in, std::byte* bounds);
void page_scan(const PageScanInput& in, PageScanOutput& out);
void topk(const TopkInput& in, TopkOutput& out, void* workspace);
void attend_part(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out);
void merge(const MergeInput& in, const MergeOutput& out);
void prefill(const PrefillInput& in, const PrefillOutput& out, void* workspace,
             const Executor& executor);

}  // namespace shoal::kernels::cpu
