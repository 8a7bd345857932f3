// Merge of partial states against ref.
#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {
namespace {

struct MergeCase {
    uint32_t parts = 1;
    uint32_t heads = 5;
    uint32_t v_dim = 64;
    uint32_t out_padding = 0;
    bool lse = true;
    uint32_t empty_every = 0;     // every n-th part is the empty state
    float max_spread = 3.0F;
    float tolerance = 2e-6F;
};

std::ostream& operator<<(std::ostream& out, const MergeCase& c) {
    return out << c.parts << " parts, " << c.heads << " heads x " << c.v_dim;
}

class MergeTest : public ::testing::TestWithParam<std::tuple<BackendCase, MergeCase>> {};

std::vector<float> make_states(const MergeCase& c) {
    std::vector<float> states =
        random_normal(c.parts * attend_partial_floats(c.heads, c.v_dim), 5);
    for (uint32_t part = 0; part < c.parts; ++part) {
        const AttendPartial state = attend_partial_at(states.data(), part, c.heads, c.v_dim);
        const bool empty = c.empty_every != 0 && part % c.empty_every == 0;
        for (uint32_t head = 0; head < c.heads; ++head) {
            state.max[head] *= c.max_spread;
            state.sum[head] = 1.0F + std::abs(state.sum[head]);
            if (!empty) continue;
            state.max[head] = -std::numeric_limits<float>::infinity();
            state.sum[head] = 0.0F;
            std::fill_n(state.out + size_t{head} * c.v_dim, c.v_dim, 0.0F);
        }
    }
    return states;
}

TEST_P(MergeTest, MatchesRef) {
    const auto& [backend, c] = GetParam();
    const TargetScope scope(backend);
    const std::vector<float> states = make_states(c);
    const size_t stride = c.v_dim + c.out_padding;
    Guarded<float> want(c.heads * stride, 0);
    Guarded<float> got(c.heads * stride, 0);
    Guarded<float> want_lse(c.heads);
    Guarded<float> got_lse(c.heads);
    const MergeInput in{states.data(), c.parts, c.heads, c.v_dim};
    ref_backend().merge(in, {want.data(), stride, c.lse ? want_lse.data() : nullptr});
    backend.backend->merge(in, {got.data(), stride, c.lse ? got_lse.data() : nullptr});
    EXPECT_TRUE(got.intact());
    EXPECT_TRUE(got_lse.intact());
    for (size_t i = 0; i < c.heads * stride; ++i) {
        ASSERT_NEAR(got[i], want[i], c.tolerance * 4) << i;
    }
    for (uint32_t head = 0; c.lse && head < c.heads; ++head) {
        if (std::isinf(want_lse[head])) {
            EXPECT_EQ(got_lse[head], want_lse[head]);
        } else {
            EXPECT_NEAR(got_lse[head], want_lse[head],
                        c.tolerance * (1.0F + std::abs(want_lse[head])));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Backends, MergeTest,
    ::testing::Combine(::testing::ValuesIn(all_backends()),
                       ::testing::ValuesIn(std::vector<MergeCase>{
                           {.parts = 0},
                           {.parts = 0, .lse = false},
                           {.parts = 1},
                           {.parts = 1, .empty_every = 1},
                           {.parts = 2, .heads = 1, .v_dim = 32, .lse = false},
                           {.parts = 7, .v_dim = 112, .out_padding = 5, .empty_every = 2},
                           {.parts = 64, .v_dim = 80, .empty_every = 3},
                           {.parts = 65, .heads = 9},
                           {.parts = 130, .heads = 2, .v_dim = 256},
                           {.parts = 9, .max_spread = 1e4F},
                       })),
    [](const auto& instance) {
        return case_name(std::get<0>(instance.param)) + "_" + std::to_string(instance.index);
    });

}  // namespace
}  // namespace shoal::kernels::test
