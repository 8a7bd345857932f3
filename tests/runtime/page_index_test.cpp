// Page bounds follow every write, overwrite, removal, fork and copy of a store: at any time they
// are the least and the largest of the keys that are there.
#include "runtime/page_index.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/convert.hpp"
#include "runtime/store.hpp"
#include "tests/kernels/test_executor.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kHeads = 2;
constexpr uint32_t kDim = 32;
constexpr uint32_t kSlots = 700;

class PageIndexTest : public ::testing::TestWithParam<uint32_t> {
protected:
    PageIndexTest() : groups_(testing::small_model(1, kHeads, 1, kDim), Config{}) {
        StoreOptions options;
        options.summaries.page_slots = GetParam();
        for (auto& store : stores_) {
            Result<std::unique_ptr<Store>> made =
                Store::create(arena_, groups_, kSlots, options);
            EXPECT_TRUE(made) << made.status().message();
            store = std::move(*made);
            offload::Region& region = store->group(0).page_region;
            EXPECT_TRUE(region.touch_all());
            std::memset(region.data(), 0xff, region.bytes());  // NaN, until a page is encoded
            store->start_pages(kernels::cpu_backend(), GetParam());
        }
    }

    uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }

    void write(Store& store, uint32_t begin, uint32_t end) {
        std::vector<int64_t> slots;
        for (uint32_t slot = begin; slot < end; ++slot) slots.push_back(slot);
        const auto n = static_cast<uint32_t>(slots.size());
        const std::vector<float> keys = rows_.make(n, kHeads, kDim);
        ASSERT_TRUE(store.ensure(std::max(end, store.order().slot_end()), {}));
        ASSERT_TRUE(store.own(slots));
        for (const int64_t slot : slots) store.order().write(static_cast<uint32_t>(slot));
        ASSERT_TRUE(store.write(0, groups_.all()[0], kernels::RowPart::k, slots,
                                testing::tensor_of(keys, n, kHeads, kDim), kernels::cpu_backend(),
                                executor_.get()));
    }

    // A key that f16 cannot hold: the slot counts as never written.
    void write_refused(Store& store, uint32_t slot) {
        const std::vector<float> keys(kHeads * kDim, 1e6F);
        const int64_t slots[1] = {slot};
        ASSERT_TRUE(store.ensure(std::max(slot + 1, store.order().slot_end()), {}));
        ASSERT_TRUE(store.own(slots));
        store.order().write(slot);
        ASSERT_FALSE(store.write(0, groups_.all()[0], kernels::RowPart::k, slots,
                                 testing::tensor_of(keys, 1, kHeads, kDim),
                                 kernels::cpu_backend(), {}));
    }

    // `tight`: nothing but the keys that are there may have left a trace.
    void check(const Store& store, bool tight) {
        const GroupStore& group = store.group(0);
        const kernels::KvView kv = group.rows.view();
        kernels::PageScanInput scan;
        group.pages.describe(kv.format, scan);
        for (uint32_t page = 0; page * GetParam() < store.order().slot_end(); ++page) {
            for (uint32_t i = 0; i < kHeads * kDim; ++i) {
                float low = kInfinity;
                float high = -kInfinity;
                const uint32_t end = std::min((page + 1) * GetParam(), store.order().slot_end());
                for (uint32_t slot = page * GetParam(); slot < end; ++slot) {
                    if (!group.has_row(slot, true)) continue;
                    const float key = kernels::load_element(kv.k_row(slot, i / kDim), DType::f16,
                                                            i % kDim);
                    low = std::min(low, key);
                    high = std::max(high, key);
                }
                if (low > high) continue;  // no key: never read
                const std::byte* bounds = scan.pages + page * scan.page_stride_bytes +
                                          i / kDim * scan.head_stride_bytes;
                const float least = kernels::load_element(bounds, DType::f16, i % kDim);
                const float largest = kernels::load_element(bounds, DType::f16, kDim + i % kDim);
                ASSERT_TRUE(least <= low && largest >= high)
                    << "page " << page << ": " << least << " .. " << largest;
                if (!tight) continue;
                ASSERT_EQ(least, low) << "page " << page << ", number " << i;
                ASSERT_EQ(largest, high) << "page " << page << ", number " << i;
            }
        }
    }

    offload::Budget budget_{"host.kv_bytes", uint64_t{1} << 28};
    offload::Arena arena_ = offload::Arena::real(budget_, offload::HugePages::off);
    Groups groups_;
    std::unique_ptr<Store> stores_[2];
    kernels::test::TestExecutor executor_{2};
    testing::RandomRows rows_{3};
    std::mt19937_64 random_{17};
};

TEST_P(PageIndexTest, AppendInOddPieces) {
    uint32_t end = 0;
    for (const uint32_t n : {1U, 2U, 1U, 60U, 1U, 127U, 64U, 200U, 3U}) {
        write(*stores_[0], end, end + n);
        end += n;
        check(*stores_[0], true);
        if (HasFatalFailure()) return;
    }
    EXPECT_EQ(stores_[0]->group(0).pages.span_count(), (end + 127) / 128);
}

TEST_P(PageIndexTest, AnyUseOfTwoStores) {
    bool tight[2] = {true, true};  // a refused row may leave its old key in the bounds
    for (int round = 0; round < 300; ++round) {
        SCOPED_TRACE("round " + std::to_string(round));
        const uint32_t which = below(2);
        Store& store = *stores_[which];
        Store& other = *stores_[1 - which];
        const uint32_t slot_end = store.order().slot_end();
        switch (below(12)) {
            case 0:
                ASSERT_TRUE(store.truncate(below(slot_end + 1)));
                break;
            case 1:
                ASSERT_TRUE(store.fork_from(other, {}));
                tight[which] = tight[1 - which];
                break;
            case 2: {
                std::vector<int64_t> slots(other.order().slot_end());
                std::iota(slots.begin(), slots.end(), int64_t{0});
                ASSERT_TRUE(store.ensure(other.order().slot_end(), {}));
                ASSERT_TRUE(store.own(slots));
                ASSERT_TRUE(store.copy_part(0, kernels::RowPart::k, other, {}));
                store.order().copy_from(other.order());
                tight[which] = tight[1 - which];
                break;
            }
            case 3:
                if (below(6) != 0) break;
                store.clear();
                tight[which] = true;
                break;
            case 4:
                if (below(6) != 0 || slot_end == 0) break;
                write_refused(store, below(slot_end));
                tight[which] = false;
                break;
            default: {
                const uint32_t begin = below(3) == 0 ? below(kSlots) : slot_end % kSlots;
                const uint32_t count = 1 + below(below(2) == 0 ? 5 : 200);
                write(store, begin, std::min(kSlots, begin + count));
            }
        }
        for (uint32_t i = 0; i < 2; ++i) check(*stores_[i], tight[i]);
        if (HasFatalFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Pages, PageIndexTest, ::testing::Values(4U, 8U, 16U, 32U, 64U));

}  // namespace
}  // namespace shoal
