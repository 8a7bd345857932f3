// The seven parts. Each checks its kernels against the CPU, then times them.
#pragma once

namespace shoal::gpu {

struct Context;

void run_link(Context& context);
void run_gather(Context& context);
void run_label_scan(Context& context);
void run_select(Context& context);
void run_resolve_attend(Context& context);
void run_step_graph(Context& context);
void run_write_back(Context& context);

}  // namespace shoal::gpu
