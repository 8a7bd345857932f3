// Selections that several layers attend, and what other selectors keep of every key: lists, memory,
// counts, refusals.
#include <algorithm>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using testing::tensor_of;
using testing::test_config;

constexpr uint32_t kLayers = 8;

Config tidal_config(SharingHeads heads, std::vector<uint32_t> anchors = {2, 5}) {
    Config config = test_config(24);
    config.sharing.kind = SharingKind::tidal;
    config.sharing.anchors = std::move(anchors);
    config.sharing.heads = heads;
    return config;
}

SessionOptions options_of(uint32_t slots) {
    SessionOptions options;
    options.slots_per_store = slots;
    return options;
}

class SharedSelection : public ::testing::TestWithParam<SharingHeads> {};

TEST_P(SharedSelection, ReuseLayersAttendWhatTheirAnchorAttends) {
    Config config = tidal_config(GetParam());
    config.budget.dense_layers = {0, 6};
    config.budget.dense_rows = 40;  // beyond that such a layer selects for itself
    Driver driver(config, small_model(kLayers), 2048);
    driver.step(600);
    const uint32_t anchor_of[kLayers] = {0, 1, 2, 2, 2, 5, 6, 5};
    bool heads_differ = false;
    for (const uint32_t n : {1U, 3U, 1U, 8U}) {
        driver.step(n);
        for (uint32_t query = 0; query < n; ++query) {
            for (uint32_t head = 0; head < 3; ++head) {
                std::vector<std::vector<uint32_t>> lists;
                for (uint32_t l = 0; l < kLayers; ++l) {
                    lists.push_back(driver.session().attended_slots({l}, query, head));
                }
                for (uint32_t l = 0; l < kLayers; ++l) {
                    ASSERT_EQ(lists[l], lists[anchor_of[l]]) << "layer " << l;
                    const uint32_t current = driver.token_count() - n + query;
                    ASSERT_EQ(lists[l].back(), current) << "the current token is missing";
                    const Config& now = driver.session().config();
                    const uint32_t rows = l == 0 || l == 6 ? now.budget.dense_rows
                                                           : now.budget.rows;
                    ASSERT_EQ(lists[l].size(), rows + now.safety.sinks + now.safety.window);
                }
                ASSERT_NE(lists[2], lists[5]);
                ASSERT_NE(lists[1], lists[2]) << "before the first anchor";
                heads_differ |= lists[2] != driver.session().attended_slots({2}, query, 0);
            }
        }
    }
    EXPECT_EQ(heads_differ, GetParam() == SharingHeads::index);
    const Stats stats = driver.session().stats();
    EXPECT_EQ(stats.selections + stats.selections_reused, stats.queries_sparse);
    // Of 8 layers 3 reuse: 3, 4 and 7.
    EXPECT_EQ(stats.selections_reused * 5, stats.selections * 3);
}

TEST_P(SharedSelection, ReuseLayersKeepNothingToSelectBy) {
    const SessionOptions options = options_of(4096);
    for (const SelectorKind kind :
         {SelectorKind::labels, SelectorKind::page_bounds, SelectorKind::hybrid}) {
        Config config = tidal_config(GetParam());
        config.selector.kind = kind;
        config.budget.rows = 200;
        const Result<MemoryPlan> plan = Session::plan(config, small_model(kLayers), options);
        ASSERT_TRUE(plan);
        config.sharing.kind =
            GetParam() == SharingHeads::index ? SharingKind::head : SharingKind::layer;
        const Result<MemoryPlan> every = Session::plan(config, small_model(kLayers), options);
        ASSERT_TRUE(every);
        // Layers 0, 1, 2 and 5 of 8 select.
        EXPECT_EQ(plan->label_bytes * 2, every->label_bytes);
        EXPECT_LT(plan->workspace_bytes, every->workspace_bytes) << "lists of reuse layers";
        EXPECT_EQ(plan->kv_bytes, every->kv_bytes);
        ASSERT_EQ(plan->notes.size(), 1U);
        EXPECT_EQ(plan->notes[0], "4 layers attend what one of 2 anchors selected: they keep "
                                  "nothing to select by");
    }
}

INSTANTIATE_TEST_SUITE_P(Heads, SharedSelection,
                         ::testing::Values(SharingHeads::shared, SharingHeads::index),
                         [](const auto& p) {
                             return p.param == SharingHeads::index ? "index" : "shared";
                         });

