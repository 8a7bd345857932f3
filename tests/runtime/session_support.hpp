// A small model with random rows, driven through the public interface.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "shoal/shoal.hpp"
#include "tests/runtime/session_model.hpp"

namespace shoal::testing {

inline ModelShape small_model(uint32_t layers = 3, uint32_t kv_heads = 3, uint32_t q_per_kv = 3,
                              uint32_t head_dim = 64, DType dtype = DType::f16) {
    ModelShape shape;
    for (uint32_t i = 0; i < layers; ++i) {
        shape.layers.push_back({LayerKind::full, kv_heads, head_dim, head_dim, 0});
    }
    shape.q_head_count = kv_heads * q_per_kv;
    shape.rows = {dtype, dtype};
    return shape;
}

// For cases by stored dtype: q8 is what `host.rows` makes of an f16 cache.
inline DType engine_dtype(DType stored) { return stored == DType::q8 ? DType::f16 : stored; }
inline HostRows host_rows(DType stored) {
    return stored == DType::q8 ? HostRows::q8 : HostRows::engine;
}

// SHOAL_TEST_CONFIG reruns the whole suite under other configurations, names with commas between
// (tests/run --full).
inline bool rerun_as(const std::string& name) {
    const char* set = std::getenv("SHOAL_TEST_CONFIG");
    if (set == nullptr) return false;
    return ("," + std::string(set) + ",").find("," + name + ",") != std::string::npos;
}

inline Config test_config(uint32_t rows = 32) {
    Config config;
    config.budget.rows = rows;
    config.budget.dense_below = 1;
    config.budget.dense_layers = {};
    config.safety = {4, 16};
    config.profile.tokens = 256;
    config.host.threads = 2;
    if (rerun_as("one-thread")) config.host.threads = 1;
    if (rerun_as("tiny-budget")) {
        config.budget.rows = std::min(rows, 3U);
        config.safety = {1, 1};
    }
    if (rerun_as("disk")) config.disk.dir = ::testing::TempDir();
    if (rerun_as("head-sharing")) config.sharing.kind = SharingKind::head;
    return config;
}

// For cases that choose all that a rerun would change.
#define SHOAL_SKIP_IN_RERUNS() \
    if (std::getenv("SHOAL_TEST_CONFIG") != nullptr) GTEST_SKIP() << "runs once"

// For cases about what a disk changes: counts of stages, bytes of RAM.
#define SHOAL_SKIP_ON_DISK() \
    if (::shoal::testing::rerun_as("disk")) GTEST_SKIP() << "holds without a disk only"

// With a disk: no more RAM than a session needs, so that rows come and go all the time.
inline Config with_least_memory(const Config& config, const ModelShape& shape,
                                const SessionOptions& options) {
    Config least = config;
    if (config.disk.dir.empty() || config.host.kv_bytes != 0) return least;
    const Result<MemoryPlan> plan = Session::plan(config, shape, options);
    // A little for longer lists after reconfigure().
    if (plan) least.host.kv_bytes = plan->least_bytes + (256 << 10);
    return least;
}

// Keys and queries with a few loud channels, so that labels have something to find.
class RandomRows {
public:
    explicit RandomRows(uint64_t seed) : random_(seed) {}
    std::vector<float> make(uint32_t n, uint32_t heads, uint32_t dim) {
        std::normal_distribution<float> normal;
        std::vector<float> rows(size_t{n} * heads * dim);
        for (size_t i = 0; i < rows.size(); ++i) {
            rows[i] = normal(random_) * (i % dim % 7 == 0 ? 3.0F : 0.5F);
        }
        return rows;
    }

private:
    std::mt19937_64 random_;
};

inline ConstTensor tensor_of(const std::vector<float>& data, uint32_t n, uint32_t heads,
                             uint32_t dim) {
    return {reinterpret_cast<const std::byte*>(data.data()), DType::f32, n, heads, dim,
            size_t{heads} * dim * 4, size_t{dim} * 4};
}

// One sequence in one store, with its rows kept beside it for checking.
class Driver {
public:
    Driver(const Config& config, const ModelShape& shape, uint32_t slots, uint64_t seed = 1)
        : shape_(shape), rows_(seed) {
        SessionOptions options;
        options.slots_per_store = slots;
        options.queries_per_step_max = 1024;
        Result<std::unique_ptr<Session>> made =
            Session::create(with_least_memory(config, shape, options), shape, options);
        if (!made) throw std::runtime_error(made.status().message());
        use(std::move(*made));
    }
    Driver(std::unique_ptr<Session> session, const ModelShape& shape, uint64_t seed = 1)
        : shape_(shape), rows_(seed) {
        use(std::move(session));
    }

    Session& session() { return *session_; }
    StoreId store() const { return store_; }
    uint32_t token_count() const { return token_count_; }

    // Goes on where `other` stands, in a store of this session that holds the same tokens.
    void continue_from(const Driver& other, StoreId store) {
        store_ = store;
        token_count_ = other.token_count_;
        rows_ = other.rows_;
        k_ = other.k_;
        v_ = other.v_;
    }

    void truncate(uint32_t token_count) {
        EXPECT_TRUE(session_->truncate(store_, token_count));
        token_count_ = token_count;
        for (size_t l = 0; l < shape_.layers.size(); ++l) {
            const LayerShape& s = shape_.layers[l];
            k_[l].resize(size_t{token_count} * s.kv_head_count * s.k_head_dim);
            v_[l].resize(size_t{token_count} * s.kv_head_count * s.v_head_dim);
        }
    }

