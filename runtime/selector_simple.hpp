// The two selectors that look at nothing: everything, and nothing.
#pragma once

#include "runtime/selector.hpp"

namespace shoal {

// Every selectable slot, lowest first, up to `rows`. The baseline and the oracle of "everything".
class DenseSelector {
public:
    uint32_t select(const SelectInput& in, SelectOutput& out);
};

// Nothing: the safety set alone is attended (StreamingLLM, arXiv 2309.17453).
class RecentSelector {
public:
    uint32_t select(const SelectInput&, SelectOutput&) { return 0; }
};

}  // namespace shoal
