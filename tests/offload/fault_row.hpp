// A row of the table of faults: how often it was injected, and what came of it. Printed at the end
// of its test.
#pragma once

#include <cstdint>
#include <cstdio>

namespace shoal::offload {

struct FaultRow {
    const char* name;
    uint64_t cases = 0;
    uint64_t injected = 0;
    uint64_t exact = 0;      // transfers, or runs of a program
    uint64_t refused = 0;
    uint64_t degraded = 0;   // exact, with a counter and a line in the log
    ~FaultRow() {
        const auto number = [](uint64_t value) { return static_cast<unsigned long long>(value); };
        std::printf("  row %-44s %5llu cases %6llu injected %7llu exact %4llu degraded %6llu "
                    "refused\n",
                    name, number(cases), number(injected), number(exact), number(degraded),
                    number(refused));
    }
};

}  // namespace shoal::offload
