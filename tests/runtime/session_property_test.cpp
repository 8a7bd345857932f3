// Random use of the public interface against a plain model: whatever was appended, overwritten,
// removed, put back, refused, given up and reconfigured, what is attended is what is visible, and
// the result is exact attention over it.
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "tests/calib/support.hpp"
#include "tests/runtime/session_model.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal {
namespace {

using calib::test::make_tensor;
using calib::test::OwnedTensor;
using testing::StoreModel;

constexpr uint32_t kQueriesMax = 320;
constexpr uint32_t kStores = 2;

class SessionRig {
public:
    SessionRig(uint64_t seed, bool on_disk) : random_(seed), rows_(seed) {
        config_ = testing::test_config();
        if (on_disk) config_.disk.dir = ::testing::TempDir();
        config_.selector.kind = made_for_ = static_cast<SelectorKind>(one_of({0, 0, 1, 2, 3, 4}));
        config_.selector.label_bits = static_cast<LabelBits>(one_of({0, 2, 4, 8, 16}));
        config_.selector.page = one_of({4, 8, 16, 32, 64});
        config_.host.rows = seed % 3 == 0 ? HostRows::q8 : HostRows::engine;
        shape_ = random_shape();
        randomise_sharing();
        randomise_policy();
        SessionOptions options;
        options.store_count_max = kStores;
        options.slots_per_store = slots_ = one_of({64, 200, 500, 900});
        options.queries_per_step_max = kQueriesMax;
        Config largest = config_;  // that randomise_policy() makes: its lists have room
        largest.budget.rows = 2000;
        largest.budget.dense_rows = 3000;
        largest.prefetch.percent = 400;
        largest = testing::with_least_memory(largest, shape_, options);
        config_.host.kv_bytes = largest.host.kv_bytes;
        Result<std::unique_ptr<Session>> made = Session::create(largest, shape_, options);
        if (!made) throw std::runtime_error(made.status().message());
        session_ = std::move(*made);
        const Status made_smaller = session_->reconfigure(config_);
        if (!made_smaller) throw std::runtime_error(made_smaller.message());
        for (uint32_t i = 0; i < kStores; ++i) {
            ids_.push_back(*session_->open());
            models_.emplace_back(shape_, stored_rows(config_, shape_.rows));
        }
    }

    void use(uint32_t rounds) {
        step(std::min(slots_, 300U));  // enough to learn channels from
        for (uint32_t i = 0; i < rounds && !::testing::Test::HasFailure(); ++i) {
            SCOPED_TRACE("round " + std::to_string(i));
            const uint32_t which = below(20);
            if (which < 11) step(1 + below(which == 0 ? kQueriesMax : 6));
            else if (which < 13) put();
            else if (which < 15) truncate();
            else if (which < 16) abandon();
            else if (which < 17) reconfigure();
            else if (which < 18 && below(3) == 0) reopen();
            else read();
        }
    }

    Stats stats() const { return session_->stats(); }

private:
    uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
    uint32_t one_of(std::initializer_list<uint32_t> values) {
        return values.begin()[below(static_cast<uint32_t>(values.size()))];
    }
    // That a session made for `made_for_` can change to.
    SelectorKind random_kind() {
        const auto simple = static_cast<SelectorKind>(one_of({1, 2}));
        if (made_for_ == SelectorKind::hybrid) return static_cast<SelectorKind>(below(5));
        return below(2) == 0 ? simple : made_for_;
    }

    // Anchors are any layers but the first, which is a dense one at times.
    void randomise_sharing() {
        if (testing::rerun_as("head-sharing")) return;
        config_.sharing.kind = static_cast<SharingKind>(below(3));
        bool equal_heads = true;
        for (uint32_t l = 1; l < shape_.layers.size(); ++l) {
            if (shape_.layers[l].kind == LayerKind::none) continue;
            equal_heads = equal_heads &&
                          shape_.layers[l].kv_head_count == shape_.layers[0].kv_head_count;
            if (below(2) == 0) config_.sharing.anchors.push_back(l);
        }
        if (equal_heads) config_.sharing.heads = static_cast<SharingHeads>(below(2));
        const bool tidal = config_.sharing.kind == SharingKind::tidal;
        if (tidal && config_.sharing.anchors.empty()) config_.sharing.kind = SharingKind::layer;
    }

