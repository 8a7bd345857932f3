// RAM for blocks that lie on disk: a fixed number of frames, and which block is in which.
//
// A block is read into a frame when a step needs it, stays there while it is of use, and is written
// behind the step that changed it. Only a block that disk holds too may lose its frame:
//
//   free -> reading -> clean -> dirty -> writing -> clean -> free
//             |                                       (dirty again when the write failed)
//             +-> free (failed, or the block was dropped meanwhile)
//
// A wave is what must be in RAM together: everything acquired since begin_wave() keeps its frame
// until the next one. Frames of a transfer that a wait gave up stay aside until it ends.
//
// One thread at a time. Nothing is allocated after create(). Must not outlive its Tier and Arena.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "offload/arena.hpp"
#include "offload/tier.hpp"
#include "shoal/status.hpp"

namespace shoal::offload {

inline constexpr uint32_t kNoFrame = UINT32_MAX;

// What is kept of every block that disk may hold: 16 B, and 8 B of the table of its rows. All zero:
// a block that was never written.
struct BlockEntry {
    uint64_t checksum = 0;         // of what disk holds
    uint32_t frame_plus_1 = 0;     // 0: in no frame
    bool on_disk = false;          // disk holds what the block holds
    bool wanted = false;           // by the wave, and not acquired yet
    uint8_t share = 0;             // as in its frame, when it had one last
    uint8_t round = 0;
    bool has_frame() const { return frame_plus_1 != 0; }
    uint32_t frame() const { return frame_plus_1 - 1; }
};

static_assert(sizeof(BlockEntry) == 16);

// The blocks of one group of one store, for the cache: tables that BlockStore owns.
struct BlockOwner {
    std::byte** table = nullptr;   // [block_count_max] where a block can be read now, or null
    BlockEntry* entries = nullptr; // [block_count_max]
    uint64_t file_offset = 0;      // of block 0
    uint64_t file_stride = 0;      // bytes from a block to the next; 0: block_bytes
    uint64_t identity = 0;         // of the run, the store and its generation, the group
    uint32_t block_bytes = 0;
    std::string name;              // for messages: "store 0, layer 3"
    // Times that its blocks were gone through, about one a step: set by the cache, which takes a
    // block that lies before the one last wanted, in a new wave, for the beginning of another.
    uint8_t round = 0;
    uint32_t last_block = 0;       // wanted
    uint32_t last_wave = 0;
    std::string block_name(uint32_t block) const;
    uint64_t offset_of(uint32_t block) const {
        return file_offset + block * (file_stride == 0 ? block_bytes : file_stride);
    }
};

struct BlockRef {
    BlockOwner* owner = nullptr;
    uint32_t block = 0;
};

struct BlockCacheCounters {
    uint64_t hits = 0;               // blocks acquired that were in RAM
    uint64_t misses = 0;             // that had to be read
    uint64_t prefetched = 0;         // reads started ahead
    uint64_t prefetched_used = 0;    // acquired when it had arrived
    uint64_t prefetched_late = 0;    // acquired while it was under way
    uint64_t prefetched_wasted = 0;  // given up without having been acquired
    uint64_t evictions = 0;
    uint64_t blocks_written = 0;
    uint64_t write_failures = 0;     // blocks that stay in RAM because disk refused them
    uint64_t wait_ns = 0;            // that acquire() waited for reads
    uint64_t write_wait_ns = 0;      // that it waited for a frame to be written and freed
};

class BlockCache {
public:
    struct Options {
        uint32_t frame_count = 0;    // 0 in a plan: only the places in the file are counted
        uint32_t frame_bytes = 0;    // of the largest block; a multiple of 4096
        // Blocks that may be dirty before the oldest are written, and how many are left then.
        uint32_t dirty_high = 0;
        uint32_t dirty_low = 0;
        std::function<void(const std::string&)> warn;  // degraded modes, a line each
    };
    // What a frame takes besides its rows.
    static uint64_t frame_overhead_bytes();

    // Takes frames from `arena`: rows under MemoryTag::kv, the rest under MemoryTag::index. `tier`
    // may be null in a counting arena.
    static Result<std::unique_ptr<BlockCache>> create(Arena& arena, Tier* tier,
                                                      const Options& options);
    // Waits for transfers in flight.
    ~BlockCache();
    BlockCache(const BlockCache&) = delete;
    BlockCache& operator=(const BlockCache&) = delete;

    // A place of `bytes` in the file; owners are created with the session and live as long.
    uint64_t take_file_space(uint64_t bytes);
    uint64_t file_bytes() const { return file_bytes_; }

    void begin_wave();
    // Names a block that this wave is going to need. Cheap for one that the wave holds already.
    void want(BlockOwner& owner, uint32_t block);
    // Blocks that the wave holds and wants; and how many it wants, to go back to that number.
    uint32_t wave_block_count() const { return held_count_ + wanted_.count; }
    uint32_t wanted_count() const { return wanted_.count; }
    void want_only(uint32_t wanted_count);
    // Puts what the wave wants into RAM. Blocks that were never written read as zero. On failure
    // (`corrupt`, `unavailable`, `out_of_memory`: more than there are frames) the message names a
    // block; those that arrived stay.
    Status acquire() {
        start_acquire();
        return finish_acquire();
    }
    // The same in parts: what is done between them, prefetch() too, is done while the reads are
    // under way. `wanted`: only the first so many blocks that were wanted are waited for.
    void start_acquire();
    Status finish_acquire(uint32_t wanted = UINT32_MAX);
    // A block that this wave holds is about to be changed: dirty from now on. Waits while it is
    // being written.
    Status make_dirty(BlockOwner& owner, uint32_t block);
    // Starts to read those that are not in RAM, as far as frames can be had without waiting.
    void prefetch(std::span<const BlockRef> blocks);
    // Starts to write the oldest dirty blocks when there are many; after a layer was served.
    void write_behind();
    // Writes every dirty block and waits.
    Status flush();
    // Forgets blocks [block_begin, block_end) of an owner: RAM and disk.
    void drop(BlockOwner& owner, uint32_t block_begin, uint32_t block_end);

