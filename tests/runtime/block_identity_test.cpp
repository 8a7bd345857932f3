// What lies on disk is of one life of one store: no other takes it for its own.
#include <map>
#include <set>
#include <vector>

#include "offload/memory_tier.hpp"
#include "offload/tier_wrappers.hpp"
#include "runtime/session_maker.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using offload::Transfer;

// Over memory of its own; keeps the identities of what is written, by place.
class RecordingTier final : public offload::TierWrapper {
public:
    using Identities = std::map<uint64_t, std::set<uint64_t>>;

    RecordingTier(std::span<std::byte> memory, Identities& seen)
        : TierWrapper(std::make_unique<offload::MemoryTier>(memory, 4096)), seen_(seen) {}
    ~RecordingTier() override { close(); }

private:
    void do_start(std::span<Transfer* const> transfers) override {
        for (const Transfer* transfer : transfers) {
            if (transfer->kind != offload::TransferKind::write) continue;
            seen_[transfer->offset].insert(transfer->identity);
        }
        start_in(inner(), transfers);
    }
    Identities& seen_;
};

struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
};

TEST(BlockIdentity, DiffersByStoreAndByItsGeneration) {
    SHOAL_SKIP_IN_RERUNS();
    const ModelShape shape = testing::small_model(2);
    Config config = testing::test_config();
    config.disk.dir = ::testing::TempDir();  // looked at, and not used
    SessionOptions options;
    options.store_count_max = 2;
    options.slots_per_store = 4096;
    options.queries_per_step_max = 16;
    config = testing::with_least_memory(config, shape, options);
    RecordingTier::Identities seen;
    std::unique_ptr<std::byte, Free> memory;
    auto session = SessionMaker::create(
        config, shape, options, [&](const SessionState&, uint64_t bytes) {
            memory.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
            return Result<std::unique_ptr<offload::Tier>>(
                std::make_unique<RecordingTier>(std::span(memory.get(), bytes), seen));
        });
    ASSERT_TRUE(session) << session.status().message();
    std::vector<float> rows(size_t{4096} * 3 * 64, 1.0F);
    const ConstTensor tensor{reinterpret_cast<const std::byte*>(rows.data()), DType::f32, 4096, 3,
                             64, 3 * 64 * 4, 64 * 4};
    std::vector<int64_t> slots(4096);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
    constexpr size_t kLives = 3;
    for (size_t life = 0; life < kLives; ++life) {
        std::vector<StoreId> stores;
        for (uint32_t i = 0; i < 2; ++i) {
            stores.push_back(*(*session)->open());
            for (uint32_t l = 0; l < 2; ++l) {
                ASSERT_TRUE((*session)->put({l}, stores.back(), slots, tensor, tensor));
            }
        }
        for (const StoreId store : stores) ASSERT_TRUE((*session)->close(store));
    }
    size_t places_of_every_life = 0;
    std::set<uint64_t> all;
    size_t count = 0;
    for (const auto& [offset, identities] : seen) {
        EXPECT_LE(identities.size(), kLives) << "one life has one identity";
        places_of_every_life += identities.size() == kLives ? 1 : 0;
        all.insert(identities.begin(), identities.end());
        count += identities.size();
    }
    EXPECT_GT(places_of_every_life, 100U);
    EXPECT_EQ(all.size(), count) << "two places, or two lives, are one";
}

}  // namespace
}  // namespace shoal
