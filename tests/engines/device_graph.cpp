#include "device_graph.hpp"

#include <chrono>
#include <cmath>
#include <random>

namespace shoal::testing {

namespace {

constexpr size_t kNodeMax = 4096;

ggml_context_ptr make_context(size_t tensors) {
    return ggml_context_ptr(ggml_init({ggml_tensor_overhead() * tensors +
                                           ggml_graph_overhead_custom(kNodeMax, false),
                                       nullptr, true}));
}

ggml_tensor* input(ggml_context* context, ggml_type type, int64_t a, int64_t b = 1,
                   int64_t c = 1) {
    ggml_tensor* tensor = ggml_new_tensor_3d(context, type, a, b, c);
    ggml_set_input(tensor);
    return tensor;
}

void fill(ggml_tensor* tensor, const void* data) {
    if (tensor->buffer != nullptr) {
        ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
    }
}

}  // namespace

DeviceGraph::DeviceGraph(Engine engine, const GraphShape& shape) : engine_(engine), shape_(shape) {
    if (engine == Engine::shoal) {
        backends_.emplace_back(ggml_backend_dev_init(plugin().device, nullptr));
    }
    backends_.emplace_back(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    set_threads(shape.threads);
}

void DeviceGraph::set_threads(int threads) {
    for (const ggml_backend_ptr& backend : backends_) {
        ggml_backend_dev_t device = ggml_backend_get_device(backend.get());
        auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
        set(backend.get(), threads);
    }
}

bool DeviceGraph::allocate_cache() {
    cache_context_ = make_context(2 * shape_.layers);
    const int64_t row = int64_t{shape_.kv_heads} * shape_.head_dim;
    for (uint32_t i = 0; i < shape_.layers; ++i) {
        const auto layer = static_cast<int>(i + shape_.first_layer);
        k_.push_back(ggml_new_tensor_3d(cache_context_.get(), shape_.type, row, shape_.slots,
                                        shape_.streams));
        ggml_format_name(k_.back(), shape_.k_name, layer);
        if (shape_.v_name == nullptr) {
            v_.push_back(k_.back());
            continue;
        }
        v_.push_back(ggml_new_tensor_3d(cache_context_.get(), shape_.type, row, shape_.slots,
                                        shape_.streams));
        ggml_format_name(v_.back(), shape_.v_name, layer);
    }
    ggml_backend_buffer_type_t type = engine_ == Engine::shoal
                                          ? ggml_backend_dev_buffer_type(plugin().device)
                                          : ggml_backend_cpu_buffer_type();
    cache_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(cache_context_.get(), type));
    if (cache_buffer_ == nullptr) return false;
    ggml_backend_buffer_clear(cache_buffer_.get(), 0);
    return true;
}

ggml_tensor* DeviceGraph::attend(ggml_context* context, const Graph& graph, uint32_t layer,
                                 uint32_t slots_seen) const {
    const auto view = [&](ggml_tensor* cache) {
        const uint32_t count = shape_.heads_seen == 0 ? shape_.kv_heads : shape_.heads_seen;
        ggml_tensor* heads = ggml_view_3d(
            context, cache, shape_.head_dim, count, slots_seen - shape_.first_row_seen,
            ggml_row_size(shape_.type, shape_.head_dim), cache->nb[1],
            cache->nb[1] * shape_.first_row_seen);
        return ggml_permute(context, heads, 0, 2, 1, 3);
    };
    const float factor = shape_.scales_differ && layer > 0 ? 2.0F : 1.0F;
    const float scale = factor / std::sqrt(static_cast<float>(shape_.head_dim));
    // A CPU op in front of every attention, as a model has: its workers are then awake.
    ggml_tensor* q = ggml_permute(
        context, ggml_scale(context, graph.q, 1.0F + static_cast<float>(layer)), 0, 2, 1, 3);
    if (shape_.matmul_instead) {
        ggml_tensor* weights = ggml_mul_mat(context, view(k_[layer]), q);
        return ggml_soft_max_ext(context, weights, graph.mask, scale, 0.0F);
    }
    ggml_tensor* out = ggml_flash_attn_ext(context, q, view(k_[layer]), view(v_[layer]),
                                           shape_.has_mask ? graph.mask : nullptr, scale,
                                           shape_.max_bias, shape_.logit_softcap);
    if (shape_.sinks) {
        ggml_flash_attn_ext_add_sinks(out, input(context, GGML_TYPE_F32, shape_.q_heads));
    }
    ggml_prec_set_acc(out, GGML_PREC_F32);
    return ggml_scale(context, out, 1.0F);
}

DeviceGraph::Graph DeviceGraph::build(uint32_t queries, uint32_t slots_seen) const {
    Graph g;
    g.context = make_context(kNodeMax);
    ggml_context* context = g.context.get();
    g.graph = ggml_new_graph_custom(context, kNodeMax, false);
    const int64_t row = int64_t{shape_.kv_heads} * shape_.head_dim;
    for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
        g.slots.push_back(shape_.slots_differ || layer == 0 ? input(context, GGML_TYPE_I64, queries)
                                                            : g.slots[0]);
    }
    g.mask = input(context, GGML_TYPE_F16, slots_seen, queries);
    g.k = input(context, GGML_TYPE_F32, row, queries);
    g.v = input(context, GGML_TYPE_F32, row, queries);
    g.q = input(context, GGML_TYPE_F32, shape_.head_dim, shape_.q_heads, queries);
    for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
        const float factor = 1.0F + 0.1F * static_cast<float>(layer);
        ggml_tensor* k = ggml_scale(context, g.k, factor);
        ggml_build_forward_expand(g.graph,
                                  ggml_set_rows(context, k_[layer], k, g.slots[layer]));
        if (v_[layer] != k_[layer]) {
            ggml_tensor* v = ggml_scale(context, g.v, factor);
            ggml_build_forward_expand(g.graph,
                                      ggml_set_rows(context, v_[layer], v, g.slots[layer]));
        }
        g.out = attend(context, g, layer, slots_seen);
        ggml_set_output(g.out);
        ggml_build_forward_expand(g.graph, g.out);
    }
    if (shape_.attends_again) {
        g.out = attend(context, g, 0, slots_seen);
        ggml_set_output(g.out);
        ggml_build_forward_expand(g.graph, g.out);
    }
    return g;
}

