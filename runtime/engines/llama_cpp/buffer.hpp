// Memory that Shoal's device hands to the engine.
//
// Address space is reserved without access. A buffer whose first tensor belongs to a KV cache stays
// so for life: its rows are in the session, and whoever would read the tensors in place is stopped
// by the kernel. Any other buffer (results of attention, about 1 MiB) becomes plain memory.
#pragma once

#include "ggml-backend-impl.h"
#include "kv_cache.hpp"

namespace shoal::llama_cpp {

ggml_backend_buffer_type_t buffer_type();
// Called once, while the device is set up.
void set_buffer_type_device(ggml_backend_dev_t device);

// Whether the memory of `tensor` is of this type and named as a KV cache: also true in a dry run
// (llama.cpp's memory fitting), in which tensors have no memory.
bool is_in_kv_buffer(const ggml_tensor& tensor);
// What `tensor` is a view of, or null when that is not a KV tensor held here.
KvTensor* held_tensor(const ggml_tensor& tensor);

// The cache whose graphs this thread is reserving: create_session() is due when the engine asks
// for compute memory, since a failure there ends the making of the context.
void set_reserving_cache(KvCache* cache);

// Called when a KV cache gets its first tensor; returns what tells the llama_context that makes it
// from others, or 0.
void set_kv_listener(uint64_t (*listener)());

}  // namespace shoal::llama_cpp
