#include "tests/sim/session_sim.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "runtime/session_maker.hpp"
#include "shoal/shoal.hpp"

namespace shoal::sim {

namespace {

// One fault in two seeds at most, so that what a fault does is not hidden by others.
Plan plan_of(std::mt19937_64& random) {
    Plan plan;
    plan.seed = random();
    plan.capacity = 1 + static_cast<uint32_t>(random() % 64);
    plan.latency_most_ns = uint64_t{1} << (random() % 20);
    const double chance = 1.0 / static_cast<double>(20 + random() % 200);
    switch (random() % 12) {
        case 0: plan.short_chance = 10 * chance; break;
        case 1: plan.error_chance = chance; break;
        case 2: plan.duplicate_chance = plan.foreign_chance = 10 * chance; break;
        case 3: plan.corrupt_chance = chance; break;
        case 4: plan.misdirect_chance = chance; break;
        case 5: plan.torn_chance = chance; break;
        case 6: plan.late_chance = chance; break;
        case 7:
            plan.short_chance = plan.error_chance = plan.corrupt_chance = plan.late_chance =
                plan.misdirect_chance = plan.torn_chance = chance / 4;
            break;
        default: break;  // late and out of order only
    }
    return plan;
}

ModelShape shape_of(std::mt19937_64& random) {
    constexpr uint32_t kDims[] = {32, 64, 128};
    constexpr DType kTypes[] = {DType::f16, DType::bf16, DType::f32};
    ModelShape shape;
    const auto heads = 1 + static_cast<uint32_t>(random() % 3);
    const uint32_t dim = kDims[random() % 3];
    shape.layers.resize(2 + random() % 2, {LayerKind::full, heads, dim, dim, 0});
    shape.q_head_count = heads * (1 + static_cast<uint32_t>(random() % 3));
    const DType type = kTypes[random() % 3];
    shape.rows = {type, type};
    return shape;
}

Config config_of(std::mt19937_64& random) {
    constexpr SelectorKind kKinds[] = {SelectorKind::labels, SelectorKind::page_bounds,
                                       SelectorKind::hybrid, SelectorKind::dense};
    Config config;
    config.selector.kind = kKinds[random() % 4];
    config.budget.rows = 1 + static_cast<uint32_t>(random() % 200);
    config.budget.dense_below = 1;
    config.budget.dense_layers = {};
    config.safety = {2, 1 + static_cast<uint32_t>(random() % 40)};
    config.profile.tokens = 256;
    config.host.threads = 1;
    config.sharing.kind = static_cast<SharingKind>(random() % 3);
    if (config.sharing.kind == SharingKind::tidal) config.sharing.anchors = {0};
    return config;
}

Executor inline_executor() {
    return {nullptr,
            [](void*, uint32_t count, Executor::Body body, void* context) {
                for (uint32_t i = 0; i < count; ++i) body(context, i, 0);
            },
            [](const void*) -> uint32_t { return 1; }};
}

ConstTensor tensor_of(const std::vector<float>& data, uint32_t n, uint32_t heads, uint32_t dim) {
    return {reinterpret_cast<const std::byte*>(data.data()), DType::f32, n, heads, dim,
            size_t{heads} * dim * 4, size_t{dim} * 4};
}

class SessionSim {
public:
    explicit SessionSim(uint64_t seed)
        : random_(seed), disk_(plan_of(random_)), shape_(shape_of(random_)),
          config_(config_of(random_)) {
        options_.store_count_max = kStores;
        options_.slots_per_store = 400 + static_cast<uint32_t>(random_() % 1200);
        options_.queries_per_step_max = 256;
        options_.executor = inline_executor();
        ram_ = make(config_);
        Config on_disk = config_;
        on_disk.disk.dir = "simulated";
        const Result<MemoryPlan> plan = Session::plan(on_disk, shape_, options_);
        if (!plan) return fail(plan.status().message());
        on_disk.host.kv_bytes = plan->least_bytes + random_() % (1 << 18);
        spilled_ = make(on_disk);
        if (ram_ == nullptr || spilled_ == nullptr) return;
        for (uint32_t i = 0; i < kStores; ++i) {
            stores_.push_back(*ram_->open());
            stores_on_disk_.push_back(*spilled_->open());
        }
        lengths_.resize(kStores);
    }

    Outcome run() {
        const uint32_t operations = 20 + static_cast<uint32_t>(random_() % 20);
        for (operation_ = 0; operation_ < operations && outcome_.difference.empty(); ++operation_) {
            const auto store = static_cast<uint32_t>(random_() % kStores);
            switch (random_() % 10) {
                case 0: truncate(store); break;
                case 1: copy(store); break;
                case 2:
                case 3: step(store, 1 + static_cast<uint32_t>(random_() % 250)); break;
                default: step(store, 1); break;
            }
        }
        if (spilled_ != nullptr) outcome_.reads = spilled_->stats().block_misses;
        outcome_.injected = disk_.injected();
        if (outcome_.refused > 0 && outcome_.injected.losing() == 0) {
            fail("refused without a fault");
        }
        return outcome_;
    }

private:
    static constexpr uint32_t kStores = 2;

    std::unique_ptr<Session> make(const Config& config) {
        Result<std::unique_ptr<Session>> made = SessionMaker::create(
            config, shape_, options_, [this](const SessionState&, uint64_t bytes) {
                return Result<std::unique_ptr<offload::Tier>>(disk_.make_tier(bytes));
            });
        if (made) return std::move(*made);
        fail(made.status().message());
        return nullptr;
    }

