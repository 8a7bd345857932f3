// What every selector keeps to, whatever its kind: runtime/selector.hpp. A new kind is one line of
// kKinds.
#include <numeric>

#include "tests/kernels/test_executor.hpp"
#include "tests/runtime/selector_support.hpp"

namespace shoal {
namespace {

using testing::Query;
using testing::Selected;
using testing::SelectorStore;
using testing::StoreShape;

struct KindCase {
    const char* name;
    SelectorKind kind;
    LabelBits label_bits = LabelBits::mixed;
    CombineKind combine = CombineKind::sum;
    uint32_t page = 16;
    bool fills = true;         // returns min(rows, selectable) slots
    bool uses_history = true;  // what it returns may follow from earlier queries
};

const std::vector<KindCase> kKinds{
    {"labels_mixed", SelectorKind::labels, LabelBits::mixed},
    {"labels_2", SelectorKind::labels, LabelBits::bits2},
    {"labels_4", SelectorKind::labels, LabelBits::bits4},
    {"labels_8", SelectorKind::labels, LabelBits::bits8},
    {"labels_16", SelectorKind::labels, LabelBits::bits16},
    {"labels_mixed_max", SelectorKind::labels, LabelBits::mixed, CombineKind::max},
    {"labels_16_max", SelectorKind::labels, LabelBits::bits16, CombineKind::max},
    {"page_bounds", SelectorKind::page_bounds},
    {"page_bounds_max", SelectorKind::page_bounds, LabelBits::mixed, CombineKind::max},
    {.name = "page_bounds_4", .kind = SelectorKind::page_bounds, .page = 4},
    {.name = "page_bounds_64", .kind = SelectorKind::page_bounds, .page = 64},
    {"hybrid", SelectorKind::hybrid},
    {"hybrid_max", SelectorKind::hybrid, LabelBits::mixed, CombineKind::max},
    {.name = "hybrid_8_32", .kind = SelectorKind::hybrid, .label_bits = LabelBits::bits8,
     .page = 32},
    {.name = "dense", .kind = SelectorKind::dense, .uses_history = false},
    {.name = "recent", .kind = SelectorKind::recent, .fills = false, .uses_history = false},
};

class SelectorConformance : public ::testing::TestWithParam<KindCase> {
protected:
    Config config() const {
        Config config = testing::test_config();
        config.selector.kind = GetParam().kind;
        config.selector.label_bits = GetParam().label_bits;
        config.selector.combine = GetParam().combine;
        config.selector.page = GetParam().page;
        return config;
    }

    // The slots that a selector returned are what the contract allows.
    void check(SelectorStore& store, const Query& query, const std::vector<uint32_t>& slots) {
        const std::vector<uint32_t> allowed = store.selectable(query);
        for (size_t i = 1; i < slots.size(); ++i) ASSERT_LT(slots[i - 1], slots[i]);
        ASSERT_TRUE(std::includes(allowed.begin(), allowed.end(), slots.begin(), slots.end()))
            << "a slot is not visible, or belongs to the safety set";
        if (GetParam().fills) {
            ASSERT_EQ(slots.size(), std::min<size_t>(query.rows, allowed.size()));
        }
    }

    // Every group, one fresh selector and history per group.
    void check_all_groups(SelectorStore& store, const Query& query) {
        for (uint32_t g = 0; g < store.groups().count(); ++g) {
            Selector selector = store.make({});
            check(store, query, store.select(selector, g, query).slots);
            if (HasFatalFailure()) return;
        }
    }

    static StoreShape random_shape(uint64_t seed, uint32_t slots) {
        std::mt19937_64 random(seed);
        const auto one_of = [&](std::initializer_list<uint32_t> values) {
            return values.begin()[random() % values.size()];
        };
        StoreShape shape;
        shape.sharing = one_of({0, 1}) == 0 ? SharingKind::layer : SharingKind::head;
        shape.kv_heads = one_of({1, 2, 3});
        shape.q_per_kv = one_of({1, 3, 4, 8});
        shape.head_dim = one_of({32, 64, 80, 128});
        shape.dtype = static_cast<DType>(one_of({0, 1, 2}));
        shape.slots = slots;
        return shape;
    }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST_P(SelectorConformance, AwkwardSizes) {
    for (const uint32_t slots : {1U, 3U, 127U, 128U, 129U, 1000U, 4096U}) {
        for (uint64_t seed = 1; seed <= 2; ++seed) {
            const StoreShape shape = random_shape(seed * 8191 + slots, slots);
            SCOPED_TRACE("seed " + std::to_string(seed) + ": " + shape.text());
            SelectorStore store(config(), shape, seed);
            store.write(0, slots);
            Query query = store.query(1);
            const auto all = static_cast<uint32_t>(store.selectable(query).size());
            const uint32_t most = std::max(all, 1U);
            for (const uint32_t rows : {1U, 3U, std::max(all, 2U) - 1, most, all + 1}) {
                SCOPED_TRACE("rows " + std::to_string(rows));
                query.rows = rows;
                check_all_groups(store, query);
                if (HasFatalFailure()) return;
            }
        }
    }
}

TEST_P(SelectorConformance, EveryShape) {
    for (const SharingKind sharing : {SharingKind::layer, SharingKind::head}) {
        for (const uint32_t q_per_kv : {1U, 3U, 4U, 8U}) {
            for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
                const StoreShape shape{sharing, 2, q_per_kv, 64, dtype, 500};
                SCOPED_TRACE(shape.text());
                SelectorStore store(config(), shape, q_per_kv);
                store.write(0, 500);
                check_all_groups(store, store.query(40));
                check_all_groups(store, store.query(40, 5));
                if (HasFatalFailure()) return;
            }
        }
    }
}

// Appends, gaps, overwrites, refused rows and removals; queries that see all of it or a part.
TEST_P(SelectorConformance, AnyHistoryOfTheStore) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
        const StoreShape shape = random_shape(seed, 700);
        SelectorStore store(config(), shape, seed);
        for (int round = 0; round < 12; ++round) {
            SCOPED_TRACE("seed " + std::to_string(seed) + ", round " + std::to_string(round) +
                         ": " + shape.text());
            const uint32_t begin = store.below(3) == 0 ? store.below(700) : store.slot_end() % 700;
            const uint32_t end =
                std::min(700U, begin + 1 + store.below(store.below(2) == 0 ? 9 : 300));
            if (round % 5 == 4) store.write_refused(begin, std::min(end, begin + 5));
            else store.write(begin, end);
            if (round % 4 == 3) store.truncate(store.below(store.slot_end() + 1));
            const uint32_t hide = store.below(3) == 0 ? 0 : 2 + store.below(20);
            const Query query = store.query(1 + store.below(300), hide);
            if (query.ranges.empty()) continue;  // a session has at least the current token
            check_all_groups(store, query);
            if (HasFatalFailure()) return;
        }
    }
}

