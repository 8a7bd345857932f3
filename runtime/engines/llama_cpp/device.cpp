// libggml-shoal.so: one ggml device, SHOAL0, that holds KV caches and attends over them.
//
// llama.cpp finds it as an offload device, puts the KV cache of every layer into its buffers, and
// sends it the two kinds of ops that touch them. Weights stay where they were, since their ops are
// refused.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "ggml-backend-impl.h"
#include "graph.hpp"
#include "log.hpp"
#include "settings.hpp"
#include "side_calls.hpp"

namespace shoal::llama_cpp {

namespace {

// One per llama_context.
struct Backend {
    uint64_t number = 0;  // 1 ..
    uint32_t thread_count = 1;
    bool holds_kv = false;
    bool idle_was_said = false;
};

std::mutex backends_mutex;
std::vector<Backend*> backends;          // alive; guarded by backends_mutex
uint64_t backend_count = 0;              // ever made; guarded by backends_mutex
thread_local Backend* newest = nullptr;  // made last by this thread; may be dead

Backend& backend_of(ggml_backend_t backend) { return *static_cast<Backend*>(backend->context); }

// A context makes its backends, then its KV caches, on one thread.
uint64_t kv_was_made() {
    const std::lock_guard lock(backends_mutex);
    if (std::find(backends.begin(), backends.end(), newest) == backends.end()) return 0;
    newest->holds_kv = true;
    return newest->number;
}

// Why this copy of the plugin cannot serve this copy of ggml, or "".
std::string load_refusal() {
    const std::string loaded = ggml_version();
    if (loaded == SHOAL_GGML_VERSION) return "";
    return fmt::format("built for ggml {}, but {} is loaded: rebuild the plugin with "
                       "-DSHOAL_LLAMA_CPP_DIR= set to that llama.cpp", SHOAL_GGML_VERSION, loaded);
}

const char* backend_name(ggml_backend_t) { return "Shoal"; }

void backend_free(ggml_backend_t backend) {
    Backend* state = &backend_of(backend);
    {
        const std::lock_guard lock(backends_mutex);
        std::erase(backends, state);
    }
    delete state;
    delete backend;
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    return compute_graph(*graph, backend_of(backend).thread_count);
}

// llama.cpp calls this in front of every graph, on every backend: also the first sign that a
// context decodes without having put its KV cache here.
void backend_set_n_threads(ggml_backend_t backend, int thread_count) {
    Backend& state = backend_of(backend);
    state.thread_count = static_cast<uint32_t>(std::max(thread_count, 1));
    if (state.holds_kv || state.idle_was_said) return;
    state.idle_was_said = true;
    log_failure("not in use: the engine keeps this context's KV cache elsewhere (KV offload is "
                "off, -ngl is 0, or the model has none), so it runs as without Shoal");
}

const char* device_name(ggml_backend_dev_t) { return "SHOAL0"; }

const char* device_description(ggml_backend_dev_t) {
    return "Shoal " SHOAL_VERSION " (KV cache in host memory)";
}

// What Shoal may take, so that helpers that fit a context to a device see the truth.
void device_memory(ggml_backend_dev_t, size_t* free, size_t* total) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    *total = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page;
    *free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * page;
    ModelShape smallest;
    smallest.layers = {LayerShape{LayerKind::full, 1, 64, 64, 0}};
    smallest.q_head_count = 1;
    SessionOptions options;
    options.slots_per_store = 1;
    const Result<Config> config = next_config();
    const Result<MemoryPlan> plan =
        Session::plan(config ? *config : Config{}, smallest, options);
    if (plan) *free = std::min<size_t>(plan->available_bytes, *total);
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
    *props = {};
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    props->caps.mmap_support = true;  // else weights would lose it
    device_memory(device, &props->memory_free, &props->memory_total);
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char*) {
    const std::string refusal = load_refusal();
    if (!refusal.empty()) {
        log_failure(refusal);
        return nullptr;
    }
    const Result<Config> config = next_config();
    if (!config) {
        log_failure(config.status().message());
        return nullptr;
    }
    static ggml_guid guid = {0x8e, 0x1c, 0x52, 0x0b, 0x5f, 0x77, 0x4a, 0x36,
                             0x9d, 0x21, 0x53, 0x68, 0x6f, 0x61, 0x6c, 0x30};
    ggml_backend_i calls = {};
    calls.get_name = backend_name;
    calls.free = backend_free;
    calls.graph_compute = backend_compute;
    newest = new Backend;
    {
        const std::lock_guard lock(backends_mutex);
        backends.push_back(newest);
        newest->number = ++backend_count;
    }
    return new ggml_backend{&guid, calls, device, newest};
}

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor* op) { return supports_op(*op); }

// Sources in host memory (queries, masks, slot numbers) are read in place.
bool device_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return type == buffer_type() || ggml_backend_buft_is_host(type);
}

const char* registry_name(ggml_backend_reg_t) { return "Shoal"; }
size_t registry_device_count(ggml_backend_reg_t) { return 1; }

ggml_backend_dev_t registry_device(ggml_backend_reg_t registry, size_t) {
    return static_cast<ggml_backend_dev_t>(registry->context);
}

void* registry_proc_address(ggml_backend_reg_t, const char* name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void*>(backend_set_n_threads);
    }
    return side_call(name);
}

ggml_backend_device make_device(ggml_backend_reg_t registry) {
    ggml_backend_device device = {};
    device.iface.get_name = device_name;
    device.iface.get_description = device_description;
    device.iface.get_memory = device_memory;
    device.iface.get_type = device_type;
    device.iface.get_props = device_props;
    device.iface.init_backend = device_init;
    device.iface.get_buffer_type = [](ggml_backend_dev_t) { return buffer_type(); };
    device.iface.supports_op = device_supports_op;
    device.iface.supports_buft = device_supports_buft;
    device.reg = registry;
    return device;
}

ggml_backend_reg make_registry() {
    ggml_backend_reg registry = {};
    registry.api_version = GGML_BACKEND_API_VERSION;
    registry.iface.get_name = registry_name;
    registry.iface.get_device_count = registry_device_count;
    registry.iface.get_device = registry_device;
    registry.iface.get_proc_address = registry_proc_address;
    return registry;
}

// Said at load, when the engine's log still goes to stderr: some programs silence it afterwards.
// The device stays registered and refuses contexts, so that nothing runs as stock unnoticed.
void say_what_is_wrong() {
    const std::string refusal = load_refusal();
    const Result<Config> config = next_config();
    if (!refusal.empty()) log_failure(refusal);
    else if (!config) log_failure(config.status().message());
}

}  // namespace

}  // namespace shoal::llama_cpp

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    namespace adapter = shoal::llama_cpp;
    static ggml_backend_reg registry = adapter::make_registry();
    static ggml_backend_device device = adapter::make_device(&registry);
    registry.context = &device;
    adapter::set_buffer_type_device(&device);
    adapter::set_kv_listener(adapter::kv_was_made);
    adapter::say_what_is_wrong();
    return &registry;
}
