// Long contexts for timing, without reading a long text: the rows of a short sequence's state are
// repeated in the state's own layout. What such a context says is meaningless; how long it takes
// to say it is not. Figures made with it are labelled as a speed test.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/tool/engine.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

// State of sequence 0.
std::vector<uint8_t> save_state(const Engine& engine);
Status load_state(Engine& engine, std::span<const uint8_t> state);

// A state of `cell_count` tokens at positions 0, 1, ... whose rows are those of `state`, repeated.
// Repeated keys differ from the first by up to 6 % in every element: equal ones would tie, ties go
// to the lowest slots, and what is selected would lie together as no text's does. The layout is
// llama.cpp's (llama_kv_cache::state_write); anything else is refused.
Result<std::vector<uint8_t>> replicate_state(std::span<const uint8_t> state, uint32_t cell_count);

}  // namespace shoal::tool
