// The session as an engine sees it: what is attended, and that the result is attention over it.
#include "tests/runtime/session_support.hpp"

#include <algorithm>
#include <numeric>

namespace shoal {
namespace {

using testing::Driver;
using testing::RandomRows;
using testing::small_model;
using testing::tensor_of;
using testing::test_config;

std::vector<uint32_t> iota(uint32_t n) {
    std::vector<uint32_t> slots(n);
    std::iota(slots.begin(), slots.end(), 0U);
    return slots;
}

void expect_near(const std::vector<float>& a, const float* b, float tolerance) {
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << "element " << i;
}

struct SessionCase {
    SharingKind sharing;
    uint32_t kv_heads, q_per_kv, head_dim;
    DType dtype;
    SelectorKind selector = SelectorKind::labels;
    SharingHeads heads = SharingHeads::shared;
};

class SessionTest : public ::testing::TestWithParam<SessionCase> {
protected:
    ModelShape shape() const {
        const SessionCase& c = GetParam();
        return small_model(3, c.kv_heads, c.q_per_kv, c.head_dim, testing::engine_dtype(c.dtype));
    }
    Config config(uint32_t rows) const {
        Config config = test_config(rows);
        config.sharing.kind = GetParam().sharing;
        config.sharing.anchors = {1};
        config.sharing.heads = GetParam().heads;
        config.selector.kind = GetParam().selector;
        config.host.rows = testing::host_rows(GetParam().dtype);
        return config;
    }
};

TEST_P(SessionTest, PrefillAndDenseDecodeAreExactAttention) {
    Config dense = config(32);
    dense.selector.kind = SelectorKind::dense;
    Driver driver(dense, shape(), 512);
    const uint32_t dim = shape().layers[0].v_head_dim;
    for (const uint32_t n : {1U, 127U, 3U, 130U, 1U}) {
        const auto outs = driver.step(n);
        for (uint32_t layer : {0U, 2U}) {
            for (uint32_t head = 0; head < shape().q_head_count; ++head) {
                const auto want = driver.expected(layer, n - 1, iota(driver.token_count()), head);
                const size_t at = (size_t{n - 1} * shape().q_head_count + head) * dim;
                expect_near(want, outs[layer].data() + at, 2e-5F);
            }
        }
    }
}

TEST_P(SessionTest, SparseDecodeIsAttentionOverTheListItReports) {
    Driver driver(config(32), shape(), 2048);
    driver.step(700);
    const uint32_t dim = shape().layers[0].v_head_dim;
    const uint32_t group = shape().q_head_count / shape().layers[0].kv_head_count;
    for (int step = 0; step < 5; ++step) {
        const auto outs = driver.step(1);
        for (uint32_t layer = 0; layer < 3; ++layer) {
            for (uint32_t head = 0; head < shape().q_head_count; ++head) {
                const auto slots = driver.session().attended_slots({layer}, 0, head / group);
                const Config& now = driver.session().config();
                const auto [sinks, window] = now.safety;
                ASSERT_EQ(slots.size(), now.budget.rows + sinks + window);
                ASSERT_TRUE(std::is_sorted(slots.begin(), slots.end()));
                for (uint32_t s = 0; s < sinks; ++s) ASSERT_EQ(slots[s], s) << "sink is missing";
                for (uint32_t w = 0; w < window; ++w) {
                    ASSERT_EQ(slots[slots.size() - 1 - w], driver.token_count() - 1 - w);
                }
                const auto want = driver.expected(layer, 0, slots, head);
                expect_near(want, outs[layer].data() + size_t{head} * dim, 2e-5F);
            }
        }
    }
    EXPECT_GT(driver.session().stats().queries_sparse, 0U);
    EXPECT_EQ(driver.session().stats().dense_without_statistics, 0U);
}

TEST_P(SessionTest, BudgetOfEverythingIsDenseBitForBit) {
    Config everything = config(100000);
    everything.budget.rows = 100000;
    Driver all(everything, shape(), 2048, 7);
    Config dense_config = everything;
    dense_config.selector.kind = SelectorKind::dense;
    Driver dense(dense_config, shape(), 2048, 7);
    all.step(600);
    dense.step(600);
    for (const uint32_t n : {1U, 2U, 1U, 8U, 1U}) {
        const auto a = all.step(n);
        const auto b = dense.step(n);
        for (size_t layer = 0; layer < a.size(); ++layer) {
            ASSERT_EQ(0, std::memcmp(a[layer].data(), b[layer].data(),
                                     a[layer].size() * sizeof(float)));
        }
    }
    EXPECT_GT(all.session().stats().queries_sparse, 0U);
    EXPECT_EQ(dense.session().stats().queries_sparse, 0U);
}

TEST_P(SessionTest, ThreadsDoNotChangeABit) {
    Config one = config(32);
    one.host.threads = 1;
    Driver a(one, shape(), 2048, 3);
    Driver b(config(32), shape(), 2048, 3);
    for (const uint32_t n : {700U, 1U, 1U, 5U, 1U}) {
        const auto x = a.step(n);
        const auto y = b.step(n);
        for (size_t layer = 0; layer < x.size(); ++layer) ASSERT_EQ(x[layer], y[layer]);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SessionTest,
    ::testing::Values(SessionCase{SharingKind::layer, 3, 3, 64, DType::f16},
                      SessionCase{SharingKind::head, 3, 3, 64, DType::f16},
                      SessionCase{SharingKind::layer, 8, 1, 128, DType::bf16},
                      SessionCase{SharingKind::layer, 1, 8, 80, DType::f32},
                      SessionCase{SharingKind::head, 2, 16, 32, DType::f16},
                      SessionCase{SharingKind::layer, 3, 3, 64, DType::f16,
                                  SelectorKind::page_bounds},
                      SessionCase{SharingKind::head, 2, 4, 128, DType::f32,
                                  SelectorKind::page_bounds},
                      SessionCase{SharingKind::layer, 3, 3, 64, DType::bf16,
                                  SelectorKind::hybrid},
                      SessionCase{SharingKind::tidal, 3, 3, 64, DType::f16},
                      SessionCase{SharingKind::tidal, 3, 3, 64, DType::f16, SelectorKind::labels,
                                  SharingHeads::index},
                      SessionCase{SharingKind::tidal, 3, 3, 64, DType::f16,
                                  SelectorKind::hybrid},
                      SessionCase{SharingKind::layer, 3, 3, 64, DType::q8},
                      SessionCase{SharingKind::head, 2, 4, 80, DType::q8,
                                  SelectorKind::page_bounds}));

class SessionSelection : public ::testing::TestWithParam<SelectorKind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, SessionSelection,
                         ::testing::Values(SelectorKind::labels, SelectorKind::page_bounds,
                                           SelectorKind::hybrid));

TEST_P(SessionSelection, FindsTheLoudToken) {
    // One old key is the query itself, scaled: it must be selected in every layer and head.
    const ModelShape shape = small_model(1, 2, 2, 64);
    Config config = test_config();
    config.budget.rows = 16;  // a whole page
    config.selector.kind = GetParam();
    Driver driver(config, shape, 4096);
    driver.step(900);
    const std::vector<float> v(2 * 64, 0.25F);
    RandomRows rows(99);
    const std::vector<float> q = rows.make(1, 4, 64);
    std::vector<float> k(2 * 64);
    for (uint32_t h = 0; h < 2; ++h) {
        for (uint32_t c = 0; c < 64; ++c) k[h * 64 + c] = 2.0F * q[h * 2 * 64 + c];
    }
    const int64_t slot[1] = {300};
    ASSERT_TRUE(driver.session().put({0}, driver.store(), slot, tensor_of(k, 1, 2, 64),
                                     tensor_of(v, 1, 2, 64)));
    const uint32_t offsets[2] = {0, 1};
    const StoreId stores[1] = {driver.store()};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    ASSERT_TRUE(driver.session().begin_step(input));
    ASSERT_TRUE(driver.session().append({0}, tensor_of(v, 1, 2, 64), tensor_of(v, 1, 2, 64)));
    const SlotRange ranges[1] = {{0, 901}};
    std::vector<float> out(4 * 64);
    ASSERT_TRUE(driver.session().attend({0}, tensor_of(q, 1, 4, 64),
                                        {offsets, offsets, ranges, 1},
                                        {out.data(), 1, 4, 64, 4 * 64 * 4, 64 * 4}));
    ASSERT_TRUE(driver.session().end_step());
    const auto slots = driver.session().attended_slots({0}, 0, 0);
    EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), 300U));
    if (GetParam() != SelectorKind::page_bounds) {
        EXPECT_GT(driver.session().stats().spans_ranged_again, 0U);
    }
}

