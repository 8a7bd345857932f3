// Shoal's device as it is registered in this process's ggml, and its side calls.
#pragma once

#include <string>

#include <ggml-backend.h>

#include "runtime/engines/llama_cpp/shoal_llama.h"
#include "shoal/config.hpp"
#include "shoal/status.hpp"

namespace shoal::llama_host {

// Registered already, or an error that says how to load it.
Result<ggml_backend_reg_t> find_device();
// Loads `path` unless it is there; "": the file beside this library.
Result<ggml_backend_reg_t> load_device(const std::string& path);

// What the next context will be configured with; the device's own error where it would refuse.
Result<Config> next_config(ggml_backend_reg_t registry);

template <typename Function>
Function side_call(ggml_backend_reg_t registry, const char* name) {
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
}

}  // namespace shoal::llama_host
