#include "tests/sim/session_sim.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "runtime/session_maker.hpp"
#include "shoal/shoal.hpp"
#include "tests/sim/sim_case.hpp"
#include "tests/sim/sim_oracle.hpp"

namespace shoal::sim {

namespace {

// One thread that runs the items of a call in an order of the seed's, while the disk goes on.
class ShuffledExecutor {
public:
    ShuffledExecutor(uint64_t seed, Disk& disk) : random_(seed), disk_(disk) {}
    Executor get() {
        return {this, run, [](const void*) -> uint32_t { return 1; }};
    }

private:
    static void run(void* self, uint32_t count, Executor::Body body, void* context) {
        auto& executor = *static_cast<ShuffledExecutor*>(self);
        std::vector<uint32_t>& order = executor.order_;
        order.resize(count);
        std::iota(order.begin(), order.end(), 0U);
        for (uint32_t i = count; i > 1; --i) std::swap(order[i - 1], order[executor.random_() % i]);
        for (const uint32_t index : order) body(context, index, 0);
        executor.disk_.pass_time();
    }

    std::mt19937_64 random_;
    Disk& disk_;
    std::vector<uint32_t> order_;
};

// Rows of all simulations are cut from the same numbers, since making them would take most of the
// time; where, the seed says.
constexpr size_t kNumbers = size_t{1} << 20;
const std::vector<float>& numbers() {
    static const std::vector<float> made = [] {
        std::mt19937_64 random(1);
        std::vector<float> out(kNumbers);
        for (float& x : out) x = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-30F;
        return out;
    }();
    return made;
}

class SessionSim {
public:
    explicit SessionSim(uint64_t seed)
        : random_(seed), disk_(random_disk(random_)), executor_(random_(), disk_),
          shape_(random_shape(random_)), config_(random_config(random_)) {
        options_.store_count_max = kStores;
        options_.slots_per_store = 1200 + static_cast<uint32_t>(random_() % 2000);
        options_.queries_per_step_max = 64;
        options_.executor = executor_.get();
        ram_ = make(config_);
        Config on_disk = config_;
        on_disk.disk.dir = ::testing::TempDir();  // looked at, and not used
        const Result<MemoryPlan> plan = Session::plan(on_disk, shape_, options_);
        if (!plan) {
            fail(plan.status().message());
            return;
        }
        on_disk.host.kv_bytes = plan->least_bytes + random_() % (1 << 18);
        oracle_ = std::make_unique<Oracle>(disk_, shape_, on_disk, options_);
        hints_ = random_() % 2 == 0;
        spilled_ = make(on_disk);
        if (ram_ == nullptr || spilled_ == nullptr) return;
        for (uint32_t i = 0; i < kStores; ++i) {
            stores_.push_back(*ram_->open());
            stores_on_disk_.push_back(*spilled_->open());
        }
        lengths_.resize(kStores);
    }

    Outcome run() {
        if (!is_right()) return outcome_;
        const uint32_t operations = 15 + static_cast<uint32_t>(random_() % 15);
        for (uint32_t i = 0; i < kStores; ++i) {
            put(i, static_cast<uint32_t>(random_() % options_.slots_per_store));
        }
        for (operation_ = 1; operation_ <= operations && is_right(); ++operation_) {
            const auto store = static_cast<uint32_t>(random_() % kStores);
            const auto all = static_cast<uint32_t>(shape_.layers.size());
            switch (random_() % 14) {
                case 0: truncate(store); break;
                case 1: copy(store); break;
                case 2: fork(store); break;
                case 3: put(store, up_to(600)); break;
                case 4: step({{store, up_to(64)}}, all); break;
                case 5: step({{store, up_to(3)}, {1 - store, up_to(3)}}, all); break;
                case 6: step({{store, 1}, {1 - store, up_to(40)}}, all); break;
                case 7: reconfigure(); break;
                case 8: step({{store, up_to(6)}}, static_cast<uint32_t>(random_() % all)); break;
                default: step({{store, 1}}, all); break;
            }
        }
        if (spilled_ != nullptr) compare_counts();
        outcome_.injected = disk_.injected();
        note(&outcome_.answers, sizeof outcome_.answers);
        outcome_.digest = digest_ ^ disk_.digest();
        return outcome_;
    }

private:
    static constexpr uint32_t kStores = 2;