    void fail(const std::string& what) {
        if (!outcome_.difference.empty()) return;
        outcome_.difference = fmt::format("operation {}: {}", operation_, what);
    }

    // Whether the call did what was asked. When a block was lost all stores begin anew, in both
    // sessions: channels that are learnt at this moment make labels of every store.
    bool served(const Status& status) {
        if (status) return true;
        const bool lost = status.code() == StatusCode::corrupt ||
                          status.code() == StatusCode::unavailable;
        if (!lost) fail(std::string(status_code_name(status.code())) + ": " + status.message());
        ++outcome_.refused;
        for (uint32_t store = 0; store < kStores; ++store) clear(store);
        return false;
    }
    void clear(uint32_t store) {
        if (!ram_->clear(stores_[store])) fail("clear in RAM");
        const Status cleared = spilled_->clear(stores_on_disk_[store]);
        if (!cleared) fail("clear: " + cleared.message());
        lengths_[store] = 0;
    }

    void truncate(uint32_t store) {
        const auto length = static_cast<uint32_t>(random_() % (lengths_[store] + 1));
        if (!served(spilled_->truncate(stores_on_disk_[store], length))) return;
        if (!ram_->truncate(stores_[store], length)) fail("truncate in RAM");
        lengths_[store] = length;
    }

    void copy(uint32_t to) {
        const uint32_t from = 1 - to;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            for (const Session::Part part : {Session::Part::k, Session::Part::v}) {
                const Status copied =
                    spilled_->copy({l}, part, stores_on_disk_[from], stores_on_disk_[to]);
                if (!served(copied)) return;
                if (!ram_->copy({l}, part, stores_[from], stores_[to])) fail("copy in RAM");
            }
        }
        lengths_[to] = lengths_[from];
    }

    std::vector<float> rows(uint32_t n, uint32_t heads, uint32_t dim) {
        std::vector<float> made(size_t{n} * heads * dim);
        for (size_t i = 0; i < made.size(); ++i) {
            const auto x = static_cast<float>(static_cast<int32_t>(random_())) / 2147483648.0F;
            made[i] = i % dim % 7 == 0 ? 3 * x : x;
        }
        return made;
    }

    void step(uint32_t store, uint32_t n) {
        n = std::min(n, options_.slots_per_store - lengths_[store]);
        if (n == 0) return;
        const uint32_t offsets[2] = {0, n};
        StepInput input;
        input.token_offsets = offsets;
        input.stores = {&stores_[store], 1};
        if (!ram_->begin_step(input)) fail("begin_step in RAM");
        input.stores = {&stores_on_disk_[store], 1};
        if (!served(spilled_->begin_step(input))) return;
        ranges_.clear();
        range_offsets_.assign(1, 0);
        for (uint32_t i = 0; i < n; ++i) {
            ranges_.push_back({0, lengths_[store] + i + 1});
            range_offsets_.push_back(i + 1);
        }
        lengths_[store] += n;
        const Visibility visibility{offsets, range_offsets_, ranges_, ++version_};
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            if (!layer(store, l, n, visibility)) return;
        }
        if (!ram_->end_step() || !spilled_->end_step()) fail("end_step");
    }

    bool layer(uint32_t store, uint32_t l, uint32_t n, const Visibility& visibility) {
        const LayerShape& s = shape_.layers[l];
        const std::vector<float> k = rows(n, s.kv_head_count, s.k_head_dim);
        const std::vector<float> v = rows(n, s.kv_head_count, s.v_head_dim);
        const std::vector<float> q = rows(n, shape_.q_head_count, s.k_head_dim);
        const ConstTensor kt = tensor_of(k, n, s.kv_head_count, s.k_head_dim);
        const ConstTensor vt = tensor_of(v, n, s.kv_head_count, s.v_head_dim);
        const ConstTensor qt = tensor_of(q, n, shape_.q_head_count, s.k_head_dim);
        std::vector<float> expected(size_t{n} * shape_.q_head_count * s.v_head_dim);
        std::vector<float> got(expected.size(), NAN);
        const auto to = [&](std::vector<float>& out) {
            return Tensor{out.data(), n, shape_.q_head_count, s.v_head_dim,
                          size_t{shape_.q_head_count} * s.v_head_dim * 4,
                          size_t{s.v_head_dim} * 4};
        };
        // What one session does not get the other must not learn channels from.
        if (!served(spilled_->append({l}, kt, vt))) return false;
        if (!ram_->append({l}, kt, vt)) fail("append in RAM");
        const Status attended = spilled_->attend({l}, qt, visibility, to(got));
        if (!ram_->attend({l}, qt, visibility, to(expected))) fail("attend in RAM");
        if (!served(attended)) return false;
        ++outcome_.answers;
        if (std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)) == 0) return true;
        fail(fmt::format("store {}, layer {}, {} tokens: attention differs from RAM", store, l, n));
        return false;
    }

    std::mt19937_64 random_;
    Disk disk_;
    ModelShape shape_;
    Config config_;
    SessionOptions options_;
    std::unique_ptr<Session> ram_;
    std::unique_ptr<Session> spilled_;
    std::vector<StoreId> stores_;
    std::vector<StoreId> stores_on_disk_;
    std::vector<uint32_t> lengths_;
    std::vector<SlotRange> ranges_;
    std::vector<uint32_t> range_offsets_;
    uint64_t version_ = 0;
    uint32_t operation_ = 0;
    Outcome outcome_;
};

}  // namespace

Outcome run_seed(uint64_t seed) { return SessionSim(seed).run(); }

}  // namespace shoal::sim
