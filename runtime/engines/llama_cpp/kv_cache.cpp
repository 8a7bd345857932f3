// Making a KvCache: tensors, shapes, session. The step is in kv_step.cpp, bytes in kv_bytes.cpp.
#include "kv_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "buffer.hpp"
#include "ggml-backend.h"
#include "log.hpp"
#include "settings.hpp"
#include "shoal/text.hpp"

namespace shoal::llama_cpp {

namespace {

std::mutex alive_mutex;
std::vector<KvCache*> alive;  // in order of creation; guarded by alive_mutex

// More layers than any model has; a bound for what a tensor's name may ask for.
constexpr uint32_t kLayerMax = 4096;

std::optional<DType> dtype_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16: return DType::f16;
        case GGML_TYPE_BF16: return DType::bf16;
        case GGML_TYPE_F32: return DType::f32;
        default: return std::nullopt;
    }
}

const char* selector_name(SelectorKind kind) {
    switch (kind) {
        case SelectorKind::labels: return "labels";
        case SelectorKind::dense: return "dense";
        case SelectorKind::recent: return "recent";
        case SelectorKind::page_bounds: return "page_bounds";
        case SelectorKind::hybrid: return "hybrid";
    }
    return "?";
}

// What another than the default sharing adds to the line.
std::string sharing_text(const Config::Sharing& sharing) {
    switch (sharing.kind) {
        case SharingKind::layer: return "";
        case SharingKind::head: return ", a selection per KV head";
        case SharingKind::tidal: break;
    }
    return fmt::format(", anchors {}{}", fmt::join(sharing.anchors, ","),
                       sharing.heads == SharingHeads::index ? " per KV head" : "");
}

// Names of other devices to which the engine may give layers, or "".
std::string other_offload_devices() {
    std::string names;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const bool takes_layers =
            ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU ||
            ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU;
        if (!takes_layers || ggml_backend_dev_buffer_type(device) == buffer_type()) continue;
        names += (names.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(device));
    }
    return names;
}

uint64_t stored_bytes(const KvTensor& tensor, const LayerShape& shape, DType dtype) {
    const bool is_k = tensor.part == Session::Part::k;
    return uint64_t{tensor.slot_count()} * tensor.stream_count() * shape.kv_head_count *
           row_bytes(dtype, is_k ? shape.k_head_dim : shape.v_head_dim);
}

std::string policy_text(const Config& config) {
    if (config.selector.kind == SelectorKind::dense) return "selector dense";
    const std::vector<uint32_t>& dense = config.budget.dense_layers;
    return fmt::format("selector {}, rows {}, dense layers {}{}",
                       selector_name(config.selector.kind), config.budget.rows,
                       dense.empty() ? "none" : fmt::format("{}", fmt::join(dense, ",")),
                       sharing_text(config.sharing));
}

}  // namespace

KvCache::KvCache(uint64_t context) : context_(context) {
    is_windowed_ = context != 0 && !of_context().empty();
    const std::lock_guard lock(alive_mutex);
    alive.push_back(this);
}

KvCache::~KvCache() {
    const std::lock_guard lock(alive_mutex);
    std::erase(alive, this);
}

KvCache* KvCache::newest() {
    const std::lock_guard lock(alive_mutex);
    for (auto it = alive.rbegin(); it != alive.rend(); ++it) {
        if ((*it)->has_session() && !(*it)->is_windowed_) return *it;
    }
    return nullptr;
}

bool KvCache::is_alive(const KvCache* cache) {
    const std::lock_guard lock(alive_mutex);
    return std::find(alive.begin(), alive.end(), cache) != alive.end();
}

std::vector<KvCache*> KvCache::of_context() const {
    const std::lock_guard lock(alive_mutex);
    std::vector<KvCache*> caches;
    for (KvCache* cache : alive) {
        if (cache == this || (context_ != 0 && cache->context_ == context_)) {
            caches.push_back(cache);
        }
    }
    return caches;
}

Status KvCache::adopt(ggml_tensor& tensor) {
    const std::optional<KvTensorName> name = parse_kv_name(tensor.name);
    if (!name.has_value() || name->layer >= kLayerMax) {
        return unsupported(fmt::format(
            "{}: not the KV cache of a transformer layer (recurrent, hybrid and indexer models are "
            "not supported)", tensor.name));
    }
    if (!dtype_of(tensor.type).has_value()) {
        return unsupported(fmt::format(
            "{}: cache type {} is not supported: use f16, bf16 or f32 (-ctk, -ctv)", tensor.name,
            ggml_type_name(tensor.type)));
    }
    if (layers_.size() <= name->layer) layers_.resize(name->layer + 1);
    Layer& layer = layers_[name->layer];
    std::unique_ptr<KvTensor>& held = name->part == Session::Part::k ? layer.k : layer.v;
    held = std::make_unique<KvTensor>(KvTensor{this, name->layer, name->part, &tensor});
    tensor.extra = held.get();
    return Status::ok();
}