    struct Tokens {
        uint32_t store;
        uint32_t count;
    };

    uint32_t up_to(uint32_t most) { return 1 + static_cast<uint32_t>(random_() % most); }

    std::unique_ptr<Session> make(const Config& config) {
        Result<std::unique_ptr<Session>> made = SessionMaker::create(
            config, shape_, options_, [this](const SessionState&, uint64_t bytes) {
                return Result<std::unique_ptr<offload::Tier>>(disk_.make_tier(bytes));
            });
        if (made) return std::move(*made);
        fail(made.status().message());
        return nullptr;
    }

    bool is_right() const { return outcome_.difference.empty(); }
    void fail(const std::string& what) {
        if (!is_right()) return;
        outcome_.difference = fmt::format("operation {}: {}", operation_, what);
    }
    void note(const void* data, size_t bytes) {
        const auto* const at = static_cast<const unsigned char*>(data);
        for (size_t i = 0; i < bytes; ++i) digest_ = (digest_ ^ at[i]) * 0x100000001b3;
    }

    // A fault that was injected is one that was counted, and the other way round.
    void compare_counts() {
        const FaultCounts& injected = disk_.injected();
        const offload::TierCounters counted = disk_.tier_counters();
        const Stats stats = spilled_->stats();
        outcome_.reads = stats.block_misses;
        outcome_.kept_in_ram = stats.block_write_failures;
        const auto same = [&](const char* what, uint64_t one, uint64_t other) {
            if (one != other) fail(fmt::format("{}: {} injected, {} counted", what, one, other));
        };
        same("short", injected[Fault::short_result], counted.short_transfers);
        same("strays", injected[Fault::duplicate] + injected[Fault::foreign],
             counted.stray_completions);
        const auto needs = [&](const char* what, uint64_t count, uint64_t faults) {
            if (count != 0 && faults == 0) fail(fmt::format("{} {}: no such fault", count, what));
        };
        needs("checksums differ", counted.checksum_mismatches, wrong_bytes());
        needs("deadlines missed", counted.deadlines_missed, injected[Fault::late]);
        needs("transfers failed", counted.failures, wrong_bytes() + failing());
        needs("blocks kept in RAM", outcome_.kept_in_ram, failing());
    }
    uint64_t wrong_bytes() const {
        const FaultCounts& injected = disk_.injected();
        return injected[Fault::corrupt] + injected[Fault::misdirected] + injected[Fault::torn];
    }
    uint64_t failing() const {
        return disk_.injected()[Fault::error] + disk_.injected()[Fault::full];
    }

    // A call of the session on disk: whether it did what was asked. One that did not names a block,
    // and something happened to that block which explains it.
    template <typename Call>
    bool served(Call call) {
        disk_.begin_call();
        const Status status = call();
        if (status) return true;
        const std::string objection = oracle_->objection(status);
        if (!objection.empty()) fail(objection);
        ++(status.code() == StatusCode::corrupt ? outcome_.corrupt : outcome_.unavailable);
        note(status.message().data(), status.message().size());
        return false;
    }
    // What a store was is lost; the others go on.
    void clear(std::span<const uint32_t> stores) {
        for (const uint32_t store : stores) {
            if (!ram_->clear(stores_[store])) fail("clear in RAM");
            const Status cleared = spilled_->clear(stores_on_disk_[store]);
            if (!cleared) fail("clear: " + cleared.message());
            lengths_[store] = 0;
        }
    }

    // A refused one forgets nothing.
    void truncate(uint32_t store) {
        const auto length = static_cast<uint32_t>(random_() % (lengths_[store] + 1));
        if (!served([&] { return spilled_->truncate(stores_on_disk_[store], length); })) return;
        if (!ram_->truncate(stores_[store], length)) fail("truncate in RAM");
        lengths_[store] = length;
    }

    void copy(uint32_t to) {
        const uint32_t from = 1 - to;
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) {
            for (const Session::Part part : {Session::Part::k, Session::Part::v}) {
                const auto call = [&] {
                    return spilled_->copy({l}, part, stores_on_disk_[from], stores_on_disk_[to]);
                };
                if (!served(call)) return clear({&to, 1});
                if (!ram_->copy({l}, part, stores_[from], stores_[to])) fail("copy in RAM");
            }
        }
        lengths_[to] = lengths_[from];
    }

