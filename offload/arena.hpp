// Address space of a session, reserved at once and touched as the context grows.
//
// One function of the runtime lays a session out by asking an Arena for regions. With a counting
// Arena that gives the plan; with a real one, the memory. The bytes agree because it is the same
// function and the same rounding:
//
//   Status lay_out(Arena& arena, Layout& out);          // Result<Region> r = arena.region(...)
//
//   Arena counter = Arena::counting();
//   SHOAL_TRY(lay_out(counter, plan_only));             // counter.reserved_bytes(MemoryTag::kv)
//
//   Budget budget("host.kv_bytes", counter.reserved_bytes());
//   Arena arena = Arena::real(budget, HugePages::advise);
//   SHOAL_TRY(lay_out(arena, layout_));                 // regions have memory
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "offload/budget.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::offload {

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

enum class HugePages : uint8_t { off, advise };

class Arena;
class BlockPool;

// A run of addresses that never moves. Move-only; destruction unmaps it and gives its bytes back
// to the Budget. Must not outlive its Arena. One thread at a time, apart from reads and writes of
// the memory itself.
//
// data() is null in a counting Arena; touch_until() must not be called there.
class Region {
public:
    Region() = default;
    Region(Region&& other) noexcept;
    Region& operator=(Region&& other) noexcept;
    ~Region();

    // Aligned to 4096 B, or to 2 MiB where huge pages are advised and the region has that much.
    std::byte* data() const { return data_; }
    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    uint64_t bytes() const { return bytes_; }                      // a multiple of kPageBytes
    uint64_t committed_bytes() const { return committed_bytes_; }  // in RAM, a prefix of the region
    MemoryTag tag() const { return tag_; }

    // Puts [0, bytes) into RAM, and a little more so that growing by tokens does not come here
    // each time: at most 1/64 of what is committed, or 64 KiB if that is more, and never more than
    // 64 MiB or than the region has. Memory that comes reads as zero. With an executor, long
    // stretches are touched by its threads. `bytes` <= bytes(). Cheap when nothing is to do.
    //
    // Not needed for correctness: memory of a region may be written without it, at the price of a
    // page fault each 4 KiB and of committed_bytes() not knowing.
    // `growth_end`: growing ahead of need stops there.
    Status touch_until(uint64_t bytes, const Executor* executor = nullptr,
                       uint64_t growth_end = UINT64_MAX);
    // Puts all of it into RAM.
    Status touch_all(const Executor* executor = nullptr) { return touch_until(bytes_, executor); }

    // Gives the pages behind `bytes` back to the system; they read as zero when they come again.
    // Keeps up to one growth step and what is left of a huge page, whose contents stay, so that a
    // truncate of a few tokens costs nothing; bytes == 0 keeps nothing.
    void release_from(uint64_t bytes);

private:
    friend class Arena;
    Region(MemoryTag tag, uint64_t bytes) : tag_(tag), bytes_(bytes) {}
    uint64_t growth_step() const;
    Status commit(uint64_t begin, uint64_t end, const Executor* executor);
    void reset();

    Arena* arena_ = nullptr;
    MemoryTag tag_ = MemoryTag::kv;
    Reservation reservation_;
    std::byte* data_ = nullptr;
    uint64_t bytes_ = 0;
    uint64_t committed_bytes_ = 0;
    bool huge_pages_ = false;
};

// Where regions come from. Not movable: regions point at it. region() from one thread at a time;
// the byte counts may be read from any.
class Arena {
public:
    // Adds up what is asked for; maps nothing, refuses nothing.
    static Arena counting() { return Arena(nullptr, HugePages::off); }
    // Takes every region from `budget`, then maps it. `budget` must outlive the Arena.
    static Arena real(Budget& budget, HugePages huge_pages) { return Arena(&budget, huge_pages); }
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    bool is_counting() const { return budget_ == nullptr; }

    // A region of `bytes`, rounded up to kPageBytes; 0 bytes give an empty region. Fails with
    // `out_of_memory` when the budget or the system refuses; nothing is taken then.
    Result<Region> region(MemoryTag tag, uint64_t bytes);

    // Bytes of the regions that live now (counting: of all that were asked for).
    uint64_t reserved_bytes(MemoryTag tag) const { return reserved_[size_t(tag)].load(); }
    uint64_t reserved_bytes() const;
    // Of those, bytes in RAM.
    uint64_t committed_bytes(MemoryTag tag) const { return committed_[size_t(tag)].load(); }
    uint64_t committed_bytes() const;
    // 2 MiB parts for which the system takes no advice. They work, with more TLB misses.
    uint64_t huge_pages_refused() const { return huge_pages_refused_.load(); }

    // Where the blocks of all stores of this Arena come from.
    BlockPool& block_pool();

private:
    friend class Region;
    friend class BlockPool;
    Arena(Budget* budget, HugePages huge_pages);
    Result<Region> map(MemoryTag tag, uint64_t bytes);  // outside the budget

    Budget* budget_;
    HugePages huge_pages_;
    std::array<std::atomic<uint64_t>, kMemoryTagCount> reserved_{};
    std::array<std::atomic<uint64_t>, kMemoryTagCount> committed_{};
    std::atomic<uint64_t> huge_pages_refused_{0};
    std::unique_ptr<BlockPool> pool_;
};

}  // namespace shoal::offload