// What a full store takes is what the plan says.
TEST(Summaries, PlanIsWhatIsTaken) {
    for (const auto& [kind, page] :
         {std::pair{SelectorKind::page_bounds, 16U}, std::pair{SelectorKind::page_bounds, 4U},
          std::pair{SelectorKind::hybrid, 32U}, std::pair{SelectorKind::labels, 16U}}) {
        SCOPED_TRACE(static_cast<int>(kind));
        Config config = test_config();
        config.selector.kind = kind;
        config.selector.page = page;
        const uint32_t slots = 4096;
        const Result<MemoryPlan> plan = Session::plan(config, small_model(), options_of(slots));
        ASSERT_TRUE(plan);
        Driver driver(config, small_model(), slots);
        while (driver.token_count() < slots) driver.step(1024);
        const uint64_t taken = driver.session().stats().label_bytes;
        EXPECT_LE(taken, plan->label_bytes);
        if (kind == SelectorKind::page_bounds) {
            EXPECT_EQ(taken, plan->label_bytes);
        }
        // Labels: what channels may take before they are chosen, 1/8 more than what they took.
        EXPECT_GT(static_cast<double>(taken), 0.85 * static_cast<double>(plan->label_bytes));
    }
}

TEST(Summaries, PageBoundsNeedNoStatistics) {
    Config config = test_config(16);
    config.selector.kind = SelectorKind::page_bounds;
    config.profile.tokens = 1 << 20;
    Driver driver(config, small_model(), 2048);
    driver.step(300);
    driver.step(1);
    EXPECT_EQ(driver.session().stats().dense_without_statistics, 0U);
    const bool by_head = testing::rerun_as("head-sharing");
    EXPECT_EQ(driver.session().stats().queries_sparse, by_head ? 9U : 3U);
}

std::string refusal(const Config& config, const ModelShape& shape = small_model(kLayers)) {
    return Session::plan(config, shape, options_of(256)).status().message();
}

TEST(SharingErrors, AnchorsThatDoNotSuitTheModel) {
    EXPECT_EQ(refusal(tidal_config(SharingHeads::shared, {})),
              "sharing.anchors = []: must name 1 layer or more with sharing.kind = \"tidal\"");
    EXPECT_EQ(refusal(tidal_config(SharingHeads::shared, {2, 8})),
              "sharing.anchors: 8: must be below 8, the layers of this model");
    Config dense = tidal_config(SharingHeads::shared, {1, 5});
    dense.budget.dense_layers = {0, 1};
    EXPECT_EQ(refusal(dense), "sharing.anchors: 1: is in budget.dense_layers too: a dense layer is "
                              "no anchor, name it in one of the two");
    ModelShape shape = small_model(kLayers);
    shape.layers[2] = {LayerKind::sliding, 3, 64, 64, 32};
    EXPECT_EQ(refusal(tidal_config(SharingHeads::shared), shape),
              "sharing.anchors: 2: must be a layer with attention over every earlier token");
    shape = small_model(kLayers);
    shape.layers[4].kv_head_count = 9;
    EXPECT_EQ(refusal(tidal_config(SharingHeads::index), shape),
              "sharing.heads = \"index\": layer 4 has 9 KV heads, others have 3: must be equal, or "
              "set sharing.heads = \"shared\"");
    EXPECT_EQ(refusal(tidal_config(SharingHeads::shared), shape), "");
}

