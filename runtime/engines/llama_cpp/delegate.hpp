// Attention by ggml's own CPU kernel over rows read back out of Shoal. For tests: with it, logits
// through the device are bit-identical to stock llama.cpp, which shows that Shoal holds exactly the
// rows that stock would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu_backend.hpp"
#include "ggml.h"
#include "kv_tensor.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

class Delegate {
public:
    // Reads bytes of a KV tensor, as KvCache::read_bytes.
    using Read =
        std::function<Status(const KvTensor& tensor, size_t offset, std::byte* data, size_t size)>;

    // Computes a FLASH_ATTN_EXT op with `thread_count` threads, as the engine would.
    Status attend(const ggml_tensor& op, uint32_t thread_count, const Read& read);

private:
    struct Source {
        std::vector<std::byte> rows;  // as they lie in the cache
        std::vector<std::byte> cast;  // in f16, if the op reads a cast
    };

    CpuBackend cpu_;
    Source k_;
    Source v_;
};

}  // namespace shoal::llama_cpp
