// Making a session on a disk, or around a selector, of the caller's: for tests, the simulator and
// benches.
#pragma once

#include <functional>
#include <memory>

#include "runtime/session_state.hpp"

namespace shoal {

// Makes what rows are spilled to, of `bytes`; called once, by create(), when disk.dir is set.
using DiskMaker =
    std::function<Result<std::unique_ptr<offload::Tier>>(const SessionState&, uint64_t bytes)>;

struct SessionMaker {
    // As Session::create(). wrap_selector, if any, is given the selector that the configuration
    // asks for, now and at each reconfigure(), and returns the one that is used.
    static Result<std::unique_ptr<Session>> create(const Config& config, const ModelShape& shape,
                                                   const SessionOptions& options,
                                                   const DiskMaker& make_disk,
                                                   const SelectorWrapper& wrap_selector = {});
};

}  // namespace shoal
