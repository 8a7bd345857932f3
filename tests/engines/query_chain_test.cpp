// The ops that lead to a layer's queries, found in a graph and run again.
#include "runtime/engines/llama_cpp/query_chain.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "llama_support.hpp"

namespace shoal::testing {
namespace {

using llama_cpp::ChainInputs;
using llama_cpp::CpuBackend;
using llama_cpp::QueryChain;

constexpr int64_t kEmbd = 96;
constexpr int64_t kHeads = 3;
constexpr int64_t kDim = 32;

struct Architecture {
    const char* name;
    bool bias = false;        // as Qwen2
    bool q_norm = false;      // as Qwen3
    bool fused = false;       // Q is a part of one product
    bool lora = false;        // two products of one input, added
    bool rope = true;
    ggml_type weights = GGML_TYPE_F32;
    int64_t tokens = 1;
    int64_t streams = 1;
};

// One layer's ops from input to queries, with weights as a model's.
class LayerGraph {
public:
    explicit LayerGraph(const Architecture& a) : a_(a) {
        plugin();  // loads the CPU backend
        backend_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        const ggml_init_params params = {ggml_tensor_overhead() * 64 + ggml_graph_overhead(),
                                         nullptr, true};
        weights_.reset(ggml_init(params));
        ops_.reset(ggml_init(params));
        q_ = build();
        graph_ = ggml_new_graph(ops_.get());
        ggml_build_forward_expand(graph_, q_);
        weight_buffer_.reset(ggml_backend_alloc_ctx_tensors(weights_.get(), backend_.get()));
        ggml_backend_buffer_set_usage(weight_buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        buffer_.reset(ggml_backend_alloc_ctx_tensors(ops_.get(), backend_.get()));
        fill_weights();
    }

    ggml_tensor* q() { return q_; }
    ggml_tensor* x() { return x_; }
    ggml_tensor* positions() { return positions_; }
    ggml_context* ops() { return ops_.get(); }

    // Computes the queries of random inputs.
    std::vector<float> compute(uint64_t seed) {
        std::mt19937_64 random(seed);
        std::normal_distribution<float> normal;
        auto* input = static_cast<float*>(input_->data);
        for (int64_t i = 0; i < ggml_nelements(input_); ++i) input[i] = normal(random);
        for (int64_t i = 0; positions_ != nullptr && i < a_.tokens; ++i) {
            static_cast<int32_t*>(positions_->data)[i] = static_cast<int32_t>(seed * 7 + i);
        }
        EXPECT_EQ(ggml_backend_graph_compute(backend_.get(), graph_), GGML_STATUS_SUCCESS);
        return values(*q_);
    }

    static std::vector<float> values(const ggml_tensor& q) {
        std::vector<float> all;
        for (int64_t s = 0; s < q.ne[3]; ++s) {
            for (int64_t h = 0; h < q.ne[2]; ++h) {
                for (int64_t t = 0; t < q.ne[1]; ++t) {
                    const auto* row = reinterpret_cast<const float*>(
                        static_cast<const char*>(q.data) + static_cast<size_t>(s) * q.nb[3] +
                        static_cast<size_t>(h) * q.nb[2] + static_cast<size_t>(t) * q.nb[1]);
                    all.insert(all.end(), row, row + q.ne[0]);
                }
            }
        }
        return all;
    }

private:
    ggml_tensor* weight(ggml_type type, int64_t columns, int64_t rows) {
        return ggml_new_tensor_2d(weights_.get(), type, columns, rows);
    }

    ggml_tensor* build() {
        ggml_context* c = ops_.get();
        input_ = ggml_new_tensor_2d(c, GGML_TYPE_F32, kEmbd, a_.tokens);
        x_ = ggml_scale(c, input_, 1.5F);  // as in a model: what an op gave
        ggml_tensor* cur = ggml_rms_norm(c, x_, 1e-5F);
        cur = ggml_mul(c, cur, weight(GGML_TYPE_F32, kEmbd, 1));
        ggml_tensor* q = project(cur);
        if (a_.bias) q = ggml_add(c, q, weight(GGML_TYPE_F32, kHeads * kDim, 1));
        if (!a_.fused) q = ggml_reshape_3d(c, q, kDim, kHeads, a_.tokens);
        if (a_.q_norm) {
            q = ggml_mul(c, ggml_rms_norm(c, q, 1e-5F), weight(GGML_TYPE_F32, kDim, 1));
        }
        if (a_.rope) {
            positions_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, a_.tokens);
            q = ggml_rope_ext(c, q, positions_, nullptr, kDim, 0, 4096, 1e4F, 1, 0, 1, 32, 1);
        }
        q = ggml_view_4d(c, q, kDim, kHeads, a_.tokens / a_.streams, a_.streams, q->nb[1], q->nb[2],
                         q->nb[2] * static_cast<size_t>(a_.tokens / a_.streams), 0);
        return ggml_permute(c, q, 0, 2, 1, 3);
    }

    ggml_tensor* project(ggml_tensor* cur) {
        ggml_context* c = ops_.get();
        constexpr int64_t kOut = kHeads * kDim;
        if (a_.fused) {
            ggml_tensor* qkv = ggml_mul_mat(c, weight(a_.weights, kEmbd, 2 * kOut), cur);
            return ggml_view_3d(c, qkv, kDim, kHeads, a_.tokens, kDim * sizeof(float), qkv->nb[1],
                                kOut * sizeof(float));
        }
        ggml_tensor* q = ggml_mul_mat(c, weight(a_.weights, kEmbd, kOut), cur);
        if (!a_.lora) return q;
        ggml_tensor* low = ggml_mul_mat(c, weight(GGML_TYPE_F32, kEmbd, 8), cur);
        low = ggml_mul_mat(c, weight(GGML_TYPE_F32, 8, kOut), low);
        return ggml_add(c, q, ggml_scale(c, low, 0.5F));
    }