TEST(SessionLabels, DenseUntilStatisticsAreKnownAndSaysSo) {
    Config config = test_config(16);
    config.profile.tokens = 512;
    Driver driver(config, small_model(), 2048);
    driver.step(300);
    driver.step(1);
    EXPECT_GT(driver.session().stats().dense_without_statistics, 0U);
    EXPECT_EQ(driver.session().stats().queries_sparse, 0U);
    driver.step(300);
    driver.step(1);
    EXPECT_TRUE(driver.session().has_channel_statistics());
    // Counted once per group: a layer, or under head sharing each of its 3 KV heads.
    EXPECT_EQ(driver.session().stats().queries_sparse,
              testing::rerun_as("head-sharing") ? 9U : 3U);
}

// Sliding layers are served dense, whatever the policy, with and without statistics.
TEST(Session, SlidingLayersAttendAllThatTheySee) {
    for (const SelectorKind kind : {SelectorKind::labels, SelectorKind::recent}) {
        Config config = test_config(16);
        config.selector.kind = kind;
        ModelShape shape = small_model();
        shape.layers[1].kind = LayerKind::sliding;
        shape.layers[1].window = 4096;
        Driver driver(config, shape, 2048);
        driver.step(300);
        driver.step(300);
        driver.step(1);
        EXPECT_EQ(driver.session().attended_slots({1}, 0, 0).size(), 601U);
        EXPECT_LT(driver.session().attended_slots({0}, 0, 0).size(), 601U);
        EXPECT_LT(driver.session().attended_slots({2}, 0, 0).size(), 601U);
        EXPECT_EQ(driver.session().stats().dense_without_statistics, 0U);
    }
}

