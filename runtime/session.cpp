#include "shoal/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "offload/disk_tier.hpp"
#include "runtime/config_keys.hpp"
#include "runtime/read_rows.hpp"
#include "runtime/saved_store.hpp"
#include "runtime/session_maker.hpp"
#include "runtime/step.hpp"

namespace shoal {

namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

constexpr uint32_t kQueriesMax = 1U << 20;

Status check_options(const SessionOptions& options) {
    if (options.store_count_max == 0 || options.store_count_max > 4096) {
        return invalid(fmt::format("options.store_count_max = {}: must be 1 .. 4096",
                                   options.store_count_max));
    }
    if (options.slots_per_store == 0 || options.slots_per_store > (1U << 30)) {
        return invalid(fmt::format("options.slots_per_store = {}: must be 1 .. {}",
                                   options.slots_per_store, 1U << 30));
    }
    if (options.queries_per_step_max == 0 || options.queries_per_step_max > kQueriesMax) {
        return invalid(fmt::format("options.queries_per_step_max = {}: must be 1 .. {}",
                                   options.queries_per_step_max, kQueriesMax));
    }
    return Status::ok();
}

offload::ExecutorOptions own_executor_options(const Config& config) {
    offload::ExecutorOptions options;
    options.threads = config.host.threads;
    options.pin = config.host.pin;
    return options;
}

// The default list may name layers that a small model lacks; a list of the user's own may not.
Status check_dense_layers(const Config& config, const ModelShape& shape) {
    if (config.budget.dense_layers == Config::Budget{}.dense_layers) return Status::ok();
    for (const uint32_t layer : config.budget.dense_layers) {
        if (layer < shape.layers.size()) continue;
        return invalid(fmt::format("budget.dense_layers: {}: must be below {}, the layers of this "
                                   "model", layer, shape.layers.size()));
    }
    return Status::ok();
}

Status check_scored_heads(const Config& config, const Groups& groups) {
    const SelectorKind kind = config.selector.kind;
    if (!uses_labels(kind) && !uses_pages(kind)) return Status::ok();
    for (const Group& group : groups.all()) {
        if (group.q_head_count() <= kernels::kLabelQueryHeadsMax) continue;
        return Status::error(
            StatusCode::unsupported,
            fmt::format("layer {}: {} query heads share a selection: selector.kind = {} "
                        "serves {}; set sharing.kind = \"head\"",
                        group.layer, group.q_head_count(),
                        config_key_text(*config_key_find("selector.kind"), config),
                        kernels::kLabelQueryHeadsMax));
    }
    return Status::ok();
}

// Fills everything that does not need memory of its own; no threads start.
Status prepare(const Config& config, const ModelShape& shape, const SessionOptions& options,
               SessionState& state) {
    SHOAL_TRY(config_check(config));
    SHOAL_TRY(check_options(options));
    const std::string shape_error = model_shape_error(shape);
    if (!shape_error.empty()) return Status::error(StatusCode::unsupported, shape_error);
    SHOAL_TRY(check_dense_layers(config, shape));
    SHOAL_TRY(check_sharing(config, shape));
    state.config = config;
    state.shape = shape;
    state.options = options;
    state.backend = &kernels::cpu_backend();
    state.groups = Groups(shape, config);
    SHOAL_TRY(check_scored_heads(config, state.groups));
    state.executor = options.executor;
    const Result<uint32_t> threads =
        options.executor.run != nullptr
            ? offload::thread_count_of(options.executor)
            : offload::OwnExecutor::planned_thread_count(own_executor_options(config));
    if (!threads) return threads.status();
    state.limits = limits_of(config, options, state.groups, *threads);
    state.label_source = std::make_unique<LabelSource>(config, shape, options.model_fingerprint);
    return state.label_source->load();
}

Status start_executor(SessionState& state) {
    if (state.executor.run != nullptr) return Status::ok();
    Result<std::unique_ptr<offload::OwnExecutor>> made =
        offload::OwnExecutor::create(own_executor_options(state.config));
    if (!made) return made.status();
    state.own_executor = std::move(*made);
    state.executor = state.own_executor->executor();
    return Status::ok();
}

Result<std::unique_ptr<offload::Tier>> open_disk(const SessionState& state, uint64_t bytes) {
    Result<offload::SpillFile> file = offload::SpillFile::create(state.config.disk.dir, bytes);
    if (!file) return file.status();
    offload::DiskTierOptions options;
    options.tier.deadline_ns = uint64_t{state.config.disk.deadline_ms} * 1'000'000;
    options.log = [&state](const std::string& line) { state.log(LogLevel::warning, line); };
    Result<std::unique_ptr<offload::DiskTier>> disk =
        offload::DiskTier::create(std::move(*file), options);
    if (!disk) return disk.status();
    return std::unique_ptr<offload::Tier>(std::move(*disk));
}

kernels::RowPart row_part(Session::Part part) {
    return part == Session::Part::k ? kernels::RowPart::k : kernels::RowPart::v;
}

// Whether rows are guessed, and guessed rows attended, under both as under one.
bool guess_alike(const Config& a, const Config& b) {
    return a.prefetch == b.prefetch && a.selector == b.selector && a.sharing == b.sharing &&
           a.budget == b.budget;
}

uint64_t random_identity() {
    std::random_device random;
    return (uint64_t{random()} << 32) | random();
}

}  // namespace

