// The whole part on the emulator.
#include "bench/gpu/link.cu"

#include "tests/gpu_facts/part.hpp"

namespace shoal::gpu {
namespace {

TEST(PartLink, RunsWholeAndEveryCheckPasses) {
    const test::PartRun run = test::run_part(Part::link, run_link);
    using Names = std::set<std::string>;
    test::expect_needs(run, link_needs(run.plan));
    for (const std::string row : {"dma h2d", "dma d2h", "dma both at once"}) {
        EXPECT_EQ(run.values(row, "piece"), (Names{"4 KiB", "16 KiB", "64 KiB", "256 KiB"}));
        EXPECT_EQ(run.values(row, "memory"), (Names{"cudaHostAlloc", "registered"}));
    }
    for (const std::string row : {"dma h2d, graph nodes", "dma d2h, graph nodes"}) {
        EXPECT_EQ(run.values(row, "piece"), (Names{"4 KiB", "16 KiB", "64 KiB"}));
    }
    for (const std::string row : {"hbm read", "hbm copy", "cudaHostAlloc"}) {
        EXPECT_EQ(run.values(row, "").size(), 1U) << row;
    }
    EXPECT_EQ(run.values("batch copy h2d", "piece").size(), 4U);
    EXPECT_EQ(run.values("mmap, first touch", "threads").count("1"), 1U);
    EXPECT_EQ(run.values("cudaHostRegister", "chunk"), (Names{"64 KiB", "256 KiB", "1 MiB"}));
}

TEST(RegisteredMemory, IsWholeWhateverTheThreads) {
    for (const uint32_t threads : {1U, 3U, 8U}) {
        const RegisteredMap map(1 << 20, 1 << 16, threads);
        EXPECT_EQ(map.data(), map.device_data());
        EXPECT_EQ(reinterpret_cast<uintptr_t>(map.data()) % kHugePage, 0U);
        for (uint32_t i = 0; i < 1 << 20; i += 4096) ASSERT_EQ(map.data()[i], std::byte{1});
        // Every chunk is registered: none can be once more.
        for (uint32_t i = 0; i < 1 << 20; i += 1 << 16) {
            ASSERT_NE(cudaHostRegister(map.data() + i, 4096, 0), cudaSuccess);
        }
    }
    EXPECT_EQ(held_pinned.now, 0U);
    EXPECT_THROW(RegisteredMap(1 << 20, 1000, 2), std::runtime_error) << "no chunk of whole pages";
    EXPECT_EQ(held_pinned.now, 0U);
}

}  // namespace
}  // namespace shoal::gpu
