// Rows written again and rows copied between stores: order, labels and contents follow.
#include <algorithm>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::RandomRows;
using testing::small_model;
using testing::tensor_of;
using testing::test_config;

constexpr uint32_t kHeads = 2;
constexpr uint32_t kDim = 64;

// One layer, two stores; slots named by the caller. A query attends its safety set alone, that is,
// what the order of the slots says.
class TwoStores {
public:
    TwoStores() : rows_(3) {
        SessionOptions options;
        options.slots_per_store = 1024;
        options.store_count_max = 2;
        options.queries_per_step_max = 1024;
        Config config = test_config();
        config.selector.kind = SelectorKind::recent;
        const ModelShape shape = small_model(1, kHeads, 2, kDim);
        session_ = std::move(
            *Session::create(testing::with_least_memory(config, shape, options), shape, options));
        stores_ = {*session_->open(), *session_->open()};
    }

    Session& session() { return *session_; }
    StoreId store(size_t i) const { return stores_[i]; }
    std::vector<float> make_rows(uint32_t n) { return rows_.make(n, kHeads, kDim); }

    void write(size_t store, const std::vector<int64_t>& slots) {
        const auto n = static_cast<uint32_t>(slots.size());
        const std::vector<float> k = make_rows(n);
        const std::vector<float> v = make_rows(n);
        ASSERT_TRUE(session_->put({0}, stores_[store], slots, tensor_of(k, n, kHeads, kDim),
                                  tensor_of(v, n, kHeads, kDim)));
    }
    std::vector<std::byte> bytes(size_t store, Session::Part part, int64_t begin, int64_t end) {
        std::vector<int64_t> slots;
        for (int64_t slot = begin; slot < end; ++slot) slots.push_back(slot);
        std::vector<std::byte> out(slots.size() * kHeads * kDim * 2);
        EXPECT_TRUE(session_->read({0}, stores_[store], slots, part, out));
        return out;
    }
    // A step of one token at `slot` with the same rows and query each time; what it attended.
    std::vector<uint32_t> decode(size_t store, int64_t slot, uint32_t slot_end,
                                 std::vector<float>& out) {
        const std::vector<float> row(kHeads * kDim, 0.25F);
        std::vector<float> q(2 * kHeads * kDim);
        for (size_t i = 0; i < q.size(); ++i) q[i] = i % 7 == 0 ? 1.5F : -0.25F;
        const uint32_t one[2] = {0, 1};
        const SlotRange ranges[1] = {{0, slot_end}};
        const std::span<const StoreId> of_step(&stores_[store], 1);
        const std::span<const int64_t> slots(&slot, 1);
        EXPECT_TRUE(session_->begin_step({of_step, one, slots, {}, {}}));
        const ConstTensor rows = tensor_of(row, 1, kHeads, kDim);
        EXPECT_TRUE(session_->append({0}, rows, rows));
        out.resize(q.size());
        const Status status = session_->attend({0}, tensor_of(q, 1, 2 * kHeads, kDim),
                                               {one, one, ranges, 0},
                                               {out.data(), 1, 2 * kHeads, kDim,
                                                q.size() * 4, kDim * 4});
        EXPECT_TRUE(status) << status.message();
        EXPECT_TRUE(session_->end_step());
        return session_->attended_slots({0}, 0, 0);
    }

private:
    RandomRows rows_;
    std::unique_ptr<Session> session_;
    std::vector<StoreId> stores_;
};

std::vector<int64_t> slots_from(int64_t begin, int64_t end) {
    std::vector<int64_t> slots;
    for (int64_t slot = begin; slot < end; ++slot) slots.push_back(slot);
    return slots;
}

}  // namespace

TEST(SessionRows, ReplacedRowsKeepTheirPlaceInTheOrder) {
    TwoStores two;
    two.write(0, slots_from(400, 700));  // the first tokens lie high, the last ones low
    two.write(0, slots_from(0, 400));
    const std::vector<float> k = two.make_rows(300);
    ASSERT_TRUE(two.session().replace({0}, two.store(0), slots_from(400, 700),
                                      tensor_of(k, 300, kHeads, kDim), {}));
    std::vector<float> out;
    const std::vector<uint32_t> slots = two.decode(0, 700, 701, out);
    const Config::Safety safety = two.session().config().safety;
    for (uint32_t i = 0; i < safety.sinks; ++i) {
        EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), 400 + i)) << i;
    }
    for (uint32_t i = 1; i < safety.window; ++i) {
        EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), 400 - i)) << i;
    }
    EXPECT_EQ(slots.size(), safety.sinks + safety.window);
    const std::vector<std::byte> held = two.bytes(0, Session::Part::k, 400, 700);
    std::vector<uint16_t> expected(k.size());
    for (size_t i = 0; i < k.size(); ++i) expected[i] = kernels::f32_to_f16(k[i]);
    EXPECT_EQ(std::memcmp(held.data(), expected.data(), held.size()), 0);
}

TEST(SessionRows, OnlyWrittenSlotsAreReplaced) {
    TwoStores two;
    two.write(0, slots_from(0, 10));
    const std::vector<float> k = two.make_rows(1);
    const ConstTensor row = tensor_of(k, 1, kHeads, kDim);
    const Status never = two.session().replace({0}, two.store(0), slots_from(10, 11), row, {});
    EXPECT_EQ(never.message(), "slots[0] = 10: was never written");
    EXPECT_FALSE(two.session().replace({0}, two.store(0), slots_from(1024, 1025), row, {}));
    EXPECT_FALSE(two.session().replace({0}, two.store(0), slots_from(-1, 0), row, {}));
    EXPECT_TRUE(two.session().replace({0}, two.store(0), slots_from(9, 10), row, {}));
}

TEST(SessionRows, ACopyAttendsAsTheOriginal) {
    TwoStores two;
    two.write(0, slots_from(300, 600));
    two.write(0, slots_from(0, 300));
    two.write(1, slots_from(0, 900));  // held something longer before
    std::vector<float> out;
    two.decode(0, 600, 601, out);
    for (const Session::Part part : {Session::Part::k, Session::Part::v}) {
        ASSERT_TRUE(two.session().copy({0}, part, two.store(0), two.store(1)));
        EXPECT_EQ(two.bytes(0, part, 0, 1000), two.bytes(1, part, 0, 1000));
    }
    std::vector<float> of_copy;
    const std::vector<uint32_t> expected = two.decode(0, 601, 602, out);
    EXPECT_EQ(two.decode(1, 601, 602, of_copy), expected);
    EXPECT_EQ(out, of_copy);
    // Each goes its own way from here.
    two.write(1, slots_from(5, 6));
    EXPECT_NE(two.bytes(0, Session::Part::k, 5, 6), two.bytes(1, Session::Part::k, 5, 6));
    EXPECT_TRUE(two.session().copy({0}, Session::Part::k, two.store(0), two.store(0)));
    ASSERT_TRUE(two.session().close(two.store(1)));
    EXPECT_FALSE(two.session().copy({0}, Session::Part::k, two.store(0), two.store(1)));
}

}  // namespace shoal
