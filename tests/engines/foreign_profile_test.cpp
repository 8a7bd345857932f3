// Channel statistics of another model: refused before anything is held, and the message says which
// key to change.
#include <string>

#include "device_graph.hpp"

namespace shoal::testing {

namespace {

class ForeignProfile : public ::testing::Test {
protected:
    ForeignProfile() {
        const std::string text = std::string("[profile]\npath = \"") + SHOAL_TEST_PROFILE + "\"\n";
        EXPECT_EQ(plugin().configure(text.c_str()), nullptr);
        take_log();
    }
    ~ForeignProfile() override { plugin().configure(nullptr); }

    // `what`: the field that differs, with both values.
    static void expect_refused(const GraphShape& shape, const std::string& what) {
        DeviceGraph graph(Engine::shoal, shape);
        EXPECT_FALSE(graph.allocate_cache() && graph.reserve());
        const std::string said = plugin().last_error();
        const std::string key = "profile.path = \"" SHOAL_TEST_PROFILE "\"";
        EXPECT_NE(said.find(key), std::string::npos) << said;
        EXPECT_NE(said.find(what), std::string::npos) << said;
        EXPECT_NE(take_log().find(said), std::string::npos) << "logged too: " << said;
    }
};

}  // namespace

TEST_F(ForeignProfile, OtherNumberOfLayers) {
    expect_refused({.layers = 2, .kv_heads = 3, .q_heads = 9}, "layer count = 30: this model has");
}

TEST_F(ForeignProfile, OtherQueryHeads) {
    expect_refused({.layers = 30, .kv_heads = 3, .q_heads = 12}, "q_head_count");
}

TEST_F(ForeignProfile, OtherKvHeads) {
    expect_refused({.layers = 30, .kv_heads = 9, .q_heads = 9}, "kv_head_count");
}

TEST_F(ForeignProfile, OtherHeadSize) {
    expect_refused({.layers = 30, .kv_heads = 3, .q_heads = 9, .head_dim = 32}, "k_head_dim");
}

// The same shape is served: what was refused above is the difference alone.
TEST_F(ForeignProfile, SameShapeIsServed) {
    GraphShape shape{.layers = 30, .kv_heads = 3, .q_heads = 9};
    DeviceGraph graph(Engine::shoal, shape);
    graph.make();
    EXPECT_EQ(graph.compute(causal_input(shape, 0, 8, 1)), GGML_STATUS_SUCCESS)
        << plugin().last_error();
}

}  // namespace shoal::testing