// Declared in this order so that memory outlives those who use it.
class Session::Impl {
public:
    SessionState state;
    std::unique_ptr<Step> step;

    Result<Store*> find(StoreId id) {
        if (id.index < state.stores.size() && state.stores[id.index]->is_open &&
            state.stores[id.index]->generation == id.generation) {
            return state.stores[id.index].get();
        }
        return Status::error(StatusCode::not_found,
                             fmt::format("store {} (generation {}) is not open", id.index,
                                         id.generation));
    }
    Status check_layer(LayerId layer) const {
        if (layer.index < state.shape.layers.size() &&
            state.shape.layers[layer.index].kind != LayerKind::none) {
            return Status::ok();
        }
        return invalid(fmt::format("layer = {}: must be a layer with KV, below {}", layer.index,
                                   state.shape.layers.size()));
    }
    // Lists of other lengths take other memory. When there is too little, everything is as before:
    // what was given back a moment ago is there again.
    Status set_policy(const Config& config) {
        const Config before = state.config;
        state.config = config;
        state.groups.set_policy(config);
        const Status laid_out = lay_out_lists(*state.arena, state);
        if (laid_out) return laid_out;
        state.config = before;
        state.groups.set_policy(before);
        SHOAL_ASSERT(lay_out_lists(*state.arena, state).is_ok());
        return laid_out;
    }
    Status check_slots(std::span<const int64_t> slots) const {
        for (size_t i = 0; i < slots.size(); ++i) {
            if (slots[i] >= 0 && slots[i] < state.limits.slot_count_max) continue;
            return invalid(fmt::format("slots[{}] = {}: must be 0 .. {}", i, slots[i],
                                       state.limits.slot_count_max - 1));
        }
        return Status::ok();
    }
};

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;

Result<MemoryPlan> Session::plan(const Config& config, const ModelShape& shape,
                                 const SessionOptions& options) {
    SessionState state;
    MemoryPlan plan;
    SHOAL_TRY(prepare(config, shape, options, state));
    uint64_t room = UINT64_MAX;
    if (state.spills()) {
        const Result<uint64_t> found = offload::SpillFile::room(config.disk.dir);
        if (!found) return found.status();
        room = *found;
    }
    SHOAL_TRY(make_plan(state, room, plan));
    return plan;
}

Result<std::unique_ptr<Session>> Session::create(const Config& config, const ModelShape& shape,
                                                 const SessionOptions& options) {
    return SessionMaker::create(config, shape, options, open_disk);
}

Result<std::unique_ptr<Session>> SessionMaker::create(const Config& config,
                                                      const ModelShape& shape,
                                                      const SessionOptions& options,
                                                      const DiskMaker& make_disk,
                                                      const SelectorWrapper& wrap_selector) {
    using Impl = Session::Impl;
    auto impl = std::make_unique<Impl>();
    SessionState& state = impl->state;
    MemoryPlan plan;
    SHOAL_TRY(prepare(config, shape, options, state));
    SHOAL_TRY(make_plan(state, UINT64_MAX, plan));  // make_disk() knows what there is
    SHOAL_TRY(check_fits(state, plan));
    SHOAL_TRY(start_executor(state));
    state.budget = std::make_unique<offload::Budget>("host.kv_bytes", plan.available_bytes);
    state.arena.reset(new offload::Arena(offload::Arena::real(
        *state.budget,
        config.host.huge_pages ? offload::HugePages::advise : offload::HugePages::off)));
    if (state.spills()) {
        Result<std::unique_ptr<offload::Tier>> disk = make_disk(state, plan.disk_bytes);
        if (!disk) return disk.status();
        state.disk = std::move(*disk);
        state.identity = random_identity();
    }
    SHOAL_TRY(lay_out(*state.arena, state));
    state.formats.resize(state.groups.count());
    state.recall_sum.resize(shape.layers.size());
    state.recall_count.resize(shape.layers.size());
    state.wrap_selector = wrap_selector;
    state.set_selector();
    impl->step = std::make_unique<Step>(state);
    return std::unique_ptr<Session>(new Session(std::move(impl)));
}