// The same slots, and the same history left behind, on any number of threads.
TEST_P(SelectorConformance, ThreadsDoNotMatter) {
    const uint32_t slots = 5000;  // several parts of a scan
    for (uint64_t seed = 1; seed <= 2; ++seed) {
        const StoreShape shape = random_shape(seed + 100, slots);
        SelectorStore store(config(), shape, seed);
        store.write(0, slots);
        store.write(1234, 1300);
        std::vector<Query> queries;
        for (int i = 0; i < 3; ++i) queries.push_back(store.query(200, i == 1 ? 7 : 0));
        for (uint32_t g = 0; g < store.groups().count(); ++g) {
            Selector alone = store.make({});
            std::vector<Selected> expected;
            SelectHistory history;
            for (const Query& query : queries) {
                expected.push_back(store.select(alone, g, query, history));
                history = expected.back().history;
            }
            for (const uint32_t threads : {1U, 2U, 3U, 5U}) {
                SCOPED_TRACE("seed " + std::to_string(seed) + ", threads " +
                             std::to_string(threads) + ": " + shape.text());
                kernels::test::TestExecutor executor(threads);
                Selector selector = store.make(executor.get());
                history = {};
                for (size_t i = 0; i < queries.size(); ++i) {
                    const Selected got = store.select(selector, g, queries[i], history);
                    history = got.history;
                    ASSERT_EQ(got.slots, expected[i].slots) << "query " << i;
                    ASSERT_TRUE(same_bits(history.lse, expected[i].history.lse)) << "query " << i;
                    ASSERT_TRUE(same_bits(history.bound_lse, expected[i].history.bound_lse))
                        << "query " << i;
                    ASSERT_EQ(history.spans, expected[i].history.spans) << "query " << i;
                    ASSERT_EQ(history.threshold, expected[i].history.threshold) << "query " << i;
                }
            }
        }
    }
}

// Queries a thousand times quieter and louder than the last one: what they leave behind is a guess.
// A selector itself keeps nothing: another one goes on from the same history.
TEST_P(SelectorConformance, HistoryIsAGuess) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
        const StoreShape shape = random_shape(seed + 200, 1500);
        SCOPED_TRACE("seed " + std::to_string(seed) + ": " + shape.text());
        SelectorStore store(config(), shape, seed);
        store.write(0, 1200);
        Selector used = store.make({});
        SelectHistory history;
        for (int i = 0; i < 12; ++i) {
            SCOPED_TRACE("query " + std::to_string(i));
            const float loudness = std::pow(10.0F, static_cast<float>(store.below(7)) - 4.0F);
            const Query query = store.query(1 + store.below(900), 0, loudness);
            const Selected got = store.select(used, 0, query, history);
            check(store, query, got.slots);
            Selector fresh = store.make({});
            const Selected again = store.select(fresh, 0, query, history);
            ASSERT_EQ(again.slots, got.slots) << "depends on more than its history";
            ASSERT_TRUE(same_bits(again.history.lse, got.history.lse));
            ASSERT_TRUE(same_bits(again.history.bound_lse, got.history.bound_lse));
            if (!GetParam().uses_history) {
                ASSERT_EQ(store.select(fresh, 0, query).slots, got.slots);
            }
            for (const float threshold : {-1.0F / 0.0F, -50.0F, 0.0F, 1e-30F, 0.5F, 1e30F}) {
                SelectHistory other = history;
                other.threshold = threshold;
                ASSERT_EQ(store.select(fresh, 0, query, other).slots, got.slots)
                    << "threshold " << threshold;
            }
            history = got.history;
            if (i % 5 == 4) store.write(store.below(1200), 1200);
            if (HasFatalFailure()) return;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SelectorConformance, ::testing::ValuesIn(kKinds),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace shoal