TEST(SessionErrors, AreSentences) {
    SessionOptions options;
    auto none = Session::create(test_config(), small_model(), options);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.status().message(), "options.slots_per_store = 0: must be 1 .. 1073741824");
    options.slots_per_store = 1 << 30;
    auto large = Session::create(test_config(), small_model(), options);
    ASSERT_FALSE(large);
    EXPECT_EQ(large.status().code(), StatusCode::out_of_memory);
    EXPECT_NE(large.status().message().find("Largest context that fits: "), std::string::npos);
    options.slots_per_store = 100;
    ModelShape odd = small_model();
    odd.layers[1].k_head_dim = 20;
    auto shape = Session::create(test_config(), odd, options);
    ASSERT_FALSE(shape);
    EXPECT_EQ(shape.status().code(), StatusCode::unsupported);
    EXPECT_NE(shape.status().message().find("k_head_dim = 20"), std::string::npos);
}

TEST(SessionErrors, WhatAModelAndAConfigurationSayOfEachOther) {
    SessionOptions options;
    options.slots_per_store = 256;
    Config config;
    config.budget.dense_layers = {0, 3};
    EXPECT_EQ(Session::plan(config, small_model(3), options).status().message(),
              "budget.dense_layers: 3: must be below 3, the layers of this model");
    // The default list is no mistake in a model of one layer.
    EXPECT_TRUE(Session::plan(Config{}, small_model(1), options));
    auto session = Session::create(Config{}, small_model(3), options);
    ASSERT_TRUE(session);
    EXPECT_FALSE((*session)->reconfigure(config));

    const ModelShape wide = small_model(1, 32, 16, 32);
    const auto refused = Session::plan(Config{}, wide, options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.status().message(),
              "layer 0: 512 query heads share a selection: selector.kind = \"labels\" serves 256; "
              "set sharing.kind = \"head\"");
    Config by_head;
    by_head.sharing.kind = SharingKind::head;
    EXPECT_TRUE(Session::plan(by_head, wide, options));

    Config profile;
    profile.profile.path = "/nonexistent.profile";
    const auto missing = Session::plan(profile, small_model(), options);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.status().message().find("profile.path: /nonexistent.profile: "), 0U)
        << missing.status().message();
}

