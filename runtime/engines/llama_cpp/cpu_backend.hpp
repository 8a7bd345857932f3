// ggml's own CPU backend, for an op that Shoal wants computed exactly as the engine would.
#pragma once

#include <cstdint>
#include <span>

#include "ggml-backend.h"
#include "ggml.h"
#include "shoal/status.hpp"

namespace shoal::llama_cpp {

class CpuBackend {
public:
    CpuBackend() = default;
    ~CpuBackend();
    CpuBackend(const CpuBackend&) = delete;
    CpuBackend& operator=(const CpuBackend&) = delete;

    // Runs one node whose sources and result lie in plain memory. `doing` names it in errors.
    Status compute(ggml_tensor& node, uint32_t thread_count, const char* doing);
    // The same for some, in an order in which sources come first.
    Status compute(std::span<ggml_tensor* const> nodes, uint32_t thread_count, const char* doing);

private:
    Status open(uint32_t thread_count, const char* doing);

    ggml_backend_t backend_ = nullptr;
};

// `tensor` as a leaf over `data`: same type, sizes and strides, no sources, no buffer.
ggml_tensor leaf_over(const ggml_tensor& tensor, void* data);

}  // namespace shoal::llama_cpp
