#include "offload/block_store.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/offload/support.hpp"

namespace shoal::offload {
namespace {

struct LayoutCase {
    kernels::PieceFormat format;
    uint32_t piece_bytes;
    uint32_t padding_bytes;
    uint32_t block_tokens;
    uint32_t block_bytes;
    const char* name;
};

kernels::PieceFormat format_of(DType dtype, uint32_t heads, uint32_t k_dim, uint32_t v_dim) {
    return {.k_dtype = dtype, .v_dtype = dtype, .kv_head_count = heads, .k_head_dim = k_dim,
            .v_head_dim = v_dim};
}

class BlockLayoutTest : public ::testing::TestWithParam<LayoutCase> {};

INSTANTIATE_TEST_SUITE_P(
    Shapes, BlockLayoutTest,
    ::testing::Values(
        LayoutCase{format_of(DType::bf16, 8, 128, 128), 4096, 0, 1, 4096, "llama_8b"},
        LayoutCase{format_of(DType::bf16, 1, 128, 128), 512, 0, 8, 4096, "llama_8b_one_head"},
        LayoutCase{format_of(DType::f16, 3, 64, 64), 768, 0, 16, 12288, "smollm2_135m"},
        LayoutCase{format_of(DType::f32, 3, 64, 64), 1536, 0, 8, 12288, "smollm2_135m_f32"},
        LayoutCase{format_of(DType::f16, 1, 48, 48), 256, 64, 16, 4096, "padded"},
        LayoutCase{format_of(DType::f16, 1, 32, 32), 128, 0, 32, 4096, "smallest"},
        LayoutCase{format_of(DType::f16, 5, 80, 80), 1664, 64, 32, 53248, "odd"},
        LayoutCase{format_of(DType::f16, 1, 192, 128), 640, 0, 32, 20480, "k_longer_than_v"},
        LayoutCase{format_of(DType::q8, 8, 128, 128), 2048, 0, 2, 4096, "llama_8b_q8"},
        LayoutCase{format_of(DType::q8, 3, 64, 64), 384, 0, 32, 12288, "smollm2_135m_q8"},
        LayoutCase{format_of(DType::f32, 128, 256, 256), 262144, 0, 1, 262144, "largest"}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(BlockLayoutTest, FillsWholePages) {
    const LayoutCase& expected = GetParam();
    const BlockLayout layout = make_block_layout(expected.format);
    EXPECT_EQ(layout.format.piece_stride_bytes, expected.piece_bytes);
    EXPECT_EQ(layout.padding_bytes, expected.padding_bytes);
    EXPECT_EQ(layout.block_tokens(), expected.block_tokens);
    EXPECT_EQ(layout.block_bytes, expected.block_bytes);
    EXPECT_EQ(layout.block_bytes % 4096, 0U);
    EXPECT_EQ(layout.format.piece_stride_bytes % 128, 0U);
    const kernels::PieceFormat& format = layout.format;
    EXPECT_EQ(format.v_offset_bytes, format.k_head_dim * dtype_bytes(format.k_dtype));
    EXPECT_EQ(format.row_stride_bytes * format.kv_head_count, layout.payload_bytes());
}

TEST(BlockLayout, MixedDtypes) {
    kernels::PieceFormat format = format_of(DType::f16, 2, 64, 64);
    format.v_dtype = DType::f32;
    const BlockLayout layout = make_block_layout(format);
    EXPECT_EQ(layout.format.v_offset_bytes, 128U);
    EXPECT_EQ(layout.format.row_stride_bytes, 128U + 256U);
    EXPECT_EQ(layout.format.piece_stride_bytes, 768U);
}

TEST(BlockLayout, BlockCountRoundsUp) {
    const BlockLayout layout = make_block_layout(format_of(DType::f16, 3, 64, 64));  // 16 a block
    for (const auto& [slots, blocks] : {std::pair{0U, 0U}, {1U, 1U}, {15U, 1U}, {16U, 1U},
                                        {17U, 2U}, {0x7FFFFFFFU, 1U << 27}}) {
        EXPECT_EQ(block_count_of(layout, slots), blocks) << slots;
    }
}

class BlockStoreTest : public ::testing::Test {
protected:
    BlockStore make(uint32_t slots) {
        Result<BlockStore> store = BlockStore::create(arena_, layout_, slots);
        EXPECT_TRUE(store);
        return std::move(*store);
    }
    Budget budget_{"host.kv_bytes", uint64_t{64} << 30};
    Arena arena_ = Arena::real(budget_, HugePages::advise);
    BlockLayout layout_ = make_block_layout(format_of(DType::f16, 3, 64, 64));
};

TEST_F(BlockStoreTest, CountingEqualsReal) {
    Arena counter = Arena::counting();
    for (const uint32_t slots : {1U, 15U, 16U, 17U, 8191U, 8192U, 100001U}) {
        const uint64_t before = counter.reserved_bytes();
        Result<BlockStore> planned = BlockStore::create(counter, layout_, slots);
        ASSERT_TRUE(planned);
        planned->release_from(0);
        const BlockStore store = make(slots);
        EXPECT_EQ(counter.reserved_bytes() - before, store.reserved_bytes()) << slots;
        EXPECT_EQ(planned->reserved_bytes(), store.reserved_bytes());
        EXPECT_EQ(budget_.used_bytes(), store.reserved_bytes());
    }
}

TEST_F(BlockStoreTest, MetadataIsAtMost24BytesABlock) {
    const BlockStore store = make(1U << 20);
    EXPECT_LE(budget_.used_bytes(MemoryTag::index),
              uint64_t{24} * block_count_of(layout_, 1U << 20));
}

TEST_F(BlockStoreTest, RowsKeepTheirPlaceWhileTheStoreGrows) {
    constexpr uint32_t kSlots = 5000;
    BlockStore store = make(kSlots);
    std::byte* const* const table = store.view().blocks;
    std::byte* first = nullptr;
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
        ASSERT_TRUE(store.ensure(slot + 1));
        ASSERT_GE(store.slot_count(), slot + 1);
        const kernels::KvView view = store.view();
        ASSERT_EQ(view.blocks, table);
        if (slot == 0) first = view.piece(0);
        for (uint32_t head = 0; head < 3; ++head) {
            ASSERT_EQ(*view.k_row(slot, head), std::byte{0});
            std::memset(view.k_row(slot, head), static_cast<int>(slot % 251), 128);
            std::memset(view.v_row(slot, head), static_cast<int>((slot + head) % 239), 128);
        }
    }
    const kernels::KvView view = store.view();
    EXPECT_EQ(view.piece(0), first);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
        for (uint32_t head = 0; head < 3; ++head) {
            ASSERT_EQ(view.k_row(slot, head)[127], std::byte(slot % 251)) << slot;
            ASSERT_EQ(view.v_row(slot, head)[127], std::byte((slot + head) % 239)) << slot;
        }
    }
}

TEST_F(BlockStoreTest, OnlyEnsuredBlocksAreInTheTable) {
    BlockStore store = make(1000);
    ASSERT_TRUE(store.ensure(0));
    EXPECT_EQ(store.slot_count(), 0U);
    EXPECT_EQ(store.view().blocks[0], nullptr);
    ASSERT_TRUE(store.ensure(17));
    EXPECT_EQ(store.slot_count(), 80U);  // a run: 5 blocks of 12 KiB
    EXPECT_NE(store.view().blocks[4], nullptr);
    EXPECT_EQ(store.view().blocks[5], nullptr);
    ASSERT_TRUE(store.ensure(81));
    EXPECT_EQ(store.slot_count(), 160U);
    store.release_from(81);
    EXPECT_EQ(store.slot_count(), 160U);
    store.release_from(80);
    EXPECT_EQ(store.slot_count(), 80U);
    EXPECT_EQ(store.view().blocks[5], nullptr);
    ASSERT_TRUE(store.ensure(1000));
    EXPECT_EQ(store.slot_count(), 1008U);  // the last run is as short as it needs to be
    EXPECT_NE(store.view().blocks[62], nullptr);
}

TEST_F(BlockStoreTest, ReleaseGivesMemoryBack) {
    BlockStore store = make(100000);
    ASSERT_TRUE(store.ensure(100000));
    EXPECT_EQ(store.committed_bytes(), store.reserved_bytes());
    store.release_from(50000);
    EXPECT_LT(arena_.committed_bytes(), store.reserved_bytes() * 55 / 100);
    store.release_from(0);
    EXPECT_EQ(arena_.committed_bytes(), 0U);
    EXPECT_EQ(store.slot_count(), 0U);
    ASSERT_TRUE(store.ensure(1));
    EXPECT_EQ(*store.view().piece(0), std::byte{0});
}

TEST_F(BlockStoreTest, MemoryTakenNeverExceedsWhatWasReserved) {
    std::vector<BlockStore> layers;
    for (uint32_t i = 0; i < 5; ++i) layers.push_back(make(30000 + i));
    const uint64_t reserved = arena_.reserved_bytes(MemoryTag::kv);
    for (uint32_t slots = 0; slots <= 30000; slots += 50) {
        for (BlockStore& layer : layers) ASSERT_TRUE(layer.ensure(slots));
        ASSERT_LE(arena_.committed_bytes(MemoryTag::kv), reserved) << slots;
    }
    for (uint32_t i = 0; i < 5; ++i) ASSERT_TRUE(layers[i].ensure(30000 + i));
    EXPECT_EQ(arena_.committed_bytes(MemoryTag::kv), reserved);
}

// 30 layers that grow together, room for 131,072 tokens: what is in RAM stays within 3 % of what
// the tokens need, and it is all in huge pages where they are to be had.
TEST_F(BlockStoreTest, SmallContextStaysWithinThreePercent) {
    std::vector<BlockStore> layers;
    for (int i = 0; i < 30; ++i) layers.push_back(make(131072));
    uint32_t tokens = 0;
    for (const uint32_t stop : {8000U, 8192U, 8200U}) {
        for (; tokens < stop; tokens = std::min(stop, tokens + 100)) {
            for (BlockStore& layer : layers) ASSERT_TRUE(layer.ensure(tokens));
        }
        for (BlockStore& layer : layers) ASSERT_TRUE(layer.ensure(tokens));
        const uint64_t committed = arena_.committed_bytes(MemoryTag::kv);
        EXPECT_EQ(resident_bytes(layers[0].view().blocks[0], committed + (1 << 20)), committed);
        const double used = 30.0 * 768.0 * tokens;
        EXPECT_LE(static_cast<double>(arena_.committed_bytes()), 1.03 * used) << tokens;
    }
    EXPECT_EQ(arena_.huge_pages_refused(), 0U);
}

TEST_F(BlockStoreTest, AClosedStoreLeavesRoomForTheNext) {
    BlockStore first = make(20000);
    BlockStore second = make(20000);
    for (uint32_t slots = 0; slots <= 20000; slots += 500) {  // their runs lie between each other
        ASSERT_TRUE(first.ensure(slots));
        ASSERT_TRUE(second.ensure(slots));
    }
    std::memset(first.view().piece(19000), 1, 768);
    std::memset(second.view().piece(19000), 2, 768);
    const uint64_t committed = arena_.committed_bytes(MemoryTag::kv);
    first.release_from(0);
    EXPECT_EQ(second.view().piece(19000)[767], std::byte{2});
    BlockStore third = make(20000);
    ASSERT_TRUE(third.ensure(20000));
    EXPECT_EQ(arena_.committed_bytes(MemoryTag::kv), committed);
    for (uint32_t slot = 0; slot < 20000; ++slot) {
        ASSERT_EQ(third.view().piece(slot)[0], std::byte{0}) << slot;
    }
    EXPECT_EQ(second.view().piece(19000)[767], std::byte{2});
}

TEST_F(BlockStoreTest, MovesAndNeverCopies) {
    static_assert(!std::is_copy_constructible_v<BlockStore>);
    static_assert(std::is_nothrow_move_constructible_v<BlockStore>);
    BlockStore a = make(100);
    ASSERT_TRUE(a.ensure(100));
    const uint64_t used = budget_.used_bytes();
    std::byte* const piece = a.view().piece(99);
    BlockStore b(std::move(a));
    EXPECT_EQ(b.view().piece(99), piece);
    EXPECT_EQ(a.slot_count(), 0U);  // NOLINT: a moved-from store is empty
    EXPECT_EQ(budget_.used_bytes(), used);
    a = make(50);
    b = std::move(a);
    EXPECT_LT(budget_.used_bytes(), used);
    b = BlockStore();
    EXPECT_EQ(budget_.used_bytes(), 0U);
    EXPECT_EQ(arena_.committed_bytes(), 0U);
}

TEST_F(BlockStoreTest, RefusedBudgetTakesNothing) {
    const uint64_t needed = make(1000).reserved_bytes();
    Budget small("host.kv_bytes", needed - 1);
    Arena arena = Arena::real(small, HugePages::off);
    const Result<BlockStore> store = BlockStore::create(arena, layout_, 1000);
    ASSERT_FALSE(store);
    EXPECT_EQ(store.status().code(), StatusCode::out_of_memory);
    EXPECT_EQ(small.used_bytes(), 0U);
}

}  // namespace
}  // namespace shoal::offload