TEST(SessionErrors, NanAndForeignSlotsAreRefused) {
    Driver driver(test_config(), small_model(1, 1, 1, 64), 64);
    driver.step(3);
    const uint32_t offsets[2] = {0, 1};
    const StoreId stores[1] = {driver.store()};
    StepInput input;
    input.stores = stores;
    input.token_offsets = offsets;
    Session& session = driver.session();
    ASSERT_TRUE(session.begin_step(input));
    std::vector<float> bad(64, 0.0F);
    bad[63] = NAN;
    const std::vector<float> good(64, 0.5F);
    EXPECT_FALSE(session.append({0}, tensor_of(bad, 1, 1, 64), tensor_of(good, 1, 1, 64)));
    EXPECT_FALSE(session.append({0}, tensor_of(good, 1, 1, 64), tensor_of(bad, 1, 1, 64)));
    EXPECT_FALSE(session.append({1}, tensor_of(good, 1, 1, 64), tensor_of(good, 1, 1, 64)));
    EXPECT_FALSE(session.append({0}, tensor_of(good, 1, 1, 32), tensor_of(good, 1, 1, 64)));
    std::vector<float> out(64);
    const Tensor to{out.data(), 1, 1, 64, 256, 256};
    const SlotRange ranges[1] = {{0, 4}};
    const Visibility visibility{offsets, offsets, ranges, 0};
    const Status unwritten = session.attend({0}, tensor_of(good, 1, 1, 64), visibility, to);
    EXPECT_NE(unwritten.message().find("slot 3 is visible in layer 0 but has no K"),
              std::string::npos) << unwritten.message();
    ASSERT_TRUE(session.append({0}, tensor_of(good, 1, 1, 64), tensor_of(good, 1, 1, 64)));
    EXPECT_FALSE(session.attend({0}, tensor_of(bad, 1, 1, 64), visibility, to));
    const SlotRange beyond[1] = {{0, 5}};
    EXPECT_FALSE(session.attend({0}, tensor_of(good, 1, 1, 64), {offsets, offsets, beyond, 0}, to));
    EXPECT_TRUE(session.attend({0}, tensor_of(good, 1, 1, 64), visibility, to));
    ASSERT_TRUE(session.end_step());
    const int64_t slot[1] = {64};
    EXPECT_FALSE(session.put({0}, driver.store(), slot, tensor_of(good, 1, 1, 64),
                             tensor_of(good, 1, 1, 64)));
}

TEST(SessionErrors, BadStepsAreRefusedAndHarmNothing) {
    Driver driver(test_config(), small_model(1, 1, 1, 64), 64);
    driver.step(3);
    Session& session = driver.session();
    const std::vector<float> row(64, 0.5F);
    const auto append = [&] {
        return session.append({0}, tensor_of(row, 1, 1, 64), tensor_of(row, 1, 1, 64));
    };
    const uint32_t one[2] = {0, 1};
    const uint32_t falling[3] = {0, 1000, 1};
    const uint32_t from_five[2] = {5, 1};
    const StoreId stores[2] = {driver.store(), driver.store()};
    const std::span<const StoreId> store(stores, 1);
    const int64_t far[1] = {1000000000};
    EXPECT_FALSE(session.begin_step({store, one, far, {}, {}}));
    EXPECT_FALSE(append()) << "a refused begin leaves no step open";
    EXPECT_FALSE(session.begin_step({stores, falling, {}, {}, {}}));
    EXPECT_FALSE(session.begin_step({store, from_five, {}, {}, {}}));
    const uint32_t twice[3] = {0, 1, 2};
    EXPECT_FALSE(session.begin_step({stores, twice, {}, {}, {}}));
    EXPECT_FALSE(session.begin_step({{}, {}, {}, {}, {}}));

    ASSERT_TRUE(session.begin_step({store, one, {}, {}, {}}));
    ASSERT_TRUE(append());
    std::vector<float> out(64);
    const Tensor to{out.data(), 1, 1, 64, 256, 256};
    const SlotRange ranges[1] = {{0, 4}};
    EXPECT_FALSE(session.attend({0}, tensor_of(row, 1, 1, 64), {from_five, one, ranges, 0}, to));
    EXPECT_FALSE(session.attend({0}, tensor_of(row, 1, 1, 64), {one, from_five, ranges, 0}, to));
    EXPECT_TRUE(session.attend({0}, tensor_of(row, 1, 1, 64), {one, one, ranges, 0}, to));
    ASSERT_TRUE(session.clear(driver.store()));
    EXPECT_FALSE(append()) << "clear ends an open step";
}

