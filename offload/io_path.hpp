// How a machine reads and writes the spill file.
#pragma once

#include <string>

namespace shoal::offload {

struct IoPath {
    bool is_uring = false;
    std::string text;      // "io_uring (single issuer, deferred task work, registered file,
                           // 256.0 MiB registered)"
    std::string refusal;   // why it is not io_uring, though that was asked for; else ""
};

// What DiskTier::create() would take here, found without a file.
IoPath probe_io_path();

}  // namespace shoal::offload