    // The layer whose selection this one attends.
    uint32_t anchor_of(uint32_t layer) const {
        uint32_t anchor = layer;
        if (config_.sharing.kind != SharingKind::tidal) return anchor;
        for (const uint32_t l : config_.sharing.anchors) {
            if (l <= layer) anchor = l;
        }
        return anchor;
    }

    ModelShape random_shape() {
        ModelShape shape;
        const uint32_t layers = 1 + below(3);
        shape.q_head_count = 6;
        for (uint32_t l = 0; l < layers; ++l) {
            LayerShape layer;
            layer.kv_head_count = one_of({1, 2, 3, 6});
            layer.k_head_dim = one_of({32, 48, 64});
            layer.v_head_dim = one_of({32, 64, 80});
            if (l > 0 && below(4) == 0) layer = {LayerKind::none, 0, 0, 0, 0};
            shape.layers.push_back(layer);
        }
        shape.rows.k = static_cast<DType>(below(3));
        shape.rows.v = static_cast<DType>(below(3));
        if (below(3) == 0) shape.attention_scale = 0.2F;
        return shape;
    }

    void randomise_policy() {
        config_.selector.combine = below(2) == 0 ? CombineKind::sum : CombineKind::max;
        config_.budget.rows = one_of({1, 7, 40, 2000});
        config_.budget.dense_below = one_of({0, 1, 100});
        config_.budget.dense_rows = one_of({5, 3000});
        config_.budget.dense_layers = below(3) == 0 ? std::vector<uint32_t>{0}
                                                    : std::vector<uint32_t>{};
        config_.safety = {below(6), 1 + below(20)};
        config_.stats.recall_every = one_of({0, 1, 3});
        if (config_.disk.dir.empty()) return;
        config_.prefetch.kind = static_cast<PrefetchKind>(below(5));
        config_.prefetch.percent = 100 + below(301);
    }

    OwnedTensor tensor(const std::vector<float>& values, uint32_t n, uint32_t heads, uint32_t dim,
                       DType dtype) {
        return make_tensor(values, n, heads, dim, dtype, 16 * size_t{below(2)});
    }

    std::vector<int64_t> choose_slots(StoreModel& model, uint32_t& n, bool& named) {
        const uint32_t end = model.slot_end();
        named = end + n > slots_ || below(3) == 0;
        std::vector<int64_t> slots(n);
        if (!named) {
            std::iota(slots.begin(), slots.end(), int64_t{end});
            return slots;
        }
        n = std::min(n, slots_);
        std::set<int64_t> chosen;
        const bool dense = below(2) == 0;  // a run, or anywhere
        const uint32_t first = below(slots_);
        for (uint32_t i = 0; chosen.size() < n; ++i) {
            chosen.insert(dense ? (first + i) % slots_ : below(slots_));
        }
        slots.assign(chosen.begin(), chosen.end());
        if (below(2) == 0) std::shuffle(slots.begin(), slots.end(), random_);
        return slots;
    }

