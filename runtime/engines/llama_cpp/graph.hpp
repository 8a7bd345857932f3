// Which nodes of the engine's graphs come to Shoal, and running them.
#pragma once

#include "ggml-backend-impl.h"

namespace shoal::llama_cpp {

// Whether the device runs `op`. Claims everything that touches a KV cache held here, the
// unsupported included: such an op is refused when its memory is asked for, with the reason; left
// to others it would abort the process, or copy the cache around in silence.
bool supports_op(const ggml_tensor& op);

// Runs the nodes of one split, on `thread_count` of the engine's threads. A failure is logged.
ggml_status compute_graph(ggml_cgraph& graph, uint32_t thread_count);

}  // namespace shoal::llama_cpp
