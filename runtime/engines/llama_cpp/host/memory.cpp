#include "runtime/engines/llama_cpp/host/memory.hpp"

#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "shoal/text.hpp"

namespace shoal::llama_host {
namespace {

uint32_t sliding_count(const ModelShape& shape) {
    return static_cast<uint32_t>(
        std::count_if(shape.layers.begin(), shape.layers.end(),
                      [](const LayerShape& layer) { return layer.kind == LayerKind::sliding; }));
}

// The model with only its sliding layers, or with only the others.
ModelShape part_of(const ModelShape& shape, bool sliding) {
    ModelShape part = shape;
    for (LayerShape& layer : part.layers) {
        if ((layer.kind == LayerKind::sliding) != sliding) layer = {.kind = LayerKind::none};
    }
    return part;
}

// Adds the session that the plugin makes for the cache of the sliding layers.
Status add_sliding_plan(const Config& config, const ModelShape& model,
                        const ContextShape& context, const SessionOptions& options,
                        MemoryPlan& plan) {
    const uint32_t sliding = sliding_count(model);
    if (sliding == 0) return Status::ok();
    uint32_t window = 0;
    for (const LayerShape& layer : model.layers) window = std::max(window, layer.window);
    Config dense = config;
    dense.selector.kind = SelectorKind::dense;
    dense.profile.path.clear();
    dense.budget.dense_layers.clear();
    dense.sharing = {};
    dense.disk = {};
    SessionOptions small = options;
    small.slots_per_store = context.slots_of_window(window);
    const Result<MemoryPlan> part = Session::plan(dense, part_of(model, true), small);
    if (!part) return part.status();
    plan.kv_bytes += part->kv_bytes;
    plan.label_bytes += part->label_bytes;
    plan.index_bytes += part->index_bytes;
    plan.workspace_bytes += part->workspace_bytes;
    plan.total_bytes += part->total_bytes;
    plan.least_bytes += part->least_bytes;
    plan.notes.push_back(
        fmt::format("{} of {} layers slide over {} tokens: {} slots, served dense", sliding,
                    model.layers.size(), grouped(window), grouped(small.slots_per_store)));
    return Status::ok();
}

}  // namespace

Result<MemoryPlan> plan_memory(const Config& config, const ModelFile& model,
                               const ContextShape& shape) {
    SessionOptions options;
    options.store_count_max = shape.streams;
    options.slots_per_store = shape.slots;
    options.queries_per_step_max = shape.queries;
    options.model_fingerprint = model.fingerprint;
    options.mapped_bytes = model.file_bytes;
    Result<MemoryPlan> plan = Session::plan(config, part_of(model.shape, false), options);
    if (!plan) return plan.status();
    SHOAL_TRY(add_sliding_plan(config, model.shape, shape, options, *plan));
    return plan;
}

// The plan's bytes_per_slot is that of one slot in every stream.
uint64_t context_that_fits(const MemoryPlan& plan, const ModelFile& model,
                           const ContextShape& shape) {
    const uint64_t beside_weights =
        plan.machine_bytes - std::min(plan.machine_bytes, model.file_bytes);
    const uint64_t left = std::min(plan.available_bytes, beside_weights);
    const uint64_t rows = plan.bytes_per_slot * shape.slots;
    const uint64_t fixed = plan.least_bytes - std::min(plan.least_bytes, rows);
    const uint64_t per_slot = std::max<uint64_t>(plan.bytes_per_slot, 1);
    uint64_t slots = left > fixed ? (left - fixed) / per_slot : 0;
    if (plan.disk_bytes != 0) {
        const uint64_t on_disk = std::max<uint64_t>(plan.disk_bytes / shape.slots, 1);
        slots = std::min(slots, plan.disk_available_bytes / on_disk);
    }
    return slots / 256 * 256 * shape.streams;
}

// host.kv_bytes is about the cache alone; the weights share the machine with it.
Status check_memory(const MemoryPlan& plan, const ModelFile& model, const ContextShape& shape,
                    Names names) {
    std::string limit;
    std::string wanted = fmt::format("{} for the KV cache", bytes_text(plan.total_bytes));
    if (plan.disk_bytes > plan.disk_available_bytes) {
        wanted = fmt::format("{} ({} B) under disk.dir", bytes_text(plan.disk_bytes),
                             grouped(plan.disk_bytes));
        limit = fmt::format("; {} ({} B) are free there, or allowed by disk.kv_bytes",
                            bytes_text(plan.disk_available_bytes),
                            grouped(plan.disk_available_bytes));
    } else if (plan.total_bytes + model.file_bytes > plan.machine_bytes) {
        limit = fmt::format(" and {} for the model; this machine offers {}",
                            bytes_text(model.file_bytes), bytes_text(plan.machine_bytes));
    } else if (plan.total_bytes > plan.available_bytes) {
        limit = fmt::format("; host.kv_bytes allows {}", bytes_text(plan.available_bytes));
    } else {
        return Status::ok();
    }
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("{} {}: needs {}{}. Largest context that fits: {} tokens",
                    names == Names::flags ? "-c" : "n_ctx =", shape.tokens, wanted, limit,
                    grouped(context_that_fits(plan, model, shape))));
}

}  // namespace shoal::llama_host