    void fill_weights() {
        std::mt19937_64 random(3);
        std::normal_distribution<float> normal(0.5F, 1.0F);
        for (ggml_tensor* t = ggml_get_first_tensor(weights_.get()); t != nullptr;
             t = ggml_get_next_tensor(weights_.get(), t)) {
            std::vector<float> values(static_cast<size_t>(ggml_nelements(t)));
            for (float& value : values) value = normal(random);
            ggml_quantize_chunk(t->type, values.data(), t->data, 0, t->ne[1], t->ne[0], nullptr);
            if (t->type == GGML_TYPE_F32) std::memcpy(t->data, values.data(), ggml_nbytes(t));
        }
    }

    const Architecture a_;
    ggml_backend_ptr backend_;
    ggml_context_ptr weights_;
    ggml_context_ptr ops_;
    ggml_backend_buffer_ptr weight_buffer_;
    ggml_backend_buffer_ptr buffer_;
    ggml_tensor* input_ = nullptr;
    ggml_tensor* x_ = nullptr;
    ggml_tensor* positions_ = nullptr;
    ggml_tensor* q_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
};

class QueryChains : public ::testing::TestWithParam<Architecture> {};

INSTANTIATE_TEST_SUITE_P(
    Architectures, QueryChains,
    ::testing::Values(Architecture{"llama"},
                      Architecture{"llama_q4", false, false, false, false, true, GGML_TYPE_Q4_0},
                      Architecture{"qwen2", true}, Architecture{"qwen3", false, true},
                      Architecture{"fused", false, false, true},
                      Architecture{"no_rope", false, false, false, false, false},
                      Architecture{"batch_of_7", false, false, false, false, true, GGML_TYPE_F32,
                                   7},
                      Architecture{"streams", true, true, false, false, true, GGML_TYPE_F32, 6, 3}),
    [](const auto& p) { return std::string(p.param.name); });

TEST_P(QueryChains, GiveTheLayersOwnQueriesBitForBit) {
    LayerGraph graph(GetParam());
    const std::vector<float> first = graph.compute(1);
    QueryChain chain;
    EXPECT_FALSE(chain.fits(*graph.q()));
    ASSERT_TRUE(chain.record(*graph.q()));
    EXPECT_TRUE(chain.fits(*graph.q()));
    CpuBackend cpu;
    for (const uint64_t seed : {2U, 3U}) {
        const std::vector<float> expected = graph.compute(seed);
        ChainInputs inputs;
        ASSERT_TRUE(QueryChain::find_inputs(*graph.q(), inputs));
        EXPECT_EQ(inputs.x, graph.x());
        EXPECT_EQ(inputs.positions, graph.positions());
        const ggml_tensor* q = nullptr;
        const Status ran = chain.run(inputs, cpu, 1, q);
        ASSERT_TRUE(ran) << ran.message();
        EXPECT_EQ(LayerGraph::values(*q), expected);
        EXPECT_NE(expected, first) << "other inputs, other queries";
    }
}

TEST(QueryChainRefuses, WhatIsNoLayer) {
    LayerGraph graph({"llama"});
    QueryChain chain;
    ggml_context* c = graph.ops();
    EXPECT_FALSE(chain.record(*ggml_soft_max(c, graph.q()))) << "an op that is not known";
    EXPECT_FALSE(chain.fits(*graph.q()));
    EXPECT_FALSE(chain.record(*graph.x())) << "no product with a weight";
    EXPECT_FALSE(chain.record(*ggml_add(c, graph.q(), graph.positions()))) << "an input added";
    ggml_tensor* normed = ggml_rms_norm(c, graph.x(), 1e-5F);
    EXPECT_FALSE(chain.record(*ggml_mul_mat(c, ggml_dup_tensor(c, normed), normed)))
        << "a product with what is no weight";
}

// Its weights may be freed before the context.
TEST(QueryChainRefuses, AnAdapterBesideTheWeights) {
    Architecture adapted{"lora"};
    adapted.lora = true;
    LayerGraph graph(adapted);
    graph.compute(1);
    QueryChain chain;
    ChainInputs inputs;
    EXPECT_FALSE(chain.record(*graph.q()));
    EXPECT_FALSE(QueryChain::find_inputs(*graph.q(), inputs));
}

TEST(QueryChainRefuses, InputsOfOtherSizes) {
    LayerGraph one({"llama"});
    Architecture two_tokens{"llama"};
    two_tokens.tokens = 2;
    LayerGraph two(two_tokens);
    one.compute(1);
    two.compute(1);
    QueryChain chain;
    ASSERT_TRUE(chain.record(*one.q()));
    EXPECT_FALSE(chain.fits(*two.q()));
    ChainInputs inputs;
    ASSERT_TRUE(QueryChain::find_inputs(*two.q(), inputs));
    CpuBackend cpu;
    const ggml_tensor* q = nullptr;
    EXPECT_FALSE(chain.run(inputs, cpu, 1, q));
}

}  // namespace
}  // namespace shoal::testing
