// The rows of one group of one store: all in host memory, or on disk with some of them in RAM.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/views.hpp"
#include "offload/arena.hpp"
#include "offload/block_cache.hpp"
#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal::offload {

// How the pieces of a group's tokens fill blocks.
struct BlockLayout {
    kernels::PieceFormat format;      // strides filled in
    uint32_t block_tokens_log2 = 0;   // a block holds 2^n consecutive slots
    uint32_t block_bytes = 0;         // a multiple of 4096
    uint32_t padding_bytes = 0;       // per token: piece_stride_bytes less K and V
    uint32_t block_tokens() const { return 1U << block_tokens_log2; }
    uint32_t payload_bytes() const { return format.piece_stride_bytes - padding_bytes; }
};

// Fills in the strides of `format` (dtypes, kv_head_count and head dims are read; the rest is
// overwritten): K and V of a head adjacent, heads adjacent, the piece of a token aligned up to
// 128 B. A block is the smallest power of two of tokens whose pieces fill whole 4096 B pages.
BlockLayout make_block_layout(kernels::PieceFormat format);

// Blocks that hold `slot_count` slots.
uint32_t block_count_of(const BlockLayout& layout, uint32_t slot_count);

// Where rows go that do not fit in RAM.
struct SpillTo {
    BlockCache* cache = nullptr;   // null: nowhere, every row stays in RAM
    std::string name;              // for messages: "store 0, layer 3"
    // Where block 0 lies in the file, and how far it is from one block to the next: blocks of
    // layers that attend the same slots lie beside each other, so that one read gets a slot's rows
    // of all of them. Stride 0: one block after the other, in space of the cache's choice.
    uint64_t file_offset = 0;
    uint64_t file_stride = 0;
};

enum class HoldFor : uint8_t { reading, writing };

// Blocks and their table. Move-only. One thread at a time, apart from reads and writes of rows.
// Blocks are found through the table only: where they lie is nobody's business but this class's.
// Metadata: 8 B a block, 24 B with a disk. Must not outlive its Arena and cache. Scales of q8 rows
// lie beside the blocks, for all slots in RAM: 4 B a token and KV head.
//
// With a disk, rows may be read and written only while they are held: by hold(), until the cache's
// next wave. Without one hold() is for nothing, and costs nothing.
class BlockStore {
public:
    BlockStore() = default;
    BlockStore(BlockStore&& other) noexcept;
    BlockStore& operator=(BlockStore&& other) noexcept;
    ~BlockStore();

    // Asks `arena` for memory for `slot_count_max` slots (1 ..), rounded up to whole blocks: rows
    // (kv) from its block pool, or with a disk a place in its file, and metadata (index).
    static Result<BlockStore> create(Arena& arena, const BlockLayout& layout,
                                     uint32_t slot_count_max, const SpillTo& spill = {});

    // Makes slots [0, slot_count), and those that share a run of blocks with them, addressable and
    // puts them into RAM. Rows of new blocks are zero. `slot_count` <= slot_count_max(). Cheap when
    // nothing is to do: call it at the start of each step.
    Status ensure(uint32_t slot_count, const Executor* executor = nullptr);
    // Without a disk: puts `bytes` for blocks to come into RAM at once, by all threads of the
    // executor where that pays.
    Status prepare(uint64_t bytes, const Executor* executor);
    // Becomes what `other` is (same Arena, layout and slot_count_max): rows are shared, run by run,
    // until one of the two is about to write them; with a disk they are copied. Forgets what was
    // there before.
    Status share_from(BlockStore& other);
    // Makes the runs that hold these slots (all below slot_count()) this store's own: call it
    // before rows that may be shared are written. Cheap when nothing is shared.
    Status own(std::span<const int64_t> slots);
    // Forgets runs of blocks whose slots are all >= slot_count. Their memory serves other stores
    // of the Arena, or goes back to the system but for a growth step (offload/arena.hpp).
    void release_from(uint32_t slot_count);

    bool spills() const { return cache_ != nullptr; }
    // What rows written from now on are, mixed into the checksums of their blocks. It holds none.
    void set_identity(uint64_t identity) {
        SHOAL_ASSERT(block_count_ == 0);
        if (owner_ != nullptr) owner_->identity = identity;
    }
    void begin_wave() const {
        if (spills()) cache_->begin_wave();
    }
    // Puts these rows, all below slot_count(), into RAM, for the cache's current wave.
    Status hold(std::span<const int64_t> slots, HoldFor purpose) const;
    Status hold(SlotRange slots, HoldFor purpose) const;
    // Names what hold() would put into RAM, for one acquire() over several stores. Nothing without
    // a disk.
    void want(const kernels::SlotList& slots, uint32_t begin, uint32_t end) const;
    void want(SlotRange slots) const;
    // Starts to read rows that are likely to be wanted, as far as memory allows.
    void prefetch(SlotRange slots) const;
    void prefetch(const kernels::SlotList& slots) const;
    uint32_t blocks_in(const kernels::SlotList& slots) const;  // 1 or more
    // The same rows of several stores that spill to one cache, all of a slot's together.
    static void prefetch(std::span<const BlockStore* const> stores,
                         const kernels::SlotList& slots);
    // `blocks` of the view keeps its address for life; entries of blocks that are not yet ensured,
    // or not in RAM, are null.
    kernels::KvView view() const;
    const BlockLayout& layout() const { return layout_; }
    uint32_t slot_count_max() const { return slot_count_max_; }
    // Slots that are addressable.
    uint32_t slot_count() const { return block_count_ << layout_.block_tokens_log2; }
    uint64_t reserved_bytes() const {
        return (spills() ? 0 : rows_bytes_max()) + table_.bytes() + entries_.bytes() +
               scales_.bytes();
    }
    uint64_t committed_bytes() const {
        return (spills() ? 0 : uint64_t{block_count_} * layout_.block_bytes) +
               table_.committed_bytes() + entries_.committed_bytes() +
               scales_.committed_bytes();
    }

    uint64_t scale_bytes_in_ram() const { return scales_.committed_bytes(); }

private:
    uint32_t block_count_max() const { return block_count_of(layout_, slot_count_max_); }
    uint64_t rows_bytes_max() const { return uint64_t{block_count_max()} * layout_.block_bytes; }
    // Scales of the slots of so many blocks; 0 without q8.
    uint64_t scale_bytes(uint64_t block_count) const {
        return (block_count << layout_.block_tokens_log2) * layout_.format.scale_bytes();
    }
    uint32_t run_blocks() const;
    SlotRange blocks_of(SlotRange slots) const;
    Status own_run(uint32_t run_begin);
    Status create_on_disk(Arena& arena, const SpillTo& spill);
    Status ensure_entries(uint32_t block_count);
    Status copy_from(BlockStore& other);
    void reset();

    Arena* arena_ = nullptr;     // null in a counting Arena
    BlockLayout layout_;
    uint32_t slot_count_max_ = 0;
    uint32_t block_count_ = 0;   // entries of the table that are set: whole runs
    bool may_share_ = false;     // some run may have another user
    Reservation claim_;          // of rows_bytes_max()
    Region table_;               // std::byte* [block_count_max()]
    Region scales_;              // of q8 rows, by slot; in RAM with a disk too
    // With a disk.
    BlockCache* cache_ = nullptr;
    Region entries_;             // BlockEntry [block_count_max()]
    std::unique_ptr<BlockOwner> owner_;
};

}  // namespace shoal::offload