    void fork(uint32_t to) {
        const uint32_t from = 1 - to;
        if (!ram_->close(stores_[to]) || !spilled_->close(stores_on_disk_[to])) fail("close");
        StoreId fork_on_disk;
        const bool done = served([&] {
            const Result<StoreId> forked = spilled_->fork(stores_on_disk_[from]);
            if (forked) fork_on_disk = *forked;
            return forked ? Status::ok() : forked.status();
        });
        const Result<StoreId> on_disk = done ? Result<StoreId>(fork_on_disk) : spilled_->open();
        const Result<StoreId> in_ram = done ? ram_->fork(stores_[from]) : ram_->open();
        if (!on_disk || !in_ram) return fail("a store that was closed cannot be opened");
        stores_[to] = *in_ram;
        stores_on_disk_[to] = *on_disk;
        lengths_[to] = done ? lengths_[from] : 0;
    }

    ConstTensor rows(uint32_t n, uint32_t heads, uint32_t dim) {
        const size_t begin = random_() % (kNumbers - size_t{n} * heads * dim);
        return {reinterpret_cast<const std::byte*>(numbers().data() + begin), DType::f32, n, heads,
                dim, size_t{heads} * dim * 4, size_t{dim} * 4};
    }

    // `n` tokens at the end of a store, without attention: how a context becomes long.
    void put(uint32_t store, uint32_t n) {
        n = std::min(n, options_.slots_per_store - lengths_[store]);
        std::vector<int64_t> slots(n);
        std::iota(slots.begin(), slots.end(), int64_t{lengths_[store]});
        for (uint32_t l = 0; n > 0 && l < shape_.layers.size(); ++l) {
            const LayerShape& s = shape_.layers[l];
            const ConstTensor k = rows(n, s.kv_head_count, s.k_head_dim);
            const ConstTensor v = rows(n, s.kv_head_count, s.v_head_dim);
            const auto call = [&] {
                return spilled_->put({l}, stores_on_disk_[store], slots, k, v);
            };
            if (!served(call)) return clear({&store, 1});
            if (!ram_->put({l}, stores_[store], slots, k, v)) fail("put in RAM");
        }
        lengths_[store] += n;
    }

    // Other rows and another way to read ahead. Longer lists may take more than the RAM there is;
    // everything is as it was then.
    void reconfigure() {
        Config changed = ram_->config();
        if (random_() % 2 == 0) changed.budget.rows = up_to(200);
        changed.prefetch = random_prefetch(random_);
        Config on_disk = changed;
        on_disk.disk = spilled_->config().disk;
        on_disk.host = spilled_->config().host;
        const Status done = spilled_->reconfigure(on_disk);
        if (!done && done.code() != StatusCode::out_of_memory) fail(done.message());
        if (done && !ram_->reconfigure(changed)) fail("reconfigure in RAM");
        outcome_.reconfigured += done ? 1 : 0;
    }

    // A causal step of so many tokens in each of these stores, through so many layers: given up if
    // that is not all of them, and its tokens taken back.
    void step(std::vector<Tokens> tokens, uint32_t layer_count) {
        std::vector<StoreId> in_ram;
        std::vector<StoreId> on_disk;
        std::vector<uint32_t> stores;
        std::vector<uint32_t> offsets{0};
        ranges_.clear();
        range_offsets_.assign(1, 0);
        for (auto& [store, n] : tokens) {
            n = std::min(n, options_.slots_per_store - lengths_[store]);
            stores.push_back(store);
            in_ram.push_back(stores_[store]);
            on_disk.push_back(stores_on_disk_[store]);
            offsets.push_back(offsets.back() + n);
            for (uint32_t i = 0; i < n; ++i) {
                ranges_.push_back({0, lengths_[store] + i + 1});
                range_offsets_.push_back(static_cast<uint32_t>(ranges_.size()));
            }
        }
        if (offsets.back() == 0) return;
        StepInput input;
        input.token_offsets = offsets;
        input.stores = in_ram;
        if (!ram_->begin_step(input)) fail("begin_step in RAM");
        input.stores = on_disk;
        if (!served([&] { return spilled_->begin_step(input); })) return clear(stores);
        const Visibility visibility{offsets, range_offsets_, ranges_, ++version_};
        next_q_ = queries(0, offsets.back());
        for (uint32_t l = 0; l < layer_count; ++l) {
            if (!layer(l, offsets.back(), visibility)) return clear(stores);
        }
        if (layer_count < shape_.layers.size()) {
            ++outcome_.given_up;
            // The engine goes on with another sequence first, at times.
            const uint32_t all = static_cast<uint32_t>(shape_.layers.size());
            if (stores.size() == 1 && random_() % 2 == 0) step({{1 - stores[0], 1}}, all);
            return take_back(stores);
        }
        if (!ram_->end_step() || !spilled_->end_step()) fail("end_step");
        for (const auto& [store, n] : tokens) lengths_[store] += n;
    }