    // From now on each layer's query is made one layer early, and hinted as it is plus `error` in
    // every number.
    void hint(float error) {
        hints_ = true;
        hint_error_ = error;
    }

    // A causal step of n tokens; returns out[layer] as [n, q_heads, dim].
    std::vector<std::vector<float>> step(uint32_t n) {
        const uint32_t first = token_count_;
        const uint32_t offsets[2] = {0, n};
        const StoreId stores[1] = {store_};
        StepInput input;
        input.stores = stores;
        input.token_offsets = offsets;
        EXPECT_TRUE(session_->begin_step(input));
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (uint32_t i = 0; i < n; ++i) {
            ranges.push_back({0, first + i + 1});
            range_offsets.push_back(i + 1);
        }
        token_count_ += n;
        Visibility visibility{offsets, range_offsets, ranges, ++version_};
        std::vector<std::vector<float>> outs;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            outs.push_back(layer_step(l, n, visibility));
        }
        EXPECT_TRUE(session_->end_step());
        return outs;
    }

    // Exact attention of the query given last in this layer over the listed slots, in double.
    std::vector<float> expected(uint32_t layer, uint32_t query, const std::vector<uint32_t>& slots,
                                uint32_t head) const {
        const LayerShape& s = shape_.layers[layer];
        const uint32_t dim = s.k_head_dim;
        const uint32_t kv_head = head / (shape_.q_head_count / s.kv_head_count);
        const float* q =
            last_q_.at(layer).data() + (size_t{query} * shape_.q_head_count + head) * dim;
        std::vector<double> score;
        double best = -1e300;
        for (const uint32_t slot : slots) {
            const std::vector<float> k = kept(
                k_[layer].data() + (size_t{slot} * s.kv_head_count + kv_head) * dim, dim);
            double dot = 0;
            for (uint32_t c = 0; c < dim; ++c) dot += double{q[c]} * double{k[c]};
            score.push_back(dot / std::sqrt(double(dim)));
            best = std::max(best, score.back());
        }
        double sum = 0;
        std::vector<double> out(dim, 0.0);
        for (size_t i = 0; i < slots.size(); ++i) {
            const double weight = std::exp(score[i] - best);
            sum += weight;
            const std::vector<float> v = kept(
                v_[layer].data() + (size_t{slots[i]} * s.kv_head_count + kv_head) * dim, dim);
            for (uint32_t c = 0; c < dim; ++c) out[c] += weight * double{v[c]};
        }
        std::vector<float> result;
        for (const double x : out) result.push_back(static_cast<float>(x / sum));
        return result;
    }

private:
    void use(std::unique_ptr<Session> session) {
        session_ = std::move(session);
        store_ = *session_->open();
        k_.resize(shape_.layers.size());
        v_.resize(shape_.layers.size());
    }
    // A row as it is stored.
    std::vector<float> kept(const float* row, uint32_t dim) const {
        std::vector<float> values(row, row + dim);
        keep_row(values.data(), dim, stored_rows(session_->config(), shape_.rows).k);
        return values;
    }

    void hint_layer(uint32_t l, uint32_t n) {
        const uint32_t dim = shape_.layers[l].k_head_dim;
        last_q_[l] = rows_.make(n, shape_.q_head_count, dim);
        std::vector<float> q = last_q_[l];
        for (float& x : q) x += hint_error_;
        if (!session_->wants_hint({l})) return;
        const Status hinted =
            session_->hint_query({l}, tensor_of(q, n, shape_.q_head_count, dim));
        EXPECT_TRUE(hinted) << hinted.message();
    }

    std::vector<float> layer_step(uint32_t l, uint32_t n, const Visibility& visibility) {
        const LayerShape& s = shape_.layers[l];
        if (s.kind == LayerKind::none) return {};
        const std::vector<float> k = rows_.make(n, s.kv_head_count, s.k_head_dim);
        const std::vector<float> v = rows_.make(n, s.kv_head_count, s.v_head_dim);
        last_q_.resize(shape_.layers.size());
        if (!hints_ || l == 0) last_q_[l] = rows_.make(n, shape_.q_head_count, s.k_head_dim);
        if (hints_ && l + 1 < shape_.layers.size()) hint_layer(l + 1, n);
        k_[l].insert(k_[l].end(), k.begin(), k.end());
        v_[l].insert(v_[l].end(), v.begin(), v.end());
        const Status appended = session_->append(
            {l}, tensor_of(k, n, s.kv_head_count, s.k_head_dim),
            tensor_of(v, n, s.kv_head_count, s.v_head_dim));
        EXPECT_TRUE(appended) << appended.message();
        std::vector<float> out(size_t{n} * shape_.q_head_count * s.v_head_dim, NAN);
        const Tensor to{out.data(), n, shape_.q_head_count, s.v_head_dim,
                        size_t{shape_.q_head_count} * s.v_head_dim * 4, size_t{s.v_head_dim} * 4};
        const Status attended = session_->attend(
            {l}, tensor_of(last_q_[l], n, shape_.q_head_count, s.k_head_dim), visibility, to);
        EXPECT_TRUE(attended) << attended.message();
        return out;
    }

    ModelShape shape_;
    RandomRows rows_;
    std::unique_ptr<Session> session_;
    StoreId store_;
    uint32_t token_count_ = 0;
    uint64_t version_ = 0;
    std::vector<std::vector<float>> k_, v_, last_q_;
    bool hints_ = false;
    float hint_error_ = 0.0F;
};

}  // namespace shoal::testing