void KvCache::refuse(std::string reason) {
    if (refusal_.empty()) refusal_ = std::move(reason);
}

void KvCache::observe_attention(const ggml_tensor& op) {
    if (has_session()) return;
    const Status status = check_attention(op);
    if (!status) return refuse(status.message());

    const AttentionOp attention(op);
    LayerShape shape;
    shape.kv_head_count = static_cast<uint32_t>(attention.k->ne[2]);
    shape.k_head_dim = static_cast<uint32_t>(attention.k->ne[0]);
    shape.v_head_dim = static_cast<uint32_t>(attention.v->ne[0]);
    const auto q_head_count = static_cast<uint32_t>(attention.q->ne[2]);
    const float scale = attention.scale();
    if (q_head_count_ == 0) {
        q_head_count_ = q_head_count;
        attention_scale_ = scale;
    }
    if (q_head_count != q_head_count_ || scale != attention_scale_) {
        return refuse(fmt::format(
            "layer {}: {} query heads with scale {}, layers before it {} with {}: models whose "
            "layers differ in these are not supported", attention.tensor().layer, q_head_count,
            scale, q_head_count_, attention_scale_));
    }
    layers_[attention.tensor().layer].shape = shape;
    queries_max_ = std::max(queries_max_, attention.query_count());
}

bool KvCache::holds(size_t layer) const {
    return layer < layers_.size() && (layers_[layer].k != nullptr || layers_[layer].v != nullptr);
}

const KvCache::Layer& KvCache::any_layer() const {
    return *std::find_if(layers_.begin(), layers_.end(),
                         [](const Layer& layer) { return layer.k != nullptr; });
}

std::string KvCache::missing_reason(const std::vector<KvCache*>& caches) const {
    if (!refusal_.empty()) return refusal_;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        if (std::none_of(caches.begin(), caches.end(),
                         [i](const KvCache* cache) { return cache->holds(i); })) {
            return fmt::format(
                "layer {} keeps its KV cache elsewhere, and Shoal holds all layers or none: "
                "offload every layer (-ngl 99) to one device (-dev SHOAL0). Models whose layers "
                "share a cache are not supported", i);
        }
        if (!holds(i)) continue;
        if (layer.k == nullptr || layer.v == nullptr) {
            return fmt::format("layer {} has no {} cache (MLA): not supported", i,
                               layer.k == nullptr ? "K" : "V");
        }
        if (!layer.shape.has_value()) {
            return fmt::format(
                "layer {} has no flash attention over its cache: Shoal needs it (-fa on)", i);
        }
    }
    return "";
}

Status KvCache::check_rows() const {
    for (const Layer& layer : layers_) {
        if (layer.k == nullptr) continue;
        const LayerShape& s = *layer.shape;
        if (layer.k->root->ne[0] != static_cast<int64_t>(s.kv_head_count) * s.k_head_dim ||
            layer.v->root->ne[0] != static_cast<int64_t>(s.kv_head_count) * s.v_head_dim) {
            return unsupported(fmt::format(
                "layer {}: rows of {} and {} elements are not {} heads x {} and {}",
                layer.k->layer, layer.k->root->ne[0], layer.v->root->ne[0], s.kv_head_count,
                s.k_head_dim, s.v_head_dim));
        }
    }
    return Status::ok();
}

RowFormat KvCache::engine_rows() const {
    const Layer& first = any_layer();
    return {*dtype_of(first.k->root->type), *dtype_of(first.v->root->type)};
}

Result<KvCache::SessionPlan> KvCache::session_plan(const Config& config, size_t layer_count) {
    SHOAL_TRY(check_rows());
    SessionPlan plan;
    plan.config = config;
    if (is_windowed_) {
        // Nothing is selected here: no labels, and no profile to make them with.
        plan.config.selector.kind = SelectorKind::dense;
        plan.config.profile.path.clear();
        plan.config.budget.dense_layers.clear();
        plan.config.sharing = {};
        plan.config.disk = {};  // a window of tokens is small
    }
    const Layer& first = any_layer();
    plan.shape.q_head_count = q_head_count_;
    plan.shape.attention_scale = attention_scale_;
    plan.shape.rows = engine_rows();
    plan.shape.layers.resize(layer_count, LayerShape{.kind = LayerKind::none});
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (!holds(i)) continue;
        plan.shape.layers[i] = *layers_[i].shape;
        if (is_windowed_) plan.shape.layers[i].kind = LayerKind::sliding;
    }
    plan.options.store_count_max = first.k->stream_count();
    plan.options.slots_per_store = first.k->slot_count();
    plan.options.queries_per_step_max = queries_max_;
    plan.options.model_fingerprint = next_model();
    plan.options.log = [](LogLevel level, const std::string& text) { log_line(level, text); };
    omp_ = OmpExecutor::find(usable_core_count());
    if (omp_ != nullptr) plan.options.executor = omp_->executor();
    return plan;
}

