// One stretch of memory that the blocks of every group share.
//
// A group grows by a few hundred bytes a token, so a group with memory of its own either wastes
// most of a huge page or gets none. Here groups take runs of blocks (about 64 KiB) one after the
// other from memory that grows by whole huge pages: the waste is one huge page and one growth step
// in all, and half a run a group.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "offload/arena.hpp"
#include "shoal/status.hpp"

namespace shoal::offload {

// Belongs to an Arena; one thread at a time.
class BlockPool {
public:
    explicit BlockPool(Arena& arena) : arena_(arena) {}
    BlockPool(const BlockPool&) = delete;
    BlockPool& operator=(const BlockPool&) = delete;

    // A claim to runs of `run_bytes` (the last may be shorter), `bytes` in all, under
    // MemoryTag::kv. Only counts in a counting Arena; otherwise taken from the budget, and to be
    // given back with drop_claim(). After it, take() allocates no heap memory.
    Result<Reservation> claim(uint64_t bytes, uint64_t run_bytes);
    void drop_claim(Reservation& claim);

    // Puts memory for `bytes` of runs to come into RAM at once, by all threads of the executor
    // where that pays. Does nothing while there are runs to use again.
    Status prepare(uint64_t bytes, const Executor* executor);
    // `bytes` (a multiple of kPageBytes) of zeros, in RAM, for one user. Runs taken together never
    // exceed the claims. Runs given back are used again by takers of the same size.
    Result<std::byte*> take(uint64_t bytes);
    // One more user of a run, who gives it back as the first does.
    void share(std::byte* run);
    bool is_shared(std::byte* run) const { return runs_[index_of(run)].users > 1; }
    // One user less. Memory behind the last run in use goes back to the system, but for a growth
    // step.
    void give_back(std::byte* run);

private:
    struct Run {
        uint64_t begin;  // offset in region_
        uint64_t bytes;
        uint32_t users;
    };
    uint64_t end() const { return runs_.empty() ? 0 : runs_.back().begin + runs_.back().bytes; }
    size_t index_of(std::byte* run) const;
    Status map_once();
    Status touch_until(uint64_t offset, const Executor* executor);
    std::byte* reuse(uint64_t bytes);

    Arena& arena_;
    Region region_;              // addresses for the whole budget, mapped by the first take()
    std::vector<Run> runs_;      // ascending and adjacent
    uint64_t run_count_max_ = 0;
    uint64_t claimed_bytes_ = 0;
    uint64_t unused_count_ = 0;  // runs without a user
    std::map<uint64_t, std::vector<size_t>> unused_;  // by bytes: indices in runs_, may be stale
    uint64_t written_end_ = 0;   // memory in front of this may hold what was written once
};

}  // namespace shoal::offload