    uint32_t frame_count() const { return options_.frame_count; }
    // Blocks that a wave should hold at most, so that it need not wait for writes.
    uint32_t wave_blocks_max() const;
    uint32_t dirty_count() const { return dirty_count_; }
    const BlockCacheCounters& counters() const { return counters_; }
    void reset_counters() { counters_ = {}; }
    // Bytes of blocks in RAM.
    uint64_t resident_bytes() const {
        return uint64_t{options_.frame_count - free_count_} * options_.frame_bytes;
    }

private:
    enum class FrameState : uint8_t { free, reading, clean, dirty, writing };
    struct Frame {
        Transfer transfer;
        BlockOwner* owner = nullptr;  // null: free, or dropped while in flight
        uint32_t block = 0;
        uint32_t wave = 0;            // the last that acquired it
        uint32_t next = kNoFrame;     // of the free list or the dirty queue
        uint32_t previous = kNoFrame; // of the dirty queue
        FrameState state = FrameState::free;
        uint8_t share = 0;            // of its owner's last rounds that used it, of 255
        uint8_t round = 0;            // of its owner when `share` was that
        bool prefetched = false;      // read ahead and not acquired since
        bool expected = false;        // named by prefetch() and not acquired since
        bool read_again = false;      // for a read that was late
    };
    // A list with room for every frame, in memory that the plan counts.
    template <typename T>
    struct List {
        T* items = nullptr;
        uint32_t count = 0;
        void add(T item) { items[count++] = item; }
        std::span<T> all() const { return {items, count}; }
    };

    BlockCache(Tier* tier, const Options& options) : tier_(tier), options_(options) {}
    void use_memory();
    uint64_t now_ns() const { return tier_->options().clock(); }
    std::byte* memory_of(uint32_t frame) const {
        return rows_.data() + size_t{frame} * options_.frame_bytes;
    }
    BlockEntry& entry_of(const Frame& frame) const { return frame.owner->entries[frame.block]; }

    Status no_frame(const BlockRef& ref) const;
    void hold(uint32_t frame);
    void hold_resident(uint32_t frame);
    Status take_in(const BlockRef& ref);
    Status await_reads(std::span<uint32_t> frames);
    void retry_late_reads(std::span<uint32_t> frames);
    void wait_for(std::span<const uint32_t> frames);
    void start_read(uint32_t frame, const BlockRef& ref);
    void start_queued();
    void end_read(uint32_t frame);
    void put_aside(uint32_t frame);

    uint32_t take_frame();
    uint32_t take_frame_at_once();
    uint32_t take_free_frame();
    uint32_t take_expected_frame();
    uint32_t find_victim();
    static uint8_t share_of(const Frame& frame);
    static void expect(Frame& frame);
    bool may_leave(const Frame& frame) const;
    void own(uint32_t frame, const BlockRef& ref);
    void disown(uint32_t frame);
    void free_frame(uint32_t frame);

    void mark_dirty(uint32_t frame);
    void unlink_dirty(uint32_t frame);
    void forget_write(uint32_t frame);
    bool is_written_late(uint64_t offset) const;
    void start_writes(uint32_t count);
    void end_writes(bool wait);
    void end_write(uint32_t frame);

    Tier* tier_ = nullptr;
    Options options_;
    uint64_t file_bytes_ = 0;
    Region rows_;                      // [frame_count, frame_bytes]
    Region index_;                     // frames, then the lists
    Frame* frames_ = nullptr;          // [frame_count]
    uint32_t free_first_ = kNoFrame;
    uint32_t free_count_ = 0;
    uint32_t dirty_first_ = kNoFrame;  // queue, oldest first
    uint32_t dirty_last_ = kNoFrame;
    uint32_t dirty_count_ = 0;
    uint32_t wave_ = 1;
    uint32_t held_count_ = 0;          // frames of this wave
    bool wants_too_much_ = false;
    Status started_ = Status::ok();    // of start_acquire()
    uint32_t hand_ = 0;
    bool write_refused_ = false;       // disk refused a block: told once
    List<BlockRef> wanted_;            // by this wave
    List<uint32_t> waiting_;           // frames that this acquire() reads, as they were wanted
    List<uint32_t> waiting_for_;       // how many of them are for the first n wanted blocks
    uint32_t waited_for_ = 0;          // of waiting_
    List<uint32_t> writing_;           // frames being written
    List<uint32_t> aside_;             // dropped or given up while in flight
    List<Transfer*> queued_;           // about to be started together
    List<Transfer*> waited_;
    BlockCacheCounters counters_;
};

}  // namespace shoal::offload
