// A step allocates nothing once a session has warmed up: an engine calls it for every layer of
// every token, and an allocation there is a lock, and a way to run out of memory half way.
#include <cstdlib>
#include <new>

#include "tests/runtime/session_support.hpp"

namespace {

// Of this thread: a worker that wakes up allocates while it binds itself to its core.
thread_local uint64_t allocation_count = 0;

#ifndef SHOAL_SANITIZED  // a sanitizer counts with an allocator of its own
void* counted(size_t bytes) {
    ++allocation_count;
    if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
    throw std::bad_alloc();
}
#endif

}  // namespace

#ifndef SHOAL_SANITIZED

// Of the whole test program; aligned forms fall back on the library's own.
void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace shoal {
namespace {

struct Bed {
    ModelShape shape = testing::small_model();
    std::unique_ptr<Session> session;
    StoreId stores[1];
    std::vector<float> k, v, q, out;
    uint32_t depth = 0;

    explicit Bed(const Config& config, uint32_t tokens_max) {
        SessionOptions options;
        options.slots_per_store = 4096;
        options.queries_per_step_max = tokens_max;
        session = std::move(*Session::create(config, shape, options));
        stores[0] = *session->open();
        testing::RandomRows rows(7);
        k = rows.make(tokens_max, 3, 64);
        v = rows.make(tokens_max, 3, 64);
        q = rows.make(tokens_max, 9, 64);
        out.resize(q.size());
    }

    // Allocations between begin_step and end_step, of a step with a hole in what is visible.
    uint64_t step(uint32_t tokens) {
        const uint32_t offsets[2] = {0, tokens};
        depth += tokens;
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (uint32_t i = 0; i < tokens; ++i) {
            const uint32_t end = depth - tokens + i + 1;
            if (end > 64) ranges.push_back({0, 32});
            ranges.push_back({end > 64 ? 40U : 0U, end});
            range_offsets.push_back(static_cast<uint32_t>(ranges.size()));
        }
        const Visibility visibility{offsets, range_offsets, ranges, depth};
        StepInput input;
        input.stores = stores;
        input.token_offsets = offsets;
        const Tensor to{out.data(), tokens, 9, 64, 9 * 64 * 4, 64 * 4};
        const uint64_t before = allocation_count;
        bool good = session->begin_step(input).is_ok();
        for (uint32_t l = 0; l < shape.layers.size(); ++l) {
            good = good &&
                   session->append({l}, testing::tensor_of(k, tokens, 3, 64),
                                   testing::tensor_of(v, tokens, 3, 64)).is_ok() &&
                   session->attend({l}, testing::tensor_of(q, tokens, 9, 64), visibility, to)
                       .is_ok();
        }
        good = good && session->end_step().is_ok();
        const uint64_t after = allocation_count;
        EXPECT_TRUE(good);
        return after - before;
    }
};

class Allocation : public ::testing::TestWithParam<SelectorKind> {};

TEST_P(Allocation, NoneInAStepOfAWarmSession) {
#ifdef SHOAL_SANITIZED
    GTEST_SKIP() << "allocations are not counted under a sanitizer";
#endif
    Config config = testing::test_config(16);
    config.stats.recall_every = 2;
    config.selector.kind = GetParam();
    config.budget.adaptive = GetParam() == SelectorKind::page_bounds;
    if (GetParam() == SelectorKind::hybrid) {
        config.sharing.kind = SharingKind::tidal;
        config.sharing.anchors = {1};
    }
    Bed bed(config, 300);
    for (int i = 0; i < 3; ++i) bed.step(300);  // learns, then makes labels
    for (int i = 0; i < 8; ++i) bed.step(1);
    EXPECT_GT(bed.session->stats().queries_sparse, 0U);
    EXPECT_TRUE(bed.session->stats().recall_samples > 0 || testing::rerun_as("disk"));
    uint64_t allocations = 0;
    for (int i = 0; i < 300; ++i) allocations += bed.step(1);
    for (int i = 0; i < 3; ++i) allocations += bed.step(4);
    for (int i = 0; i < 3; ++i) allocations += bed.step(300);
    EXPECT_EQ(allocations, 0U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Allocation,
                         ::testing::Values(SelectorKind::labels, SelectorKind::page_bounds,
                                           SelectorKind::hybrid));

}  // namespace
}  // namespace shoal
