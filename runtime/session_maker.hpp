// Making a session on a disk of the caller's: for tests and the simulator.
#pragma once

#include <functional>
#include <memory>

#include "runtime/session_state.hpp"

namespace shoal {

// Makes what rows are spilled to, of `bytes`; called once, by create(), when disk.dir is set.
using DiskMaker =
    std::function<Result<std::unique_ptr<offload::Tier>>(const SessionState&, uint64_t bytes)>;

struct SessionMaker {
    // As Session::create().
    static Result<std::unique_ptr<Session>> create(const Config& config, const ModelShape& shape,
                                                   const SessionOptions& options,
                                                   const DiskMaker& make_disk);
};

}  // namespace shoal
