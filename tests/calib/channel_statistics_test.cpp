#include "calib/channel_statistics.hpp"

#include <gtest/gtest.h>

#include "tests/calib/support.hpp"

namespace shoal::calib {
namespace {

using test::make_tensor;
using test::random_values;
using test::small_shape;

// Plain two-pass moments in double of [n, heads, head_dim].
ChannelMoments expected_moments(const std::vector<float>& k, const std::vector<float>& q,
                                uint32_t n, uint32_t kv_heads, uint32_t q_heads, uint32_t head_dim,
                                uint32_t kv_head) {
    ChannelMoments moments;
    const uint32_t q_per_kv = q_heads / kv_heads;
    for (uint32_t c = 0; c < head_dim; ++c) {
        double mean = 0;
        double variance = 0;
        double square = 0;
        for (uint32_t t = 0; t < n; ++t) {
            mean += double{k[(t * kv_heads + kv_head) * head_dim + c]} / n;
        }
        for (uint32_t t = 0; t < n; ++t) {
            const double d = k[(t * kv_heads + kv_head) * head_dim + c] - mean;
            variance += d * d / n;
            for (uint32_t g = 0; g < q_per_kv; ++g) {
                const double x = q[(t * q_heads + kv_head * q_per_kv + g) * head_dim + c];
                square += x * x / n;
            }
        }
        moments.key_mean.push_back(static_cast<float>(mean));
        moments.key_variance.push_back(static_cast<float>(variance));
        moments.query_square.push_back(static_cast<float>(square));
    }
    return moments;
}

void expect_close(const ChannelMoments& a, const ChannelMoments& b, float relative) {
    ASSERT_EQ(a.key_mean.size(), b.key_mean.size());
    for (size_t c = 0; c < a.key_mean.size(); ++c) {
        EXPECT_NEAR(a.key_mean[c], b.key_mean[c], relative * (1 + std::abs(b.key_mean[c]))) << c;
        EXPECT_NEAR(a.key_variance[c], b.key_variance[c], relative * (1e-3F + b.key_variance[c]))
            << c;
        EXPECT_NEAR(a.query_square[c], b.query_square[c], relative * (1e-3F + b.query_square[c]))
            << c;
    }
}

struct StatisticsCase {
    uint32_t n;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    DType dtype = DType::f32;
    size_t gap_bytes = 0;
    float mean = 0.0F;
};

class StatisticsTest : public ::testing::TestWithParam<StatisticsCase> {};

TEST_P(StatisticsTest, EqualsTwoPassesInDouble) {
    const StatisticsCase& p = GetParam();
    ChannelStatistics statistics(small_shape(2, p.q_heads, p.kv_heads, p.head_dim));
    std::vector<float> k = random_values(size_t{p.n} * p.kv_heads * p.head_dim, 1, p.mean);
    std::vector<float> q = random_values(size_t{p.n} * p.q_heads * p.head_dim, 2);
    const auto k_tensor = make_tensor(k, p.n, p.kv_heads, p.head_dim, p.dtype, p.gap_bytes);
    const auto q_tensor = make_tensor(q, p.n, p.q_heads, p.head_dim, p.dtype, p.gap_bytes);
    statistics.observe_keys({1}, k_tensor.view);
    statistics.observe_queries({1}, q_tensor.view);

    const auto kept = [&](const test::OwnedTensor& tensor, size_t i) {  // of the values
        const std::byte* row =
            tensor.bytes.data() + i / p.head_dim * tensor.view.head_stride_bytes;
        const float scale =
            kernels::bf16_to_f32(kernels::tensor_scale(row, p.dtype, p.head_dim));
        return kernels::load_element(row, p.dtype, i % p.head_dim, scale);
    };
    for (size_t i = 0; i < k.size(); ++i) k[i] = kept(k_tensor, i);
    for (size_t i = 0; i < q.size(); ++i) q[i] = kept(q_tensor, i);
    for (uint32_t h = 0; h < p.kv_heads; ++h) {
        expect_close(statistics.moments({1}, h),
                     expected_moments(k, q, p.n, p.kv_heads, p.q_heads, p.head_dim, h), 1e-6F);
    }
    EXPECT_EQ(statistics.key_token_count({1}), p.n);
    EXPECT_EQ(statistics.query_token_count({1}), p.n);
    EXPECT_EQ(statistics.key_token_count({0}), 0U);
    EXPECT_EQ(statistics.token_count(), 0U) << "layer 0 has seen nothing";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, StatisticsTest,
    ::testing::Values(StatisticsCase{.n = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 32},
                      StatisticsCase{.n = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 48},
                      StatisticsCase{.n = 4, .q_heads = 9, .kv_heads = 3, .head_dim = 64},
                      StatisticsCase{.n = 5, .q_heads = 16, .kv_heads = 1, .head_dim = 80},
                      StatisticsCase{.n = 127, .q_heads = 4, .kv_heads = 4, .head_dim = 96,
                                     .gap_bytes = 36},
                      StatisticsCase{.n = 130, .q_heads = 4, .kv_heads = 2, .head_dim = 256,
                                     .dtype = DType::f16, .gap_bytes = 2},
                      StatisticsCase{.n = 130, .q_heads = 4, .kv_heads = 2, .head_dim = 128,
                                     .dtype = DType::bf16},
                      StatisticsCase{.n = 130, .q_heads = 4, .kv_heads = 2, .head_dim = 80,
                                     .dtype = DType::q8, .gap_bytes = 3},
                      // Sums of squares around zero would lose the variance altogether.
                      StatisticsCase{.n = 1001, .q_heads = 2, .kv_heads = 1, .head_dim = 64,
                                     .mean = 10000.0F}));

TEST(ChannelStatistics, GroupingOfTokensIntoCallsDoesNotMatter) {
    const uint32_t n = 300;
    const std::vector<float> k = random_values(size_t{n} * 2 * 32, 3, 5.0F);
    const std::vector<float> q = random_values(size_t{n} * 4 * 32, 4);
    ChannelStatistics whole(small_shape(1));
    whole.observe_keys({0}, make_tensor(k, n, 2, 32).view);
    whole.observe_queries({0}, make_tensor(q, n, 4, 32).view);
    for (const uint32_t chunk : {1U, 7U, 64U, 299U}) {
        ChannelStatistics parts(small_shape(1));
        for (uint32_t begin = 0; begin < n; begin += chunk) {
            const uint32_t count = std::min(chunk, n - begin);
            const uint32_t end = begin + count;
            const std::vector<float> k_part(k.begin() + begin * 64, k.begin() + end * 64);
            const std::vector<float> q_part(q.begin() + begin * 128, q.begin() + end * 128);
            parts.observe_keys({0}, make_tensor(k_part, count, 2, 32).view);
            parts.observe_queries({0}, make_tensor(q_part, count, 4, 32).view);
        }
        for (uint32_t h = 0; h < 2; ++h) {
            expect_close(parts.moments({0}, h), whole.moments({0}, h), 1e-6F);
        }
        EXPECT_EQ(parts.token_count(), n);
    }
}

TEST(ChannelStatistics, MergeEqualsWhole) {
    const uint32_t n = 200;
    const std::vector<float> k = random_values(size_t{n} * 2 * 32, 5, -3.0F, 0.1F);
    const std::vector<float> q = random_values(size_t{n} * 4 * 32, 6);
    ChannelStatistics whole(small_shape(1));
    whole.observe_keys({0}, make_tensor(k, n, 2, 32).view);
    whole.observe_queries({0}, make_tensor(q, n, 4, 32).view);
    for (const uint32_t cut : {0U, 1U, 77U, 199U, 200U}) {
        ChannelStatistics a(small_shape(1));
        ChannelStatistics b(small_shape(1));
        const auto observe = [&](ChannelStatistics& to, uint32_t begin, uint32_t end) {
            const std::vector<float> k_part(k.begin() + begin * 64, k.begin() + end * 64);
            const std::vector<float> q_part(q.begin() + begin * 128, q.begin() + end * 128);
            to.observe_keys({0}, make_tensor(k_part, end - begin, 2, 32).view);
            to.observe_queries({0}, make_tensor(q_part, end - begin, 4, 32).view);
        };
        observe(a, 0, cut);
        observe(b, cut, n);
        a.merge(b);
        for (uint32_t h = 0; h < 2; ++h) {
            expect_close(a.moments({0}, h), whole.moments({0}, h), 1e-6F);
        }
        EXPECT_EQ(a.token_count(), n);
    }
}

TEST(ChannelStatistics, ConstantChannelsHaveExactlyNoVariance) {
    ChannelStatistics statistics(small_shape(1));
    const std::vector<float> k(size_t{1000} * 2 * 32, 0.1F);
    statistics.observe_keys({0}, make_tensor(k, 1000, 2, 32).view);
    for (const float variance : statistics.moments({0}, 1).key_variance) EXPECT_EQ(variance, 0.0F);
    for (const float mean : statistics.moments({0}, 1).key_mean) EXPECT_EQ(mean, 0.1F);
}

TEST(ChannelStatistics, OnlyFullLayersAreKept) {
    ModelShape shape = small_shape(3);
    shape.layers[0].kind = LayerKind::sliding;
    shape.layers[2] = {.kind = LayerKind::none};
    ChannelStatistics statistics(shape);
    const std::vector<float> k = random_values(size_t{3} * 2 * 32, 7);
    const std::vector<float> q = random_values(size_t{3} * 4 * 32, 8);
    for (const uint32_t l : {0U, 1U}) {
        statistics.observe_keys({l}, make_tensor(k, 3, 2, 32).view);
        statistics.observe_queries({l}, make_tensor(q, 3, 4, 32).view);
    }
    EXPECT_EQ(statistics.kv_head_count({0}), 0U);
    EXPECT_EQ(statistics.kv_head_count({1}), 2U);
    EXPECT_EQ(statistics.key_token_count({0}), 0U);
    EXPECT_EQ(statistics.token_count(), 3U) << "layers that keep no labels are not waited for";
    statistics.observe_keys({1}, make_tensor(k, 3, 2, 32).view);
    EXPECT_EQ(statistics.token_count(), 3U) << "queries are missing";
}

TEST(ChannelStatistics, ResetForgets) {
    ChannelStatistics statistics(small_shape(1));
    const std::vector<float> k = random_values(size_t{9} * 2 * 32, 9);
    statistics.observe_keys({0}, make_tensor(k, 9, 2, 32).view);
    const ChannelMoments first = statistics.moments({0}, 0);
    statistics.reset();
    EXPECT_EQ(statistics.token_count(), 0U);
    EXPECT_EQ(statistics.moments({0}, 0).key_mean, std::vector<float>(32, 0.0F));
    statistics.observe_keys({0}, make_tensor(k, 9, 2, 32).view);
    EXPECT_EQ(statistics.moments({0}, 0), first);
}

TEST(ChannelStatistics, BytesGrowWithChannelsOnly) {
    const size_t small = ChannelStatistics::bytes(small_shape(1, 4, 2, 32));
    EXPECT_EQ(ChannelStatistics::bytes(small_shape(1, 16, 2, 32)), small);
    EXPECT_EQ(ChannelStatistics::bytes(small_shape(1, 4, 2, 64)) - small, 2 * 32 * 28U);
}

}  // namespace
}  // namespace shoal::calib