    // Of a step that goes no further; what is kept is as before it.
    void take_back(const std::vector<uint32_t>& stores) {
        for (const uint32_t store : stores) {
            const auto call = [&] {
                return spilled_->truncate(stores_on_disk_[store], lengths_[store]);
            };
            if (!served(call)) return clear(stores);
            if (!ram_->truncate(stores_[store], lengths_[store])) fail("truncate in RAM");
        }
    }

    ConstTensor queries(uint32_t l, uint32_t n) {
        return rows(n, shape_.q_head_count, shape_.layers[l].k_head_dim);
    }

    // What the query of a layer will be; at times something else.
    void hint(uint32_t l, uint32_t n) {
        const ConstTensor q = random_() % 4 == 0 ? queries(l, n) : next_q_;
        outcome_.hints += spilled_->wants_hint({l}) ? 1 : 0;
        if (!spilled_->hint_query({l}, q) || !ram_->hint_query({l}, q)) fail("hint_query");
    }

    bool layer(uint32_t l, uint32_t n, const Visibility& visibility) {
        const LayerShape& s = shape_.layers[l];
        const ConstTensor k = rows(n, s.kv_head_count, s.k_head_dim);
        const ConstTensor v = rows(n, s.kv_head_count, s.v_head_dim);
        const ConstTensor q = next_q_;
        std::vector<float> expected(size_t{n} * shape_.q_head_count * s.v_head_dim);
        std::vector<float> got(expected.size(), NAN);
        const auto to = [&](std::vector<float>& out) {
            return Tensor{out.data(), n, shape_.q_head_count, s.v_head_dim,
                          size_t{shape_.q_head_count} * s.v_head_dim * 4,
                          size_t{s.v_head_dim} * 4};
        };
        // What one session does not get the other must not learn channels from.
        if (!served([&] { return spilled_->append({l}, k, v); })) return false;
        if (!ram_->append({l}, k, v)) fail("append in RAM");
        if (l + 1 < shape_.layers.size()) {
            next_q_ = queries(l + 1, n);
            if (hints_) hint(l + 1, n);
        }
        const bool attended =
            served([&] { return spilled_->attend({l}, q, visibility, to(got)); });
        if (!ram_->attend({l}, q, visibility, to(expected))) fail("attend in RAM");
        if (!attended) return false;
        note(got.data(), got.size() * sizeof(float));
        ++outcome_.answers;
        if (outcome_.refused() > 0) ++outcome_.answers_after_loss;
        if (std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)) == 0) return true;
        fail(fmt::format("layer {}, {} tokens: attention differs from RAM", l, n));
        return false;
    }

    std::mt19937_64 random_;
    Disk disk_;
    ShuffledExecutor executor_;
    ModelShape shape_;
    Config config_;
    SessionOptions options_;
    std::unique_ptr<Oracle> oracle_;
    bool hints_ = false;             // the engine says what the next layer's query will be
    ConstTensor next_q_;             // of the layer that is served next
    std::unique_ptr<Session> ram_;
    std::unique_ptr<Session> spilled_;
    std::vector<StoreId> stores_;
    std::vector<StoreId> stores_on_disk_;
    std::vector<uint32_t> lengths_;
    std::vector<SlotRange> ranges_;
    std::vector<uint32_t> range_offsets_;
    uint64_t version_ = 0;
    uint32_t operation_ = 0;
    uint64_t digest_ = 0xcbf29ce484222325;
    Outcome outcome_;
};

}  // namespace

Outcome run_seed(uint64_t seed) { return SessionSim(seed).run(); }

}  // namespace shoal::sim
