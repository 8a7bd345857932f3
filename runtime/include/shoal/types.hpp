// Small value types that every part of Shoal and every engine share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

// One array of slots, one token each. `generation` makes a closed and reused store distinct.
struct StoreId {
    uint32_t index = 0;
    uint32_t generation = 0;
    bool operator==(const StoreId&) const = default;
};

// Index of a layer of the model, 0 .. layer count - 1, in the order in which layers run.
struct LayerId {
    uint32_t index = 0;
    bool operator==(const LayerId&) const = default;
};

// How the numbers of a K or V row are stored. q8: whole numbers of 8 bits and one scale per row
// (one token, one KV head, K or V), with which they are multiplied.
enum class DType : uint8_t { f16, bf16, f32, q8 };

// Bytes of one number; of q8 without its scale.
size_t dtype_bytes(DType dtype);
// Bytes of one row of a tensor: a q8 row is followed by its scale, a bf16.
size_t row_bytes(DType dtype, uint32_t head_dim);
const char* dtype_name(DType dtype);

// Form of the rows of a store. Row sizes come from here, never from `sizeof`.
struct RowFormat {
    DType k = DType::f16;
    DType v = DType::f16;
    bool operator==(const RowFormat&) const = default;
};

// full: every earlier token is visible; sliding: a window of them; none: no attention.
// Sliding layers are kept whole and served dense; `plan` says so.
enum class LayerKind : uint8_t { full, sliding, none };

// What one layer keeps per token.
struct LayerShape {
    LayerKind kind = LayerKind::full;
    uint32_t kv_head_count = 0;  // 1 ..
    uint32_t k_head_dim = 0;     // 32 .. 256 in steps of 16
    uint32_t v_head_dim = 0;     // 32 .. 256 in steps of 16
    uint32_t window = 0;         // tokens, sliding layers only
    bool operator==(const LayerShape&) const = default;
};

// What Shoal must know of a model. `q_head_count` is a multiple of every layer's
// `kv_head_count`, at most 16 times it.
struct ModelShape {
    std::vector<LayerShape> layers;
    uint32_t q_head_count = 0;
    RowFormat rows;              // as the engine sees them; kept otherwise with Config::host.rows
    float attention_scale = 0.0F;  // factor on q.k; 0 = 1 / sqrt(k_head_dim)
};

// A borrowed tensor of rank 3 in host memory: [n, heads, head_dim], the last dimension dense
// (row_bytes()).
// Strides are in bytes. Ownership stays with the caller; the memory must live until the call
// returns.
struct ConstTensor {
    const std::byte* data = nullptr;
    DType dtype = DType::f32;
    uint32_t n = 0;
    uint32_t heads = 0;
    uint32_t head_dim = 0;
    size_t n_stride_bytes = 0;
    size_t head_stride_bytes = 0;
    bool empty() const { return data == nullptr; }
};

// As ConstTensor, writable; f32 only.
struct Tensor {
    float* data = nullptr;
    uint32_t n = 0;
    uint32_t heads = 0;
    uint32_t head_dim = 0;
    size_t n_stride_bytes = 0;
    size_t head_stride_bytes = 0;
};

// Consecutive slots [begin, end).
struct SlotRange {
    uint32_t begin = 0;
    uint32_t end = 0;
    bool operator==(const SlotRange&) const = default;
};

// The queue that a call enqueues on. The CPU backend runs in the calling thread: pass the default.
struct StreamRef {
    void* handle = nullptr;
};

// Runs `body(context, index, worker)` for every index in [0, count), in any order, on up to
// `thread_count` threads; `worker` < thread_count; returns when all are done. Engines with
// workers of their own pass them here (inside llama.cpp a second pool would fight the first).
// The function must not throw. Calls do not nest and come from one thread at a time.
struct Executor {
    using Body = void (*)(void* context, uint32_t index, uint32_t worker);
    void* self = nullptr;
    void (*run)(void* self, uint32_t count, Body body, void* context) = nullptr;
    uint32_t (*thread_count)(const void* self) = nullptr;
};

}  // namespace shoal
