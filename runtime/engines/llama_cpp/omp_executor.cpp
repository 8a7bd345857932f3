#include "omp_executor.hpp"

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "ggml-backend.h"

namespace shoal::llama_cpp {

namespace {

ggml_backend_reg_t cpu_registry() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu == nullptr ? nullptr : ggml_backend_dev_backend_reg(cpu);
}

// A process may have an OpenMP runtime for reasons of its own; only ggml says whether it uses one.
bool engine_uses_openmp(ggml_backend_reg_t registry) {
    auto get_features = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_get_features"));
    if (get_features == nullptr) return false;
    for (const ggml_backend_feature* f = get_features(registry); f->name != nullptr; ++f) {
        if (std::strcmp(f->name, "OPENMP") == 0) return std::strcmp(f->value, "1") == 0;
    }
    return false;
}

// The library that holds ggml's CPU backend. A symbol looked up through it is found among its own
// dependencies: exactly the runtime that it is linked to, whatever its file is called.
void* cpu_backend_library(ggml_backend_reg_t registry) {
    void* function = ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads");
    Dl_info info = {};
    if (function == nullptr || dladdr(function, &info) == 0) return nullptr;
    void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    // ggml linked into the program itself: dlopen does not know the program by its file name.
    return library != nullptr ? library : dlopen(nullptr, RTLD_LAZY);
}

template <typename Function>
bool find_symbol(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

// A region's own fork and join order all memory, but ThreadSanitizer does not see into libgomp.
// `next` and `finished` say the same once more, for some nanoseconds.
struct Job {
    Executor::Body body;
    void* context;
    uint32_t count;
    uint32_t worker_count;
    int (*thread_index)();
    std::atomic<uint32_t> next;
    std::atomic<uint32_t> finished;
};

void work(void* data) {
    Job& job = *static_cast<Job*>(data);
    (void)job.next.load(std::memory_order_acquire);
    const auto worker = static_cast<uint32_t>(job.thread_index());
    while (worker < job.worker_count) {
        const uint32_t index = job.next.fetch_add(1, std::memory_order_acquire);
        if (index >= job.count) break;
        job.body(job.context, index, worker);
    }
    job.finished.fetch_add(1, std::memory_order_release);
}

}  // namespace

OmpExecutor::OmpExecutor(Runtime runtime, uint32_t worker_max)
    : runtime_(runtime), worker_max_(worker_max) {}

std::unique_ptr<OmpExecutor> OmpExecutor::find(uint32_t worker_max) {
    ggml_backend_reg_t registry = cpu_registry();
    if (registry == nullptr || !engine_uses_openmp(registry)) return nullptr;
    void* library = cpu_backend_library(registry);
    if (library == nullptr) return nullptr;
    Runtime runtime = {};
    const bool found = find_symbol(library, "GOMP_parallel", runtime.parallel) &&
                       find_symbol(library, "omp_get_thread_num", runtime.thread_index);
    dlclose(library);  // it stays loaded: ggml holds it
    if (!found) return nullptr;
    return std::unique_ptr<OmpExecutor>(new OmpExecutor(runtime, worker_max));
}

void OmpExecutor::set_thread_count(uint32_t count) {
    thread_count_.store(std::max(count, 1U), std::memory_order_relaxed);
}

uint32_t OmpExecutor::worker_count() const {
    const uint32_t threads = engine_thread_count();
    return threads == 0 ? worker_max_ : std::min(threads, worker_max_);
}

void OmpExecutor::run(uint32_t count, Executor::Body body, void* context) const {
    const uint32_t threads = engine_thread_count();
    if (count <= 1 || threads <= 1) {
        for (uint32_t index = 0; index < count; ++index) body(context, index, 0);
        return;
    }
    Job job{body, context, count, worker_count(), runtime_.thread_index, 0, 0};
    job.next.store(0, std::memory_order_release);
    runtime_.parallel(&work, &job, threads, 0);
    (void)job.finished.load(std::memory_order_acquire);
}

Executor OmpExecutor::executor() {
    Executor executor;
    executor.self = this;
    executor.run = [](void* self, uint32_t count, Executor::Body body, void* context) {
        static_cast<OmpExecutor*>(self)->run(count, body, context);
    };
    executor.thread_count = [](const void* self) {
        return static_cast<const OmpExecutor*>(self)->worker_count();
    };
    return executor;
}

uint32_t usable_core_count() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return static_cast<uint32_t>(std::max(CPU_COUNT(&set), 1));
    }
    return std::max(std::thread::hardware_concurrency(), 1U);
}

}  // namespace shoal::llama_cpp
