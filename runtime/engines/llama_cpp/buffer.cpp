#include "buffer.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <string_view>

#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

constexpr size_t kAlignment = 128;

thread_local KvCache* reserving_cache = nullptr;
uint64_t (*kv_listener)() = nullptr;

struct Buffer {
    std::byte* base = nullptr;
    size_t size = 0;
    bool accessible = false;
    std::unique_ptr<KvCache> cache;  // of a KV buffer

    ~Buffer() { munmap(base, size); }

    bool make_accessible() {
        if (!accessible) accessible = mprotect(base, size, PROT_READ | PROT_WRITE) == 0;
        return accessible;
    }
};

Buffer& buffer_of(ggml_backend_buffer_t buffer) {
    return *static_cast<Buffer*>(buffer->context);
}

size_t offset_in_root(const ggml_tensor& tensor, size_t offset) {
    return tensor.view_src != nullptr ? tensor.view_offs + offset : offset;
}

// llama.cpp's caches of any kind, those refused included; not a copy of one, whose name goes on
// with " (copy)".
bool is_cache_name(std::string_view name) {
    return name.starts_with("cache_") && name.find(' ') == std::string_view::npos;
}

void fail(KvCache& cache, const char* doing, const ggml_tensor& tensor, const Status& status) {
    const std::string text = fmt::format("{} {}: {}", doing, tensor.name, status.message());
    log_failure(text);
    cache.fail_until_cleared(text);
}

void buffer_free(ggml_backend_buffer_t buffer) { delete &buffer_of(buffer); }

void* buffer_base(ggml_backend_buffer_t buffer) { return buffer_of(buffer).base; }

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
    if (tensor->view_src != nullptr) return GGML_STATUS_SUCCESS;
    Buffer& owner = buffer_of(buffer);
    if (owner.accessible || (owner.cache == nullptr && !is_cache_name(tensor->name))) {
        if (owner.make_accessible()) return GGML_STATUS_SUCCESS;
        log_failure(fmt::format("{} bytes of compute memory: {}", owner.size, strerror(errno)));
        return GGML_STATUS_ALLOC_FAILED;
    }
    if (owner.cache == nullptr) {
        // A cache that is gone may have had the address of this one, whose graphs come later.
        reserving_cache = nullptr;
        owner.cache = std::make_unique<KvCache>(kv_listener != nullptr ? kv_listener() : 0);
    }
    const Status status = owner.cache->adopt(*tensor);
    if (status) return GGML_STATUS_SUCCESS;
    log_failure(status.message());
    return GGML_STATUS_FAILED;
}

void buffer_set(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                size_t size) {
    Buffer& owner = buffer_of(buffer);
    if (owner.cache == nullptr) {
        std::memcpy(static_cast<std::byte*>(tensor->data) + offset, data, size);
        return;
    }
    const Status status =
        owner.cache->write_bytes(*held_tensor(*tensor), offset_in_root(*tensor, offset),
                                 static_cast<const std::byte*>(data), size);
    if (!status) fail(*owner.cache, "writing", *tensor, status);
}

void buffer_get(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                size_t size) {
    Buffer& owner = buffer_of(buffer);
    if (owner.cache == nullptr) {
        std::memcpy(data, static_cast<const std::byte*>(tensor->data) + offset, size);
        return;
    }
    const Status status =
        owner.cache->read_bytes(*held_tensor(*tensor), offset_in_root(*tensor, offset),
                                static_cast<std::byte*>(data), size);
    if (status) return;
    std::memset(data, 0, size);
    fail(*owner.cache, "reading", *tensor, status);
}

void buffer_memset(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                   size_t size) {
    if (buffer_of(buffer).cache == nullptr) {
        std::memset(static_cast<std::byte*>(tensor->data) + offset, value, size);
        return;
    }
    const std::vector<std::byte> bytes(size, std::byte{value});
    buffer_set(buffer, tensor, bytes.data(), offset, size);
}