bool DeviceGraph::reserve() {
    std::vector<ggml_backend_t> backends;
    std::vector<ggml_backend_buffer_type_t> types;
    for (const ggml_backend_ptr& backend : backends_) {
        backends.push_back(backend.get());
        types.push_back(ggml_backend_get_default_buffer_type(backend.get()));
    }
    scheduler_.reset(ggml_backend_sched_new(backends.data(), types.data(),
                                            static_cast<int>(backends.size()), kNodeMax, false,
                                            false));
    const Graph g = build(shape_.queries_max, shape_.slots);
    return ggml_backend_sched_reserve(scheduler_.get(), g.graph);
}

void DeviceGraph::make() {
    ASSERT_TRUE(allocate_cache()) << plugin().last_error();
    ASSERT_TRUE(reserve()) << plugin().last_error();
}

ggml_status DeviceGraph::compute(const GraphInput& in) {
    const auto queries = static_cast<uint32_t>(in.slots.size());
    const Graph g = build(queries, in.slots_seen);
    ggml_backend_sched_reset(scheduler_.get());
    if (!ggml_backend_sched_alloc_graph(scheduler_.get(), g.graph)) {
        return GGML_STATUS_ALLOC_FAILED;
    }
    std::vector<ggml_fp16_t> mask(size_t{queries} * in.slots_seen,
                                  ggml_fp32_to_fp16(in.mask_hidden));
    for (uint32_t query = 0; query < queries; ++query) {
        for (const SlotRange& range : in.visible[query]) {
            for (uint32_t slot = range.begin; slot < range.end; ++slot) {
                mask[size_t{query} * in.slots_seen + slot] = 0;
            }
        }
    }
    std::vector<int64_t> slots = in.slots;
    for (size_t layer = 0; layer < g.slots.size(); ++layer) {
        fill(g.slots[layer], slots.data());
        if (shape_.slots_differ) {
            for (int64_t& slot : slots) ++slot;
        }
    }
    fill(g.mask, mask.data());
    fill(g.k, in.k.data());
    fill(g.v, in.v.data());
    fill(g.q, in.q.data());
    const auto start = std::chrono::steady_clock::now();
    const ggml_status status = ggml_backend_sched_graph_compute(scheduler_.get(), g.graph);
    const auto end = std::chrono::steady_clock::now();
    compute_ms_ = std::chrono::duration<double, std::milli>(end - start).count();
    output_.resize(static_cast<size_t>(ggml_nelements(g.out)));
    if (status == GGML_STATUS_SUCCESS) {
        ggml_backend_tensor_get(g.out, output_.data(), 0, ggml_nbytes(g.out));
    }
    return status;
}

GraphInput causal_input(const GraphShape& shape, uint32_t first_slot, uint32_t queries,
                        uint64_t seed) {
    GraphInput in;
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const auto rows = [&](uint32_t heads) {
        std::vector<float> values(size_t{queries} * heads * shape.head_dim);
        for (float& value : values) value = normal(random);
        return values;
    };
    in.k = rows(shape.kv_heads);
    in.v = rows(shape.kv_heads);
    in.q = rows(shape.q_heads);
    in.slots_seen = shape.slots;
    for (uint32_t i = 0; i < queries; ++i) {
        in.slots.push_back(first_slot + i);
        in.visible.push_back({{0, first_slot + i + 1}});
    }
    return in;
}

}  // namespace shoal::testing