    // Rows of one layer for some slots, through append() (no store) or put(); and into the model.
    void write_layer(uint32_t l, uint32_t s, const std::vector<int64_t>& slots, bool by_put) {
        const LayerShape& layer = shape_.layers[l];
        const auto n = static_cast<uint32_t>(slots.size());
        const DType k_type = static_cast<DType>(below(3));
        const DType v_type = static_cast<DType>(below(3));
        std::vector<float> k = rows_.make(n, layer.kv_head_count, layer.k_head_dim);
        std::vector<float> v = rows_.make(n, layer.kv_head_count, layer.v_head_dim);
        for (float& x : k) x = testing::stored(x, k_type);
        for (float& x : v) x = testing::stored(x, v_type);
        const OwnedTensor k_rows = tensor(k, n, layer.kv_head_count, layer.k_head_dim, k_type);
        const OwnedTensor v_rows = tensor(v, n, layer.kv_head_count, layer.v_head_dim, v_type);
        const auto write = [&](const ConstTensor& a, const ConstTensor& b) {
            return by_put ? session_->put({l}, ids_[s], slots, a, b)
                          : session_->append({l}, a, b);
        };
        if (below(8) == 0) {
            std::vector<float> bad = k;
            bad[below(static_cast<uint32_t>(bad.size()))] = NAN;
            const OwnedTensor rows = tensor(bad, n, layer.kv_head_count, layer.k_head_dim, k_type);
            EXPECT_FALSE(session_->append({l}, rows.view, {}));
        }
        if (below(2) == 0) {
            const Status written = write(k_rows.view, v_rows.view);
            ASSERT_TRUE(written) << written.message();
        } else {
            ASSERT_TRUE(write({}, v_rows.view));
            ASSERT_TRUE(write(k_rows.view, {}));
        }
        for (uint32_t i = 0; i < n; ++i) {
            const auto slot = static_cast<uint32_t>(slots[i]);
            models_[s].write_k(l, slot, k.data() + size_t{i} * layer.kv_head_count *
                                                       layer.k_head_dim);
            models_[s].write_v(l, slot, v.data() + size_t{i} * layer.kv_head_count *
                                                       layer.v_head_dim);
        }
    }

    void step(uint32_t n) {
        const uint32_t s = below(kStores);
        bool named = false;
        const std::vector<int64_t> slots = choose_slots(models_[s], n, named);
        const uint32_t offsets[2] = {0, n};
        StepInput input;
        input.stores = {&ids_[s], 1};
        input.token_offsets = offsets;
        if (named) input.slots = slots;
        const Status begun = session_->begin_step(input);
        ASSERT_TRUE(begun) << begun.message();
        for (const int64_t slot : slots) models_[s].stamp(static_cast<uint32_t>(slot));

        const std::vector<std::vector<uint32_t>> visible = random_views(models_[s], slots, n);
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        for (const std::vector<uint32_t>& seen : visible) {
            for (const uint32_t slot : seen) {
                const bool first = ranges.size() == range_offsets.back();
                if (!first && ranges.back().end == slot) ranges.back().end++;
                else ranges.push_back({slot, slot + 1});
            }
            range_offsets.push_back(static_cast<uint32_t>(ranges.size()));
        }
        const Visibility visibility{offsets, range_offsets, ranges, below(2) == 0 ? 0 : ++version_};
        const uint32_t layers_served = below(8) == 0 ? below(3) : UINT32_MAX;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            if (shape_.layers[l].kind == LayerKind::none) continue;
            hint(l + 1, n);
            write_layer(l, s, slots, false);
            if (::testing::Test::HasFatalFailure()) return;
            if (below(8) == 0) refused_attend(l, s, visibility);
            if (l >= layers_served) break;
            attend(l, s, visibility, visible);
            if (::testing::Test::HasFatalFailure()) return;
        }
        // A step that was given up is ended, or begun over.
        if (layers_served != UINT32_MAX && below(2) == 0) return;
        ASSERT_TRUE(session_->end_step());
    }

    void hint(uint32_t l, uint32_t n) {
        if (l >= shape_.layers.size() || !session_->wants_hint({l}) || below(4) == 0) return;
        const LayerShape& layer = shape_.layers[l];
        const std::vector<float> q = rows_.make(n, shape_.q_head_count, layer.k_head_dim);
        const OwnedTensor rows =
            tensor(q, n, shape_.q_head_count, layer.k_head_dim, DType::f32);
        const Status hinted = session_->hint_query({l}, rows.view);
        EXPECT_TRUE(hinted) << hinted.message();
    }

