// The most memory that each part holds at once, by a plan: what make_plan() shrinks sizes to.
#pragma once

#include <cstdint>

#include "bench/gpu/plan.hpp"

namespace shoal::gpu {

struct Needs {
    uint64_t device = 0;  // bytes
    uint64_t pinned = 0;
};

Needs link_needs(const Plan& plan);
Needs gather_needs(const Plan& plan);
Needs label_scan_needs(const Plan& plan, uint32_t span_bytes);
Needs select_needs(const Plan& plan);
Needs resolve_attend_needs(const Plan& plan);
Needs step_graph_needs(const Plan& plan, uint32_t span_bytes);
Needs write_back_needs(const Plan& plan);

}  // namespace shoal::gpu