Status KvCache::make_session(const SessionPlan& plan) {
    Result<std::unique_ptr<Session>> session =
        Session::create(plan.config, plan.shape, plan.options);
    if (!session) return session.status();
    for (uint32_t stream = 0; stream < plan.options.store_count_max; ++stream) {
        Result<StoreId> store = (*session)->open();
        if (!store) return store.status();
        stores_.push_back(*store);
    }
    session_ = std::move(*session);
    return Status::ok();
}

Status KvCache::create_session() {
    if (has_session()) return Status::ok();
    const std::vector<KvCache*> caches = of_context();
    if (caches.size() > 2) return unsupported("a context with more than two KV caches");
    Result<Config> config = next_config();
    if (!config) return config.status();
    size_t layer_count = 0;
    for (const KvCache* cache : caches) {
        const std::string reason = cache->missing_reason(caches);
        if (!reason.empty()) return unsupported(reason);
        layer_count = std::max(layer_count, cache->layers_.size());
    }
    // The windowed cache is small and comes first: what it takes is no longer the other's.
    for (auto cache = caches.rbegin(); cache != caches.rend(); ++cache) {
        Result<SessionPlan> made = (*cache)->session_plan(*config, layer_count);
        if (!made) return made.status();
        if (*cache != caches.front() && made->config.host.kv_bytes != 0) {
            const Result<MemoryPlan> memory =
                Session::plan(made->config, made->shape, made->options);
            if (!memory) return memory.status();
            uint64_t& left = config->host.kv_bytes;
            left = std::max<uint64_t>(left - std::min(left, memory->total_bytes), 1);
        }
        SHOAL_TRY((*cache)->make_session(*made));
    }
    log_line(LogLevel::info, caches.front()->describe());
    // A device sees its own layers only: whether layers follow these elsewhere is not visible.
    const std::string others = other_offload_devices();
    if (!others.empty()) {
        log_line(LogLevel::warning,
                 fmt::format("{} can take layers too, and Shoal does not hold the cache of those: "
                             "choose one device (-dev SHOAL0)", others));
    }
    return Status::ok();
}

std::string KvCache::describe() const {
    const Config& config = session_->config();
    const RowFormat stored = stored_rows(config, engine_rows());
    uint64_t bytes = 0;
    size_t layers = 0;
    size_t windowed = 0;
    bool uniform = true;
    const LayerShape first = *any_layer().shape;
    for (const KvCache* cache : of_context()) {
        for (const Layer& layer : cache->layers_) {
            if (layer.k == nullptr) continue;
            bytes += stored_bytes(*layer.k, *layer.shape, stored.k) +
                     stored_bytes(*layer.v, *layer.shape, stored.v);
            uniform = uniform && *layer.shape == first;
            ++layers;
            if (cache->is_windowed_) ++windowed;
        }
    }
    const char* k_type = ggml_type_name(any_layer().k->root->type);
    const char* v_type = ggml_type_name(any_layer().v->root->type);
    std::string type =
        std::strcmp(k_type, v_type) == 0 ? k_type : fmt::format("{} and {}", k_type, v_type);
    if (config.host.rows == HostRows::q8) type += " kept as q8";
    const std::string heads =
        uniform ? fmt::format("{} KV heads x {}, ", first.kv_head_count, first.k_head_dim) : "";
    std::string tokens = grouped(any_layer().k->slot_count());
    if (stores_.size() > 1) tokens = fmt::format("{} x {}", stores_.size(), tokens);
    std::string executor = "own threads (oneTBB): the engine has no OpenMP";
    if (omp_ != nullptr) {
        const uint32_t threads = omp_->engine_thread_count();
        executor = "the engine's OpenMP";
        if (threads != 0) executor += fmt::format(", {} threads", threads);
    }
    std::string disk;
    if (!config.disk.dir.empty()) disk = fmt::format(" in a file under {}", config.disk.dir);
    const std::string dense =
        windowed == 0 ? "" : fmt::format("; {} of them with a sliding window, served dense",
                                         windowed);
    return fmt::format(
        "holding the KV cache of {} layers ({}{}), up to {} tokens, {:.0f} MiB{}{}; {}; "
        "executor: {}",
        layers, heads, type, tokens, static_cast<double>(bytes) / (1 << 20), disk, dense,
        policy_text(config), executor);
}

void KvCache::set_thread_count(uint32_t count) {
    engine_threads_ = count;
    if (omp_ != nullptr) omp_->set_thread_count(count);
}

Status KvCache::clear() {
    failure_.clear();
    if (!has_session()) return Status::ok();
    abandon_step();
    notes_.clear();
    is_loading_ = false;
    for (const StoreId store : stores_) SHOAL_TRY(session_->clear(store));
    return Status::ok();
}

void KvCache::fail_until_cleared(const std::string& reason) {
    if (failure_.empty()) failure_ = reason;
}

}  // namespace shoal::llama_cpp
