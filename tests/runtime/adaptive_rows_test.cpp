// Rows move to where they find more, and their total stays what it is.
#include "runtime/adaptive_rows.hpp"

#include <cmath>
#include <numeric>

#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using testing::Driver;
using testing::small_model;
using testing::test_config;

struct Layer {
    double spread = 1;  // score of its worst row at budget.rows
    double power = 1;   // how it falls with rows
    double weight = 1;
    float factor = 1;
    double marginal() const { return spread * std::pow(double{factor}, -power); }
};

double total(const std::vector<Layer>& layers) {
    return std::accumulate(layers.begin(), layers.end(), 0.0, [](double sum, const Layer& layer) {
        return sum + layer.weight * double{layer.factor};
    });
}

void share(std::vector<Layer>& layers, int steps) {
    for (int step = 0; step < steps; ++step) {
        std::vector<RowShare> shares;
        for (Layer& layer : layers) {
            shares.push_back({&layer.factor, layer.marginal(), layer.weight});
        }
        share_rows(shares);
    }
}

TEST(AdaptiveRows, TheWorstRowsOfAllGroupsComeToFindAsMuch) {
    std::vector<Layer> layers = {{1e-4, 1.0}, {2e-4, 1.5}, {0.5e-4, 1.2}, {1e-4, 2.0, 3.0}};
    const double before = total(layers);
    share(layers, 100);
    EXPECT_NEAR(total(layers), before, 1e-3);
    for (const Layer& layer : layers) {
        EXPECT_NEAR(layer.marginal() / layers[0].marginal(), 1.0, 0.02);
    }
    EXPECT_GT(layers[1].factor, 1.0F);
    EXPECT_LT(layers[2].factor, 1.0F);
}

TEST(AdaptiveRows, LimitsHold) {
    std::vector<Layer> layers(10, Layer{1e-4, 1.0});
    layers[0].spread = 1.0;
    layers[1].spread = 0.0;  // had no row left to choose
    share(layers, 500);
    for (const Layer& layer : layers) {
        EXPECT_GE(layer.factor, kRowsFactorMin);
        EXPECT_LE(layer.factor, kRowsFactorMax);
    }
    EXPECT_EQ(layers[0].factor, kRowsFactorMax);
    EXPECT_LT(layers[1].factor, layers[2].factor / 2);
    EXPECT_NEAR(total(layers), 10.0, 1e-3);
}

TEST(AdaptiveRows, EqualGroupsStayAtTheirRows) {
    std::vector<Layer> layers(5, Layer{3e-5, 1.3});
    share(layers, 10);
    for (const Layer& layer : layers) EXPECT_EQ(layer.factor, 1.0F);
    share_rows({});
}

TEST(AdaptiveRows, ASessionKeepsTheTotalAndAnswersTheSameOnAnyThreads) {
    for (const SelectorKind kind :
         {SelectorKind::labels, SelectorKind::page_bounds, SelectorKind::hybrid}) {
        Config config = test_config();
        config.budget.rows = 64;
        config.budget.adaptive = true;
        config.selector.kind = kind;
        config.host.threads = 1;
        const ModelShape shape = small_model(4);
        Driver one(config, shape, 2048, 5);
        config.host.threads = 2;
        Driver two(config, shape, 2048, 5);
        std::vector<size_t> sizes;
        for (const uint32_t n : {900U, 1U, 1U, 1U, 3U, 1U, 1U, 1U, 1U, 1U, 1U, 1U, 1U}) {
            ASSERT_EQ(one.step(n), two.step(n));
            if (n != 1) continue;
            const Config::Safety safety = config.safety;
            size_t sum = 0;
            sizes.clear();
            for (uint32_t l = 0; l < 4; ++l) {
                const auto slots = one.session().attended_slots({l}, 0, 0);
                ASSERT_EQ(slots, two.session().attended_slots({l}, 0, 0));
                sizes.push_back(slots.size());
                sum += slots.size() - safety.sinks - safety.window;
            }
            if (!testing::rerun_as("head-sharing")) {
                ASSERT_NEAR(static_cast<double>(sum), 4.0 * 64, 2.0);
            }
        }
        EXPECT_FALSE(sizes == std::vector<size_t>(4, sizes[0])) << "no row has moved";
    }
}

TEST(AdaptiveRows, AShorterStoreGoesOnAndAClearedOneStartsAnew) {
    Config config = test_config();
    config.budget.rows = 64;
    config.budget.adaptive = true;
    Driver driver(config, small_model(4), 2048, 5);
    driver.step(900);
    for (int i = 0; i < 20; ++i) driver.step(1);
    const size_t size = driver.session().attended_slots({0}, 0, 0).size();
    driver.truncate(910);
    driver.step(1);
    EXPECT_NEAR(static_cast<double>(driver.session().attended_slots({0}, 0, 0).size()),
                static_cast<double>(size), 8.0);
    ASSERT_TRUE(driver.session().clear(driver.store()));
    driver.truncate(0);
    driver.step(900);
    driver.step(1);
    EXPECT_EQ(driver.session().attended_slots({0}, 0, 0).size(),
              64 + config.safety.sinks + config.safety.window);
}

}  // namespace
}  // namespace shoal