TEST(SessionErrors, RowsOutsideTheStoredRangeAreNeverAttended) {
    Driver driver(test_config(), small_model(1, 1, 1, 64), 64);
    driver.step(3);
    Session& session = driver.session();
    const StoreId stores[1] = {driver.store()};
    const uint32_t one[2] = {0, 1};
    const std::vector<float> large(64, 1e6F);
    const std::vector<float> row(64, 0.5F);
    ASSERT_TRUE(session.begin_step({stores, one, {}, {}, {}}));
    EXPECT_FALSE(session.append({0}, tensor_of(large, 1, 1, 64), tensor_of(row, 1, 1, 64)));
    std::vector<float> out(64);
    const SlotRange ranges[1] = {{0, 4}};
    const Status seen = session.attend({0}, tensor_of(row, 1, 1, 64), {one, one, ranges, 0},
                                       {out.data(), 1, 1, 64, 256, 256});
    EXPECT_FALSE(seen);
}

TEST(SessionPlan, CountsWhatCreateTakes) {
    SHOAL_SKIP_ON_DISK();
    SessionOptions options;
    options.slots_per_store = 1024;
    auto small = Session::plan(test_config(), small_model(), options);
    ASSERT_TRUE(small);
    EXPECT_EQ(small->kv_bytes, 1024U * 3 * 3 * 2 * 64 * 2);
    EXPECT_GT(small->slots_fit, 1024U);
    EXPECT_GE(small->bytes_per_slot, 3U * 3 * 2 * 64 * 2);
    EXPECT_EQ(small->total_bytes, small->kv_bytes + small->label_bytes + small->index_bytes +
                                      small->workspace_bytes);
}

TEST(SessionStores, ReadGivesBackWhatWasWritten) {
    Driver driver(test_config(), small_model(1, 2, 1, 32), 300);
    driver.step(130);
    const int64_t slots[3] = {129, 0, 200};
    std::vector<std::byte> out(3 * 2 * 32 * 2);
    ASSERT_TRUE(driver.session().read({0}, driver.store(), slots, Session::Part::v, out));
    EXPECT_TRUE(std::all_of(out.begin() + 2 * 2 * 32 * 2, out.end(),
                            [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_FALSE(std::all_of(out.begin(), out.begin() + 2 * 2 * 32 * 2,
                             [](std::byte b) { return b == std::byte{0}; }));
}

// After any removal and regrowth, a step attends what it reports and nothing that was removed.
TEST(SessionStores, TruncateAndRegrow) {
    const ModelShape shape = small_model();
    Driver driver(test_config(), shape, 2048, 5);
    driver.step(600);
    for (const uint32_t keep : {599U, 500U, 384U, 129U, 128U, 127U, 1U}) {
        driver.truncate(keep);
        EXPECT_EQ(driver.session().stats().slots_used, keep);
        driver.step(3);
        const auto outs = driver.step(1);
        for (uint32_t layer = 0; layer < 3; ++layer) {
            const auto slots = driver.session().attended_slots({layer}, 0, 0);
            ASSERT_EQ(slots.back(), driver.token_count() - 1);
            expect_near(driver.expected(layer, 0, slots, 0), outs[layer].data(), 2e-5F);
        }
    }
}

TEST(SessionStores, ClosedStoresAreGoneAndComeBackEmpty) {
    Driver driver(test_config(), small_model(), 2048, 5);
    driver.step(600);
    ASSERT_TRUE(driver.session().clear(driver.store()));
    EXPECT_EQ(driver.session().stats().slots_used, 0U);
    ASSERT_TRUE(driver.session().close(driver.store()));
    EXPECT_FALSE(driver.session().close(driver.store()));
    EXPECT_TRUE(driver.session().open());
    EXPECT_FALSE(driver.session().open());
}

}  // namespace
}  // namespace shoal
