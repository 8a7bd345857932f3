// A session whose disk, clock and queue are driven by one seed, beside one that keeps all in RAM: the
// production step, cache and I/O engine must answer the same bits, or say that they cannot.
#pragma once

#include <cstdint>
#include <string>

#include "tests/sim/sim_disk.hpp"

namespace shoal::sim {

struct Outcome {
    uint64_t answers = 0;     // layers attended by both
    uint64_t refused = 0;     // calls that said a block was lost or late
    uint64_t reads = 0;
    Injected injected;
    // What went wrong, with the operation; "" when nothing did.
    std::string difference;
};

// Everything follows from the seed: model, policy, RAM, faults, operations.
Outcome run_seed(uint64_t seed);

}  // namespace shoal::sim