// Between plain buffers, and from one stream of a KV cache to another; what else a KV cache takes
// part in goes through get and set.
bool buffer_copy(ggml_backend_buffer_t buffer, const ggml_tensor* from, ggml_tensor* to) {
    Buffer& owner = buffer_of(buffer);
    if (owner.cache != nullptr && root_of(from)->buffer == buffer) {
        Status status = Status::ok();
        const bool copied = owner.cache->copy_stream(*from, *to, status);
        if (!status) fail(*owner.cache, "copying", *to, status);
        return copied;
    }
    ggml_backend_buffer_t source = root_of(from)->buffer;
    if (owner.cache != nullptr || source == nullptr ||
        !ggml_backend_buffer_is_host(source)) {
        return false;
    }
    std::memcpy(to->data, from->data, ggml_nbytes(from));
    return true;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    Buffer& owner = buffer_of(buffer);
    if (owner.cache == nullptr) {
        // Fresh pages are zero already.
        if (owner.accessible || (value != 0 && owner.make_accessible())) {
            std::memset(owner.base, value, owner.size);
        }
        return;
    }
    Status status = owner.cache->clear();
    if (status && value != 0) {
        status = unsupported(fmt::format("filling a KV cache with {} instead of 0", value));
    }
    if (status) return;
    log_failure("clearing the KV cache: " + status.message());
    owner.cache->fail_until_cleared(status.message());
}

// The engine is about to get compute memory for the graphs of this thread's cache.
bool session_is_ready() {
    KvCache* cache = reserving_cache;
    if (cache == nullptr || !KvCache::is_alive(cache) || cache->has_session()) return true;
    const Status status = cache->create_session();
    if (!status) log_failure(status.message());
    return status.is_ok();
}

ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
    if (!session_is_ready()) return nullptr;
    // Without access, address space costs nothing, also where overcommit is off.
    void* base = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        log_failure(fmt::format("{} bytes of address space: {}", size, strerror(errno)));
        return nullptr;
    }
    auto owner = std::make_unique<Buffer>();
    owner->base = static_cast<std::byte*>(base);
    owner->size = size;
    ggml_backend_buffer_i calls = {};
    calls.free_buffer = buffer_free;
    calls.get_base = buffer_base;
    calls.init_tensor = buffer_init_tensor;
    calls.memset_tensor = buffer_memset;
    calls.set_tensor = buffer_set;
    calls.get_tensor = buffer_get;
    calls.cpy_tensor = buffer_copy;
    calls.clear = buffer_clear;
    return ggml_backend_buffer_init(type, calls, owner.release(), size);
}

ggml_backend_buffer_type make_type() {
    ggml_backend_buffer_type type = {};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "Shoal"; };
    type.iface.alloc_buffer = type_alloc;
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) { return kAlignment; };
    // Not host memory, though it is in RAM: the CPU backend would read the tensors in place.
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
    return type;
}

}  // namespace

ggml_backend_buffer_type_t buffer_type() {
    static ggml_backend_buffer_type type = make_type();
    return &type;
}

void set_buffer_type_device(ggml_backend_dev_t device) { buffer_type()->device = device; }

bool is_in_kv_buffer(const ggml_tensor& tensor) {
    const ggml_tensor& root = *root_of(&tensor);
    return root.buffer != nullptr && root.buffer->buft == buffer_type() &&
           (root.extra != nullptr || parse_kv_name(root.name).has_value());
}

KvTensor* held_tensor(const ggml_tensor& tensor) {
    const ggml_tensor& root = *root_of(&tensor);
    if (root.buffer == nullptr || root.buffer->buft != buffer_type()) return nullptr;
    const auto* owner = static_cast<const Buffer*>(root.buffer->context);
    if (owner == nullptr || owner->cache == nullptr) return nullptr;
    return static_cast<KvTensor*>(root.extra);
}

void set_reserving_cache(KvCache* cache) { reserving_cache = cache; }

void set_kv_listener(uint64_t (*listener)()) { kv_listener = listener; }

}  // namespace shoal::llama_cpp
