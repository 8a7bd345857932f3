#include "offload/block_store.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "offload/block_pool.hpp"

namespace shoal::offload {

namespace {

constexpr uint32_t kPieceAlignment = 128;
constexpr uint32_t kBlockUnit = 4096;
// Half a run is wasted for each group: 1 MiB in 30 layers, of 188 MiB at 8,192 tokens. Shorter runs
// cost little but break up the streams of dense attention.
constexpr uint32_t kRunBytes = 64 << 10;

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

BlockStore::BlockStore(BlockStore&& other) noexcept { *this = std::move(other); }

BlockStore& BlockStore::operator=(BlockStore&& other) noexcept {
    if (this == &other) return *this;
    reset();
    arena_ = std::exchange(other.arena_, nullptr);
    layout_ = other.layout_;
    slot_count_max_ = std::exchange(other.slot_count_max_, 0);
    block_count_ = std::exchange(other.block_count_, 0);
    may_share_ = std::exchange(other.may_share_, false);
    claim_ = std::move(other.claim_);
    table_ = std::move(other.table_);
    scales_ = std::move(other.scales_);
    cache_ = std::exchange(other.cache_, nullptr);
    entries_ = std::move(other.entries_);
    owner_ = std::move(other.owner_);
    return *this;
}

BlockStore::~BlockStore() { reset(); }

void BlockStore::reset() {
    if (arena_ == nullptr) return;
    release_from(0);
    if (!spills()) arena_->block_pool().drop_claim(claim_);
    arena_ = nullptr;
}

Result<BlockStore> BlockStore::create(Arena& arena, const BlockLayout& layout,
                                      uint32_t slot_count_max, const SpillTo& spill) {
    BlockStore store;
    store.layout_ = layout;
    store.slot_count_max_ = slot_count_max;
    Result<Region> table = arena.region(
        MemoryTag::index, uint64_t{store.block_count_max()} * sizeof(std::byte*));
    if (!table) return table.status();
    store.table_ = std::move(*table);
    Result<Region> scales = arena.region(MemoryTag::kv, store.scale_bytes(store.block_count_max()));
    if (!scales) return scales.status();
    store.scales_ = std::move(*scales);
    if (spill.cache != nullptr) {
        SHOAL_TRY(store.create_on_disk(arena, spill));
        return store;
    }
    const uint64_t run_bytes = uint64_t{store.run_blocks()} * layout.block_bytes;
    Result<Reservation> claim = arena.block_pool().claim(store.rows_bytes_max(), run_bytes);
    if (!claim) return claim.status();
    store.claim_ = std::move(*claim);
    if (!arena.is_counting()) store.arena_ = &arena;
    return store;
}

Status BlockStore::create_on_disk(Arena& arena, const SpillTo& spill) {
    Result<Region> entries =
        arena.region(MemoryTag::index, uint64_t{block_count_max()} * sizeof(BlockEntry));
    if (!entries) return entries.status();
    entries_ = std::move(*entries);
    owner_ = std::make_unique<BlockOwner>();
    owner_->table = table_.as<std::byte*>();
    owner_->entries = entries_.as<BlockEntry>();
    owner_->file_offset = spill.file_stride != 0 ? spill.file_offset
                                                 : spill.cache->take_file_space(rows_bytes_max());
    owner_->file_stride = spill.file_stride;
    owner_->block_bytes = layout_.block_bytes;
    owner_->name = spill.name;
    cache_ = spill.cache;
    if (!arena.is_counting()) arena_ = &arena;
    return Status::ok();
}

uint32_t BlockStore::run_blocks() const {
    return std::max(1U, kRunBytes / layout_.block_bytes);
}

Status BlockStore::ensure(uint32_t slot_count, const Executor* executor) {
    const uint32_t block_count = block_count_of(layout_, slot_count);
    if (block_count <= block_count_) return Status::ok();
    SHOAL_ASSERT(arena_ != nullptr && slot_count <= slot_count_max_);
    const uint32_t runs = (block_count + run_blocks() - 1) / run_blocks();
    SHOAL_TRY(scales_.touch_until(
        scale_bytes(std::min(runs * run_blocks(), block_count_max())), executor));
    if (spills()) return ensure_entries(block_count);
    BlockPool& pool = arena_->block_pool();
    const uint64_t new_blocks = block_count - block_count_;
    SHOAL_TRY(pool.prepare(new_blocks * layout_.block_bytes, executor));
    auto* const blocks = table_.as<std::byte*>();
    while (block_count_ < block_count) {
        const uint32_t run_end = std::min(block_count_ + run_blocks(), block_count_max());
        SHOAL_TRY(table_.touch_until(uint64_t{run_end} * sizeof(std::byte*)));
        const uint64_t run_bytes = uint64_t{run_end - block_count_} * layout_.block_bytes;
        Result<std::byte*> run = pool.take(run_bytes);
        if (!run) return run.status();
        for (std::byte* block = *run; block_count_ < run_end; block += layout_.block_bytes) {
            blocks[block_count_++] = block;
        }
    }
    return Status::ok();
}

Status BlockStore::prepare(uint64_t bytes, const Executor* executor) {
    return spills() ? Status::ok() : arena_->block_pool().prepare(bytes, executor);
}

Status BlockStore::ensure_entries(uint32_t block_count) {
    SHOAL_TRY(table_.touch_until(uint64_t{block_count} * sizeof(std::byte*)));
    SHOAL_TRY(entries_.touch_until(uint64_t{block_count} * sizeof(BlockEntry)));
    block_count_ = block_count;
    return Status::ok();
}

Status BlockStore::hold(std::span<const int64_t> slots, HoldFor purpose) const {
    if (!spills()) return Status::ok();
    const auto block_of = [this](int64_t slot) {
        return static_cast<uint32_t>(slot) >> layout_.block_tokens_log2;
    };
    for (const int64_t slot : slots) cache_->want(*owner_, block_of(slot));
    SHOAL_TRY(cache_->acquire());
    if (purpose == HoldFor::reading) return Status::ok();
    for (const int64_t slot : slots) SHOAL_TRY(cache_->make_dirty(*owner_, block_of(slot)));
    return Status::ok();
}

SlotRange BlockStore::blocks_of(SlotRange slots) const {
    return {slots.begin >> layout_.block_tokens_log2,
            std::min(block_count_of(layout_, slots.end), block_count_)};
}

Status BlockStore::hold(SlotRange slots, HoldFor purpose) const {
    if (!spills()) return Status::ok();
    want(slots);
    SHOAL_TRY(cache_->acquire());
    if (purpose == HoldFor::reading) return Status::ok();
    const SlotRange blocks = blocks_of(slots);
    for (uint32_t b = blocks.begin; b < blocks.end; ++b) {
        SHOAL_TRY(cache_->make_dirty(*owner_, b));
    }
    return Status::ok();
}

void BlockStore::want(const kernels::SlotList& slots, uint32_t begin, uint32_t end) const {
    for (uint32_t i = begin; spills() && i < end; ++i) {
        cache_->want(*owner_, slots.at(i) >> layout_.block_tokens_log2);
    }
}

void BlockStore::want(SlotRange slots) const {
    if (!spills()) return;
    const SlotRange blocks = blocks_of(slots);
    for (uint32_t b = blocks.begin; b < blocks.end; ++b) cache_->want(*owner_, b);
}

void BlockStore::prefetch(SlotRange slots) const {
    if (!spills()) return;
    const SlotRange blocks = blocks_of(slots);
    for (uint32_t b = blocks.begin; b < blocks.end;) {
        BlockRef refs[64];
        uint32_t count = 0;
        while (count < 64 && b < blocks.end) refs[count++] = {owner_.get(), b++};
        cache_->prefetch({refs, count});
    }
}

void BlockStore::prefetch(const kernels::SlotList& slots) const {
    const BlockStore* const stores[1] = {this};
    prefetch(stores, slots);
}

uint32_t BlockStore::blocks_in(const kernels::SlotList& slots) const {
    uint32_t count = 1;
    for (uint32_t i = 1; i < slots.count; ++i) {
        if ((slots.at(i - 1) ^ slots.at(i)) >> layout_.block_tokens_log2 != 0) ++count;
    }
    return count;
}

void BlockStore::prefetch(std::span<const BlockStore* const> stores,
                          const kernels::SlotList& slots) {
    constexpr size_t kTogether = 128;
    if (stores.empty() || !stores[0]->spills()) return;
    BlockRef refs[kTogether];
    size_t count = 0;
    const auto start = [&] {
        stores[0]->cache_->prefetch({refs, count});
        count = 0;
    };
    uint32_t last = UINT32_MAX;
    for (uint32_t i = 0; i < slots.count; ++i) {
        const uint32_t block = slots.at(i) >> stores[0]->layout_.block_tokens_log2;
        if (block == last) continue;
        last = block;
        for (const BlockStore* store : stores) {
            SHOAL_ASSERT(block < store->block_count_);
            refs[count++] = {store->owner_.get(), block};
            if (count == kTogether) start();
        }
    }
    start();
}

// In pieces of which two fit into RAM together.
Status BlockStore::copy_from(BlockStore& other) {
    SHOAL_TRY(ensure_entries(other.block_count_));
    const uint32_t step = std::max(1U, cache_->wave_blocks_max() / 2);
    for (uint32_t begin = 0; begin < block_count_; begin += step) {
        const uint32_t end = std::min(begin + step, block_count_);
        cache_->begin_wave();
        for (uint32_t b = begin; b < end; ++b) {
            cache_->want(*other.owner_, b);
            cache_->want(*owner_, b);
        }
        SHOAL_TRY(cache_->acquire());
        for (uint32_t b = begin; b < end; ++b) {
            SHOAL_TRY(cache_->make_dirty(*owner_, b));
            std::memcpy(owner_->table[b], other.owner_->table[b], layout_.block_bytes);
        }
    }
    return Status::ok();
}

Status BlockStore::share_from(BlockStore& other) {
    SHOAL_ASSERT(arena_ == other.arena_ && arena_ != nullptr);
    SHOAL_ASSERT(slot_count_max_ == other.slot_count_max_ &&
                 layout_.block_bytes == other.layout_.block_bytes);
    release_from(0);
    const uint64_t scale_bytes_used = scale_bytes(other.block_count_);
    SHOAL_TRY(scales_.touch_until(scale_bytes_used));
    if (scale_bytes_used != 0) {
        std::memcpy(scales_.data(), other.scales_.data(), scale_bytes_used);
    }
    if (spills()) return copy_from(other);
    SHOAL_TRY(table_.touch_until(uint64_t{other.block_count_} * sizeof(std::byte*)));
    auto* const blocks = table_.as<std::byte*>();
    std::copy_n(other.table_.as<std::byte*>(), other.block_count_, blocks);
    block_count_ = other.block_count_;
    for (uint32_t run = 0; run < block_count_; run += run_blocks()) {
        arena_->block_pool().share(blocks[run]);
    }
    may_share_ = other.may_share_ = block_count_ != 0;
    return Status::ok();
}

Status BlockStore::own(std::span<const int64_t> slots) {
    if (!may_share_) return Status::ok();
    uint32_t last = UINT32_MAX;
    for (const int64_t slot : slots) {
        const uint32_t block = static_cast<uint32_t>(slot) >> layout_.block_tokens_log2;
        SHOAL_ASSERT(block < block_count_);
        const uint32_t run = block / run_blocks();
        if (run != last) SHOAL_TRY(own_run(run * run_blocks()));
        last = run;
    }
    return Status::ok();
}

// The number of runs in use stays within the claims: each store has its own for every run.
Status BlockStore::own_run(uint32_t run_begin) {
    BlockPool& pool = arena_->block_pool();
    auto* const blocks = table_.as<std::byte*>();
    std::byte* const shared = blocks[run_begin];
    if (!pool.is_shared(shared)) return Status::ok();
    const uint32_t run_end = std::min(run_begin + run_blocks(), block_count_max());
    const uint64_t bytes = uint64_t{run_end - run_begin} * layout_.block_bytes;
    Result<std::byte*> run = pool.take(bytes);
    if (!run) return run.status();
    std::memcpy(*run, shared, bytes);
    std::byte* block = *run;
    for (uint32_t i = run_begin; i < run_end; ++i, block += layout_.block_bytes) blocks[i] = block;
    pool.give_back(shared);
    return Status::ok();
}

void BlockStore::release_from(uint32_t slot_count) {
    if (spills()) {
        const uint32_t kept_blocks = std::min(block_count_of(layout_, slot_count), block_count_);
        cache_->drop(*owner_, kept_blocks, block_count_);
        block_count_ = kept_blocks;
        table_.release_from(uint64_t{block_count_} * sizeof(std::byte*));
        entries_.release_from(uint64_t{block_count_} * sizeof(BlockEntry));
        scales_.release_from(scale_bytes(block_count_));
        return;
    }
    const uint32_t runs_kept =
        (block_count_of(layout_, slot_count) + run_blocks() - 1) / run_blocks();
    const uint32_t kept = runs_kept * run_blocks();
    auto* const blocks = table_.as<std::byte*>();
    while (block_count_ > kept) {
        const uint32_t run_begin = (block_count_ - 1) / run_blocks() * run_blocks();
        arena_->block_pool().give_back(blocks[run_begin]);
        while (block_count_ > run_begin) blocks[--block_count_] = nullptr;
    }
    if (block_count_ == 0) may_share_ = false;
    table_.release_from(uint64_t{block_count_} * sizeof(std::byte*));
    scales_.release_from(scale_bytes(block_count_));
}

kernels::KvView BlockStore::view() const {
    return {.format = layout_.format,
            .blocks = table_.as<std::byte*>(),
            .block_tokens_log2 = layout_.block_tokens_log2,
            .scales = scales_.as<uint16_t>()};
}

}  // namespace shoal::offload