Result<StoreId> Session::open() {
    std::vector<std::unique_ptr<Store>>& stores = impl_->state.stores;
    for (uint32_t i = 0; i < stores.size(); ++i) {
        if (stores[i]->is_open) continue;
        stores[i]->is_open = true;
        return StoreId{i, stores[i]->generation};
    }
    return Status::error(StatusCode::out_of_memory,
                         fmt::format("all {} stores are open: close one, or create the session "
                                     "with a larger options.store_count_max",
                                     stores.size()));
}

Result<StoreId> Session::fork(StoreId id) {
    Result<Store*> from = impl_->find(id);
    if (!from) return from.status();
    Result<StoreId> opened = open();
    if (!opened) return opened;
    Store& to = *impl_->state.stores[opened->index];
    const Status forked = impl_->step->fork(**from, to);
    if (forked) return opened;
    to.close();
    return forked;
}

Status Session::save(StoreId id, const std::string& path, const SequenceNotes& notes) const {
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    if (impl_->step->is_open()) return invalid("save: a step is open: call end_step first");
    const SessionState& state = impl_->state;
    const RowFormat stored = state.stored_rows();
    return save_store(state, **store, notes, path,
                      [&](LayerId layer, Part part, std::span<const int64_t> slots,
                          std::span<std::byte> out) {
                          const DType dtype = part == Part::k ? stored.k : stored.v;
                          return read_rows(state, **store,
                                           {layer.index, row_part(part), slots, dtype}, out);
                      });
}

Result<StoreId> Session::load(const std::string& path, SequenceNotes* notes) {
    if (impl_->step->is_open()) return invalid("load: a step is open: call end_step first");
    Result<StoreId> opened = open();
    if (!opened) return opened;
    Store& store = *impl_->state.stores[opened->index];
    const Status loaded = load_store(impl_->state, *impl_->step, store, path, notes);
    if (loaded) return opened;
    store.is_open = false;  // nobody was told its number
    return loaded;
}

Status Session::close(StoreId id) {
    SHOAL_TRY(clear(id));
    impl_->state.stores[id.index]->close();
    return Status::ok();
}

Status Session::clear(StoreId id) {
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    impl_->step->abandon();
    (*store)->clear();
    return Status::ok();
}

Status Session::truncate(StoreId id, uint32_t slot_count) {
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    impl_->step->abandon();
    return (*store)->truncate(slot_count);
}

Status Session::begin_step(const StepInput& input) { return impl_->step->begin(input); }
Status Session::end_step() { return impl_->step->end(); }

Status Session::append(LayerId layer, const ConstTensor& k, const ConstTensor& v, StreamRef) {
    SHOAL_TRY(impl_->check_layer(layer));
    return impl_->step->append(layer.index, k, v);
}

Status Session::put(LayerId layer, StoreId id, std::span<const int64_t> slots,
                    const ConstTensor& k, const ConstTensor& v, StreamRef) {
    SHOAL_TRY(impl_->check_layer(layer));
    SHOAL_TRY(impl_->check_slots(slots));
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    return impl_->step->put(layer.index, **store, slots, k, v);
}

Status Session::replace(LayerId layer, StoreId id, std::span<const int64_t> slots,
                        const ConstTensor& k, const ConstTensor& v, StreamRef) {
    SHOAL_TRY(impl_->check_layer(layer));
    SHOAL_TRY(impl_->check_slots(slots));
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    return impl_->step->replace(layer.index, **store, slots, k, v);
}

