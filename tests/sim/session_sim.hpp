// A session whose disk, clock and queue are driven by one seed, beside one that keeps all in RAM.
// The production step, cache and I/O engine must answer the same bits, or say which block they
// lost.
#pragma once

#include <cstdint>
#include <string>

#include "tests/sim/sim_disk.hpp"

namespace shoal::sim {

struct Outcome {
    uint64_t answers = 0;            // layers attended by both
    uint64_t answers_after_loss = 0; // of those, by a session that had lost a block before
    // Calls that were refused, by what was said.
    uint64_t corrupt = 0;
    uint64_t unavailable = 0;
    uint64_t reads = 0;              // blocks
    uint64_t kept_in_ram = 0;        // blocks that disk refused to take
    uint64_t hints = 0;              // that the session would use
    uint64_t reconfigured = 0;
    uint64_t given_up = 0;           // steps
    FaultCounts injected;
    uint64_t digest = 0;             // of every operation of the device and every answer
    // What went wrong, with the operation; "" when nothing did.
    std::string difference;

    uint64_t refused() const { return corrupt + unavailable; }
};

// Everything follows from the seed: model, policy, RAM, faults, operations.
Outcome run_seed(uint64_t seed);

}  // namespace shoal::sim