    // The last query would see a slot that was never written.
    void refused_attend(uint32_t l, uint32_t s, const Visibility& visibility) {
        const LayerShape& layer = shape_.layers[l];
        const auto n = static_cast<uint32_t>(visibility.range_offsets.size() - 1);
        const uint32_t heads = shape_.q_head_count;
        const std::vector<float> q = rows_.make(n, heads, layer.k_head_dim);
        const OwnedTensor q_rows = tensor(q, n, heads, layer.k_head_dim, DType::f32);
        std::vector<float> out(size_t{n} * heads * layer.v_head_dim);
        const Tensor to{out.data(), n, heads, layer.v_head_dim,
                        size_t{heads} * layer.v_head_dim * 4, size_t{layer.v_head_dim} * 4};
        std::vector<SlotRange> ranges(visibility.ranges.begin(), visibility.ranges.end());
        ranges.back().end = models_[s].slot_end() + 1;
        Visibility wrong = visibility;
        wrong.ranges = ranges;
        wrong.version = below(2) == 0 ? 0 : ++version_;
        const Status refused = session_->attend({l}, q_rows.view, wrong, to);
        EXPECT_EQ(refused.code(), StatusCode::invalid_argument) << refused.message();
    }

    // Per query: everything that is whole once this step is written, or a part of it, in runs.
    std::vector<std::vector<uint32_t>> random_views(const StoreModel& model,
                                                    const std::vector<int64_t>& written,
                                                    uint32_t n) {
        std::vector<uint32_t> whole;
        for (uint32_t slot = 0; slot < model.slot_end(); ++slot) {
            const bool now = std::find(written.begin(), written.end(), slot) != written.end();
            if (now || model.is_whole(slot)) whole.push_back(slot);
        }
        std::vector<std::vector<uint32_t>> views;
        for (uint32_t query = 0; query < n; ++query) {
            const uint32_t keep = one_of({1, 1, 2, 10});  // 1 of `keep` runs
            std::vector<uint32_t> seen;
            bool take = true;
            for (const uint32_t slot : whole) {
                if (below(keep == 1 ? 1000000 : 20) == 0) take = below(keep) == 0;
                if (take) seen.push_back(slot);
            }
            if (seen.empty()) seen.push_back(whole.back());
            views.push_back(std::move(seen));
        }
        return views;
    }

    void attend(uint32_t l, uint32_t s, const Visibility& visibility,
                const std::vector<std::vector<uint32_t>>& visible) {
        const LayerShape& layer = shape_.layers[l];
        const auto n = static_cast<uint32_t>(visible.size());
        const uint32_t heads = shape_.q_head_count;
        const std::vector<float> q = rows_.make(n, heads, layer.k_head_dim);
        const OwnedTensor q_rows = tensor(q, n, heads, layer.k_head_dim, DType::f32);
        const size_t out_stride = layer.v_head_dim + 8 * below(2);
        std::vector<float> out(n * heads * out_stride, NAN);
        std::vector<float> lse(size_t{n} * heads, NAN);
        const Tensor to{out.data(), n, heads, layer.v_head_dim, heads * out_stride * 4,
                        out_stride * 4};
        const bool wants_lse = below(2) == 0;
        const Status attended = session_->attend({l}, q_rows.view, visibility, to,
                                                 wants_lse ? lse.data() : nullptr);
        ASSERT_TRUE(attended) << attended.message();
        const bool exact = n > config_.budget.sparse_queries_max;
        for (uint32_t i = 0; i < std::min(n, 4U); ++i) {
            const uint32_t query = exact ? below(n) : i;
            for (uint32_t head = below(2); head < heads; head += 1 + below(3)) {
                const uint32_t kv_head = head / (heads / layer.kv_head_count);
                SCOPED_TRACE("layer " + std::to_string(l) + ", query " + std::to_string(query) +
                             ", head " + std::to_string(head));
                std::vector<uint32_t> slots = visible[query];
                if (!exact) {
                    slots = session_->attended_slots({l}, query, kv_head);
                    check_list(l, models_[s], visible[query], slots);
                    if (::testing::Test::HasFatalFailure()) return;
                    const bool by_head = config_.sharing.heads == SharingHeads::index;
                    ASSERT_EQ(slots, session_->attended_slots({anchor_of(l)}, query,
                                                              by_head || anchor_of(l) == l
                                                                  ? kv_head
                                                                  : 0));
                }
                const size_t row = size_t{query} * heads + head;
                const StoreModel::Attended want =
                    models_[s].attend(l, head, q.data() + row * layer.k_head_dim, slots);
                for (uint32_t c = 0; c < layer.v_head_dim; ++c) {
                    // Relative to the terms: a sum of .6, of terms of 5.8, was met 3.1e-5 apart.
                    const double rounding = 1e-5 * std::max(1.0, want.magnitude[c]);
                    ASSERT_NEAR(want.out[c], out[row * out_stride + c], rounding)
                        << "channel " << c << " of magnitude " << want.magnitude[c];
                }
                if (wants_lse) {
                    ASSERT_NEAR(want.lse, lse[row], 1e-4);
                }
            }
        }
    }