TEST(SharingErrors, WhatARunningSessionCannotChangeTo) {
    Config config = tidal_config(SharingHeads::shared);
    config.selector.kind = SelectorKind::page_bounds;
    Driver driver(config, small_model(kLayers), 512);
    driver.step(300);
    Session& session = driver.session();
    const auto refused = [&](auto change) {
        Config changed = session.config();
        change(changed);
        return session.reconfigure(changed).message();
    };
    const char* stored = ": cannot change in a running session. Create a new one";
    EXPECT_EQ(refused([](Config& c) { c.selector.page = 8; }),
              std::string("selector.page") + stored);
    EXPECT_EQ(refused([](Config& c) { c.selector.kind = SelectorKind::hybrid; }),
              std::string("selector.kind") + stored);
    EXPECT_EQ(refused([](Config& c) { c.sharing.heads = SharingHeads::index; }),
              std::string("sharing.heads") + stored);
    EXPECT_EQ(refused([](Config& c) { c.sharing.kind = SharingKind::head; }),
              std::string("sharing.kind") + stored);
    const auto lacks = [](uint32_t layer) {
        return "layer " + std::to_string(layer) +
               " would select, but keeps nothing to select by in this session: it was made to "
               "reuse an anchor's selection. Leave sharing.kind, sharing.anchors and "
               "budget.dense_layers as they were, or create a new session";
    };
    EXPECT_EQ(refused([](Config& c) { c.sharing.kind = SharingKind::layer; }), lacks(3));
    EXPECT_EQ(refused([](Config& c) { c.sharing.anchors = {2, 7}; }), lacks(7));
    EXPECT_EQ(refused([](Config& c) { c.budget.dense_layers = {4}; }), lacks(4));
    EXPECT_EQ(refused([](Config& c) { c.sharing.anchors = {9}; }),
              "sharing.anchors: 9: must be below 8, the layers of this model");
    // Fewer anchors, and no selection at all, need nothing that is not there.
    EXPECT_EQ(refused([](Config& c) { c.sharing.anchors = {2}; }), "");
    driver.step(1);
    EXPECT_EQ(session.attended_slots({7}, 0, 0), session.attended_slots({2}, 0, 0));
    EXPECT_EQ(refused([](Config& c) { c.selector.kind = SelectorKind::recent; }), "");
}

// A session whose layers all select may share selections for a while.
TEST(SharingErrors, LayersThatKeepLabelsCanStartAndStopToReuse) {
    Config config = test_config(16);
    config.sharing.kind = SharingKind::layer;
    Driver driver(config, small_model(3), 1024);
    driver.step(400);
    config = driver.session().config();
    Config tidal = config;
    tidal.sharing.kind = SharingKind::tidal;
    tidal.sharing.anchors = {0};
    ASSERT_TRUE(driver.session().reconfigure(tidal));
    driver.step(1);
    EXPECT_EQ(driver.session().attended_slots({1}, 0, 0),
              driver.session().attended_slots({0}, 0, 0));
    ASSERT_TRUE(driver.session().reconfigure(config));
    driver.step(1);
    EXPECT_NE(driver.session().attended_slots({1}, 0, 0),
              driver.session().attended_slots({0}, 0, 0));
}

// A list is of use for the step and the visibility that it was made for, and nothing else.
TEST(SharingErrors, AnAnchorIsAttendedBeforeTheLayersThatReuseIt) {
    Driver driver(tidal_config(SharingHeads::shared, {0}), small_model(2, 1, 1, 64), 1024);
    driver.step(400);
    Session& session = driver.session();
    const StoreId stores[1] = {driver.store()};
    const uint32_t one[2] = {0, 1};
    const std::vector<float> row(64, 0.5F);
    std::vector<float> out(64);
    const auto attend = [&](uint32_t layer, SlotRange range, uint64_t version) {
        return session.attend({layer}, tensor_of(row, 1, 1, 64), {one, one, {&range, 1}, version},
                              {out.data(), 1, 1, 64, 256, 256});
    };
    StepInput input;
    input.stores = stores;
    input.token_offsets = one;
    ASSERT_TRUE(session.begin_step(input));
    for (uint32_t l = 0; l < 2; ++l) {
        ASSERT_TRUE(session.append({l}, tensor_of(row, 1, 1, 64), tensor_of(row, 1, 1, 64)));
    }
    const std::string why = "layer 1 attends what layer 0 selected: attend layer 0 before it in "
                            "every step, with the same visibility";
    EXPECT_EQ(attend(1, {0, 401}, 1).message(), why);
    ASSERT_TRUE(attend(0, {0, 401}, 1));
    EXPECT_EQ(attend(1, {10, 401}, 2).message(), why) << "slots 0 to 9 may have been selected";
    EXPECT_EQ(attend(1, {0, 401}, 0).message(), why) << "other views were made in between";
    ASSERT_TRUE(attend(0, {0, 401}, 0));
    EXPECT_TRUE(attend(1, {0, 401}, 0));
    EXPECT_TRUE(attend(1, {0, 401}, 7));
    ASSERT_TRUE(session.end_step());
}

}  // namespace
}  // namespace shoal