Status Session::copy(LayerId layer, Part part, StoreId from, StoreId to) {
    SHOAL_TRY(impl_->check_layer(layer));
    Result<Store*> source = impl_->find(from);
    if (!source) return source.status();
    Result<Store*> target = impl_->find(to);
    if (!target) return target.status();
    if (*source == *target) return Status::ok();
    return impl_->step->copy(layer.index, row_part(part), **source, **target);
}

Status Session::read(LayerId layer, StoreId id, std::span<const int64_t> slots, Part part,
                     std::span<std::byte> out) const {
    SHOAL_TRY(impl_->check_layer(layer));
    Result<Store*> store = impl_->find(id);
    if (!store) return store.status();
    const SessionState& state = impl_->state;
    ReadRows in;
    in.layer = layer.index;
    in.part = row_part(part);
    in.slots = slots;
    in.dtype = part == Part::k ? state.shape.rows.k : state.shape.rows.v;
    const size_t bytes =
        slots.size() * read_slot_bytes(state.shape.layers[layer.index], in.part, in.dtype);
    if (out.size() != bytes) {
        return invalid(fmt::format("out: {} bytes: must be {}", out.size(), bytes));
    }
    return read_rows(state, **store, in, out);
}

Status Session::attend(LayerId layer, const ConstTensor& q, const Visibility& visibility,
                       const Tensor& out, float* lse, StreamRef) {
    SHOAL_TRY(impl_->check_layer(layer));
    return impl_->step->attend({layer.index, &q, &visibility, &out, lse});
}

bool Session::wants_hint(LayerId layer) const {
    return impl_->check_layer(layer).is_ok() && impl_->step->wants_hint(layer.index);
}

Status Session::hint_query(LayerId layer, const ConstTensor& approximate_q, StreamRef) {
    SHOAL_TRY(impl_->check_layer(layer));
    return impl_->step->hint(layer.index, approximate_q);
}

std::vector<uint32_t> Session::attended_slots(LayerId layer, uint32_t query,
                                              uint32_t kv_head) const {
    if (!impl_->check_layer(layer)) return {};
    const Groups& groups = impl_->state.groups;
    const SlotRange of_layer = groups.of_layer(layer.index);
    for (uint32_t g = of_layer.begin; g < of_layer.end; ++g) {
        const Group& group = groups.all()[g];
        if (kv_head - group.kv_head_first < group.piece.kv_head_count) {
            return impl_->step->attended_slots(g, query);
        }
    }
    return {};
}

Status Session::reconfigure(const Config& config) {
    SHOAL_TRY(config_check(config));
    SessionState& state = impl_->state;
    if (impl_->step->is_open()) return invalid("reconfigure: a step is open: call end_step first");
    SHOAL_TRY(check_dense_layers(config, state.shape));
    SHOAL_TRY(check_sharing(config, state.shape));
    SHOAL_TRY(check_reconfigure(state, config));
    SHOAL_TRY(check_scored_heads(config, state.groups));
    impl_->step->abandon();  // it looks into the lists
    const bool alike = guess_alike(state.config, config);
    SHOAL_TRY(impl_->set_policy(config));
    if (!alike) impl_->step->restart_guesses();
    state.set_selector();
    return Status::ok();
}

const Config& Session::config() const { return impl_->state.config; }

bool Session::has_channel_statistics() const { return impl_->state.label_source->ready(); }

Status Session::write_profile(const std::string& path, const std::string& source) const {
    return impl_->state.label_source->write(path, source);
}

Stats Session::stats() const { return collect_stats(impl_->state); }

Status Session::trace(uint32_t event_capacity) {
    if (event_capacity > kTraceEventsMax) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("trace: {} events: must be 0 .. {}", event_capacity,
                                         kTraceEventsMax));
    }
    impl_->state.trace.start(event_capacity);
    return Status::ok();
}

size_t Session::read_trace(std::span<TraceEvent> out) { return impl_->state.trace.read(out); }

uint64_t Session::trace_dropped() const { return impl_->state.trace.dropped(); }

void Session::reset_stats() {
    SessionState& state = impl_->state;
    state.stats = Stats{};
    if (state.cache != nullptr) state.cache->reset_counters();
    std::fill(state.recall_sum.begin(), state.recall_sum.end(), 0.0);
    std::fill(state.recall_count.begin(), state.recall_count.end(), 0);
    for (const auto& store : state.stores) {
        for (uint32_t g = 0; g < state.groups.count(); ++g) {
            store->group(g).labels.reset_counters();
        }
    }
}

}  // namespace shoal
