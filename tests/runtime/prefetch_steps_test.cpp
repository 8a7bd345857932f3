// Reading ahead after a step that did not end well, and after what is done to stores between steps:
// it never reads by what an older step left behind.
#include <gmock/gmock.h>

#include "tests/runtime/prefetch_support.hpp"

namespace shoal {
namespace {

using testing::paged_disk_config;
using testing::PiecewiseEngine;
using testing::small_model;

constexpr uint32_t kLayers = 3;
constexpr uint32_t kLong = 1500;
constexpr uint32_t kShort = 700;

ModelShape shape() { return small_model(kLayers, 2, 2, 64); }

PiecewiseEngine make_engine(const Config& config) {
    SessionOptions options;
    options.store_count_max = 3;
    options.slots_per_store = kLong + 100;
    options.queries_per_step_max = 8;
    auto made =
        Session::create(testing::with_least_memory(config, shape(), options), shape(), options);
    if (!made) throw std::runtime_error(made.status().message());
    return {std::move(*made), shape()};
}

// How a layer knows or guesses what the next will read.
struct GuessCase {
    std::string name;
    SelectorKind selector;
    PrefetchKind kind;
    uint32_t dense_below = 1;
};
void PrintTo(const GuessCase& c, std::ostream* out) { *out << c.name; }

class PrefetchAfter : public ::testing::TestWithParam<GuessCase> {
protected:
    static PiecewiseEngine engine() {
        Config config = paged_disk_config(GetParam().kind);
        config.selector.kind = GetParam().selector;
        config.budget.dense_below = GetParam().dense_below;
        return make_engine(config);
    }
};

INSTANTIATE_TEST_SUITE_P(
    Guesses, PrefetchAfter,
    ::testing::Values(
        GuessCase{"all", SelectorKind::page_bounds, PrefetchKind::query, kLong + 100},
        GuessCase{"query", SelectorKind::page_bounds, PrefetchKind::query},
        GuessCase{"steps", SelectorKind::page_bounds, PrefetchKind::steps},
        GuessCase{"recent", SelectorKind::recent, PrefetchKind::query}),
    [](const auto& p) { return p.param.name; });

// A step whose first attend names a slot that does not exist.
void refused_step(PiecewiseEngine& engine, StoreId store) {
    engine.begin(store);
    engine.append(0);
    const Status refused = engine.attend(0, engine.slot_end(store) + 2);
    EXPECT_EQ(refused.code(), StatusCode::invalid_argument) << refused.message();
}

TEST_P(PrefetchAfter, ARefusedAttendInAStoreThatWasCut) {
    PiecewiseEngine engine = this->engine();
    const StoreId store = engine.open();
    engine.put(store, kLong);
    engine.step(store);
    engine.truncate(store, 10);
    refused_step(engine, store);
    engine.end();
    engine.step(store);
}

TEST_P(PrefetchAfter, ARefusedAttendInAShorterStore) {
    PiecewiseEngine engine = this->engine();
    const StoreId longer = engine.open();
    const StoreId shorter = engine.open();
    engine.put(longer, kLong);
    engine.put(shorter, 10);
    engine.step(longer);
    refused_step(engine, shorter);
    engine.end();
    engine.step(longer);
    // Refused half way: the layers before were attended.
    engine.begin(shorter);
    engine.serve(0);
    engine.append(1);
    EXPECT_FALSE(engine.attend(1, kLong));
    engine.end();
    engine.step(shorter);
}

TEST_P(PrefetchAfter, AStepOfALongerStoreThatWasGivenUp) {
    for (uint32_t layers = 0; layers <= kLayers; ++layers) {
        PiecewiseEngine engine = this->engine();
        const StoreId shorter = engine.open();
        const StoreId longer = engine.open();
        engine.put(shorter, kShort);
        engine.put(longer, kLong);
        engine.step(shorter);
        engine.begin(longer);
        for (uint32_t l = 0; l < layers; ++l) engine.serve(l);
        engine.step(shorter);
        engine.step(shorter);
    }
}

TEST_P(PrefetchAfter, StoresChanged) {
    using Change = std::function<void(PiecewiseEngine&, StoreId&, StoreId&)>;
    const Change changes[] = {
        [](PiecewiseEngine& engine, StoreId& a, StoreId&) { engine.truncate(a, 20); },
        [](PiecewiseEngine& engine, StoreId& a, StoreId&) {
            EXPECT_TRUE(engine.session().clear(a));
            engine.set_slot_end(a, 0);
        },
        [](PiecewiseEngine& engine, StoreId& a, StoreId&) {
            EXPECT_TRUE(engine.session().close(a));
            a = engine.open();  // the same place, another life
        },
        [](PiecewiseEngine& engine, StoreId& a, StoreId& b) {
            EXPECT_TRUE(engine.session().close(a));
            const Result<StoreId> forked = engine.session().fork(b);
            ASSERT_TRUE(forked);
            EXPECT_EQ(forked->index, a.index);
            a = *forked;
            engine.set_slot_end(a, engine.slot_end(b));
        },
        [](PiecewiseEngine& engine, StoreId& a, StoreId& b) {
            for (const Session::Part part : {Session::Part::k, Session::Part::v}) {
                for (uint32_t l = 0; l < kLayers; ++l) {
                    EXPECT_TRUE(engine.session().copy({l}, part, b, a));
                }
            }
            engine.set_slot_end(a, engine.slot_end(b));
        },
    };
    for (const Change& change : changes) {
        PiecewiseEngine engine = this->engine();
        StoreId a = engine.open();
        StoreId b = engine.open();
        engine.put(a, kLong);
        engine.put(b, 30);
        engine.step(a);
        change(engine, a, b);
        engine.step(a);
        engine.step(a);
        engine.step(b);
    }
}

// A hint is of its own step: not of one that was given up.
TEST(PrefetchHint, EndsWithItsStep) {
    PiecewiseEngine engine = make_engine(paged_disk_config(PrefetchKind::query));
    const StoreId store = engine.open();
    engine.put(store, kShort);
    engine.begin(store);
    engine.serve(0);
    engine.hint(2, 0.0F);
    engine.step(store);
    EXPECT_EQ(engine.session().stats().prefetch_hints, 0U);
    engine.begin(store);
    engine.serve(0);
    engine.hint(2, 0.0F);
    engine.serve(1);
    EXPECT_GT(engine.session().stats().prefetch_hints, 0U);
}

}  // namespace
}  // namespace shoal