    // What a sparse attend reports is allowed by the configuration.
    void check_list(uint32_t l, const StoreModel& model, const std::vector<uint32_t>& visible,
                    const std::vector<uint32_t>& slots) {
        for (size_t i = 1; i < slots.size(); ++i) ASSERT_LT(slots[i - 1], slots[i]);
        ASSERT_TRUE(std::includes(visible.begin(), visible.end(), slots.begin(), slots.end()));
        const std::vector<uint32_t> safety = model.safety(visible, config_.safety);
        ASSERT_TRUE(std::includes(slots.begin(), slots.end(), safety.begin(), safety.end()));

        const Config::Budget& budget = config_.budget;
        const bool dense_layer =
            std::find(budget.dense_layers.begin(), budget.dense_layers.end(), l) !=
            budget.dense_layers.end();
        const uint32_t below = budget.dense_below != 0 ? budget.dense_below : 2 * budget.rows;
        const uint32_t rows = dense_layer ? budget.dense_rows : budget.rows;
        size_t want = safety.size();
        const SelectorKind kind = config_.selector.kind;
        if (kind != SelectorKind::recent) {
            want = std::min<size_t>(visible.size(), safety.size() + rows);
            const bool learns = kind != SelectorKind::page_bounds;
            const bool all = slots.size() == visible.size();
            if (learns && !session_->has_channel_statistics() && all) return;
        }
        if (config_.selector.kind == SelectorKind::dense || visible.size() <= below ||
            (dense_layer && visible.size() <= budget.dense_rows)) {
            want = visible.size();
        }
        ASSERT_EQ(slots.size(), want);
    }

