// What a refused call may say: only what happened to the block that it names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/groups.hpp"
#include "runtime/store.hpp"
#include "shoal/session.hpp"
#include "tests/sim/sim_disk.hpp"

namespace shoal::sim {

class Oracle {
public:
    Oracle(const Disk& disk, const ModelShape& shape, const Config& config,
           const SessionOptions& options);

    // "" when a fault since Disk::begin_call(), or one that lasts, explains the refusal; else what
    // is wrong with it.
    std::string objection(const Status& refused) const;

private:
    // Where the blocks of a group of a store lie, in the order in which sessions take the file.
    struct Lane {
        std::string name;            // as in messages
        FilePlace place;
        uint32_t block_bytes = 0;
    };
    bool find_block(const std::string& message, Place& place) const;

    const Disk& disk_;
    std::vector<Lane> lanes_;
};

}  // namespace shoal::sim
