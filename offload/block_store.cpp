#include "offload/block_store.hpp"

#include <numeric>
#include <utility>

namespace shoal::offload {

namespace {

constexpr uint32_t kPieceAlignment = 128;
constexpr uint32_t kBlockUnit = 4096;

}  // namespace

BlockLayout make_block_layout(kernels::PieceFormat format) {
    SHOAL_ASSERT(format.kv_head_count > 0 && format.k_head_dim > 0 && format.v_head_dim > 0);
    const auto k_bytes = static_cast<uint32_t>(format.k_head_dim * dtype_bytes(format.k_dtype));
    const auto v_bytes = static_cast<uint32_t>(format.v_head_dim * dtype_bytes(format.v_dtype));
    const uint32_t payload_bytes = format.kv_head_count * (k_bytes + v_bytes);

    BlockLayout layout;
    layout.format = format;
    layout.format.v_offset_bytes = k_bytes;
    layout.format.row_stride_bytes = k_bytes + v_bytes;
    layout.format.piece_stride_bytes =
        (payload_bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
    layout.padding_bytes = layout.format.piece_stride_bytes - payload_bytes;
    // A multiple of 128 shares a power of two >= 128 with 4096: T is one of 1 .. 32.
    const uint32_t tokens = kBlockUnit / std::gcd(kBlockUnit, layout.format.piece_stride_bytes);
    while ((1U << layout.block_tokens_log2) < tokens) ++layout.block_tokens_log2;
    layout.block_bytes = layout.format.piece_stride_bytes << layout.block_tokens_log2;
    return layout;
}

uint32_t block_count_of(const BlockLayout& layout, uint32_t slot_count) {
    const uint64_t tokens = layout.block_tokens();
    return static_cast<uint32_t>((slot_count + tokens - 1) >> layout.block_tokens_log2);
}

Result<BlockStore> BlockStore::create(Arena& arena, const BlockLayout& layout,
                                      uint32_t slot_count_max) {
    const uint64_t block_count = block_count_of(layout, slot_count_max);
    Result<Region> rows = arena.region(MemoryTag::kv, block_count * layout.block_bytes);
    if (!rows) return rows.status();
    Result<Region> table = arena.region(MemoryTag::index, block_count * sizeof(std::byte*));
    if (!table) return table.status();
    BlockStore store;
    store.layout_ = layout;
    store.slot_count_max_ = slot_count_max;
    store.rows_ = std::move(*rows);
    store.table_ = std::move(*table);
    return store;
}

Status BlockStore::ensure(uint32_t slot_count, const Executor* executor) {
    const uint32_t block_count = block_count_of(layout_, slot_count);
    if (block_count <= block_count_) return Status::ok();
    SHOAL_ASSERT(slot_count <= slot_count_max_);
    SHOAL_TRY(rows_.touch_until(uint64_t{block_count} * layout_.block_bytes, executor));
    SHOAL_TRY(table_.touch_until(uint64_t{block_count} * sizeof(std::byte*)));
    auto* const blocks = table_.as<std::byte*>();
    for (; block_count_ < block_count; ++block_count_) {
        blocks[block_count_] = rows_.data() + uint64_t{block_count_} * layout_.block_bytes;
    }
    return Status::ok();
}

void BlockStore::release_from(uint32_t slot_count) {
    const uint32_t block_count = block_count_of(layout_, slot_count);
    auto* const blocks = table_.as<std::byte*>();
    while (block_count_ > block_count) blocks[--block_count_] = nullptr;
    rows_.release_from(uint64_t{block_count} * layout_.block_bytes);
    table_.release_from(uint64_t{block_count} * sizeof(std::byte*));
}

kernels::KvView BlockStore::view() const {
    return {.format = layout_.format,
            .blocks = table_.as<std::byte*>(),
            .block_tokens_log2 = layout_.block_tokens_log2};
}

}  // namespace shoal::offload
