// The rows of one group of one store in host memory.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/views.hpp"
#include "offload/arena.hpp"
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

// Blocks and their table. Move-only. One thread at a time, apart from reads and writes of rows.
// Blocks are found through the table only: where they lie is nobody's business but this class's.
// Metadata: 8 B a block. Must not outlive its Arena.
class BlockStore {
public:
    BlockStore() = default;
    BlockStore(BlockStore&& other) noexcept;
    BlockStore& operator=(BlockStore&& other) noexcept;
    ~BlockStore();

    // Asks `arena` for memory for `slot_count_max` slots (1 ..), rounded up to whole blocks: rows
    // (kv) from its block pool and one region of metadata (index).
    static Result<BlockStore> create(Arena& arena, const BlockLayout& layout,
                                     uint32_t slot_count_max);

    // Makes slots [0, slot_count), and those that share a run of blocks with them, addressable and
    // puts them into RAM. Rows of new blocks are zero. `slot_count` <= slot_count_max(). Cheap when
    // nothing is to do: call it at the start of each step.
    Status ensure(uint32_t slot_count, const Executor* executor = nullptr);
    // Becomes what `other` is (same Arena, layout and slot_count_max): rows are shared, run by run,
    // until one of the two is about to write them. Forgets what was held before.
    Status share_from(BlockStore& other);
    // Makes the runs that hold these slots (all below slot_count()) this store's own: call it
    // before rows that may be shared are written. Cheap when nothing is shared.
    Status own(std::span<const int64_t> slots);
    // Forgets runs of blocks whose slots are all >= slot_count. Their memory serves other stores
    // of the Arena, or goes back to the system but for a growth step (offload/arena.hpp).
    void release_from(uint32_t slot_count);

    // `blocks` of the view keeps its address for life; entries of blocks not yet ensured are null.
    kernels::KvView view() const;
    const BlockLayout& layout() const { return layout_; }
    uint32_t slot_count_max() const { return slot_count_max_; }
    // Slots that are addressable.
    uint32_t slot_count() const { return block_count_ << layout_.block_tokens_log2; }
    uint64_t reserved_bytes() const { return rows_bytes_max() + table_.bytes(); }
    uint64_t committed_bytes() const {
        return uint64_t{block_count_} * layout_.block_bytes + table_.committed_bytes();
    }

private:
    uint32_t block_count_max() const { return block_count_of(layout_, slot_count_max_); }
    uint64_t rows_bytes_max() const { return uint64_t{block_count_max()} * layout_.block_bytes; }
    uint32_t run_blocks() const;
    Status own_run(uint32_t run_begin);
    void reset();

    Arena* arena_ = nullptr;     // null in a counting Arena
    BlockLayout layout_;
    uint32_t slot_count_max_ = 0;
    uint32_t block_count_ = 0;   // entries of the table that are set: whole runs
    bool may_share_ = false;     // some run may have another user
    Reservation claim_;          // of rows_bytes_max()
    Region table_;               // std::byte* [block_count_max()]
};

}  // namespace shoal::offload