    void put() {
        const uint32_t s = below(kStores);
        uint32_t n = 1 + below(20);
        bool named = false;
        const std::vector<int64_t> slots = choose_slots(models_[s], n, named);
        for (const int64_t slot : slots) models_[s].stamp(static_cast<uint32_t>(slot));
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            if (shape_.layers[l].kind != LayerKind::none) write_layer(l, s, slots, true);
        }
    }

    void truncate() {
        const uint32_t s = below(kStores);
        const uint32_t end = models_[s].slot_end();
        const uint32_t keep = below(2) == 0 ? below(end + 1) : end - std::min(end, below(5));
        ASSERT_TRUE(session_->truncate(ids_[s], keep));
        models_[s].truncate(keep);
        uint64_t used = 0;
        for (const StoreModel& model : models_) used += model.slot_end();
        ASSERT_EQ(session_->stats().slots_used, used);
    }

    // A step that the engine gave up: its tokens count as written, without rows.
    void abandon() {
        const uint32_t s = below(kStores);
        uint32_t n = 1 + below(3);
        bool named = false;
        const std::vector<int64_t> slots = choose_slots(models_[s], n, named);
        const uint32_t offsets[2] = {0, n};
        ASSERT_TRUE(session_->begin_step({{&ids_[s], 1}, offsets, slots, {}, {}}));
        for (const int64_t slot : slots) models_[s].stamp(static_cast<uint32_t>(slot));
    }

    void reconfigure() {
        const Status ended = session_->end_step();  // of a step that was given up, if any
        randomise_policy();
        config_.selector.kind = random_kind();
        const Status status = session_->reconfigure(config_);
        ASSERT_TRUE(status) << status.message() << (ended ? " (a step was open)" : "");
    }

    void reopen() {
        const uint32_t s = below(kStores);
        const StoreId old = ids_[s];
        ASSERT_TRUE(session_->close(old));
        EXPECT_FALSE(session_->truncate(old, 0));
        Result<StoreId> opened = session_->open();
        ASSERT_TRUE(opened);
        EXPECT_FALSE(*opened == old);
        ids_[s] = *opened;
        models_[s].truncate(0);
    }

    void read() {
        const uint32_t s = below(kStores);
        std::vector<int64_t> slots;
        for (uint32_t i = 0; i <= below(9); ++i) slots.push_back(below(slots_));
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            if (shape_.layers[l].kind == LayerKind::none) continue;
            for (const bool k : {true, false}) {
                std::vector<std::byte> want;
                for (const int64_t slot : slots) {
                    const auto row = models_[s].bytes(l, k, static_cast<uint32_t>(slot));
                    want.insert(want.end(), row.begin(), row.end());
                }
                std::vector<std::byte> got(want.size(), std::byte{0x55});
                const auto part = k ? Session::Part::k : Session::Part::v;
                ASSERT_TRUE(session_->read({l}, ids_[s], slots, part, got));
                ASSERT_EQ(got, want) << "layer " << l << (k ? ", K" : ", V");
            }
        }
    }

    std::mt19937_64 random_;
    testing::RandomRows rows_;
    Config config_;
    SelectorKind made_for_ = SelectorKind::labels;
    ModelShape shape_;
    uint32_t slots_ = 0;
    uint64_t version_ = 0;
    std::unique_ptr<Session> session_;
    std::vector<StoreId> ids_;
    std::vector<StoreModel> models_;
};

void use_sessions(uint64_t first_seed, uint64_t seeds, uint32_t rounds, bool on_disk = false) {
    uint64_t sparse = 0;
    uint64_t dense = 0;
    uint64_t exact = 0;
    for (uint64_t seed = first_seed; seed < first_seed + seeds; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        SessionRig rig(seed, on_disk);
        rig.use(rounds);
        if (::testing::Test::HasFailure()) return;
        sparse += rig.stats().queries_sparse;
        dense += rig.stats().queries_dense;
        exact += rig.stats().queries_exact;
    }
    EXPECT_GT(sparse, seeds);
    EXPECT_GT(dense, seeds);
    EXPECT_GT(exact, seeds);
}

#ifdef SHOAL_SANITIZED  // 6 to 12 times slower
constexpr uint64_t kSeeds = 20;
#else
constexpr uint64_t kSeeds = 60;
#endif

TEST(SessionProperty, AnyUseIsAttentionOverWhatIsVisible) { use_sessions(1, kSeeds, 30); }

TEST(SessionProperty, AnyUseOnDiskIsAttentionOverWhatIsVisible) {
    SHOAL_SKIP_IN_RERUNS();
    use_sessions(500, kSeeds / 2, 30, true);
}

TEST(LongSessionProperty, AnyUseIsAttentionOverWhatIsVisible) { use_sessions(1000, 150, 60); }

}  // namespace
}  // namespace shoal
