#include "runtime/engines/llama_cpp/host/device.hpp"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include <fmt/format.h>

#include "runtime/engines/llama_cpp/shoal_llama_host.h"

namespace shoal::llama_host {
namespace {

constexpr const char* kRegistryName = "Shoal";
constexpr const char* kPluginFile = "libggml-shoal.so";

Status refuse(StatusCode code, std::string text) { return Status::error(code, std::move(text)); }

std::string file_of(const void* symbol) {
    Dl_info info = {};
    if (dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return "";
    return info.dli_fname;
}

// Functions have changed their meaning where the numbers differ.
Status check_version(ggml_backend_reg_t registry) {
    const auto version = side_call<shoal_llama_api_version_t>(registry, "shoal_llama_api_version");
    const int number = version == nullptr ? 0 : version();
    const std::string file = file_of(reinterpret_cast<const void*>(version));
    if (number != SHOAL_LLAMA_API_VERSION) {
        return refuse(StatusCode::unsupported,
                      fmt::format("{}: version {} of shoal_llama.h, this library was built for {}: "
                                  "take both from one build", file, number,
                                  SHOAL_LLAMA_API_VERSION));
    }
    // Functions are added without a new number.
    for (const char* name : {"shoal_llama_next_config_toml", "shoal_llama_note_tokens",
                             "shoal_llama_attended_rows", "shoal_llama_stats_json"}) {
        if (ggml_backend_reg_get_proc_address(registry, name) != nullptr) continue;
        return refuse(StatusCode::unsupported,
                      fmt::format("{}: has no {}, it is older than this library: take both from "
                                  "one build", file, name));
    }
    return Status::ok();
}

Status check_same_file(ggml_backend_reg_t registry, const std::string& path) {
    const std::string loaded = file_of(
        ggml_backend_reg_get_proc_address(registry, "shoal_llama_api_version"));
    std::error_code error;
    if (path.empty() || std::filesystem::equivalent(path, loaded, error)) return Status::ok();
    return refuse(StatusCode::invalid_argument,
                  fmt::format("plugin_path = {}: Shoal's device is loaded already, from {}", path,
                              loaded));
}

}  // namespace

Result<ggml_backend_reg_t> find_device() {
    ggml_backend_reg_t registry = ggml_backend_reg_by_name(kRegistryName);
    if (registry == nullptr || ggml_backend_reg_dev_count(registry) == 0) {
        return refuse(StatusCode::not_found,
                      "devices: Shoal's device is not loaded: call shoal_llama_load first");
    }
    SHOAL_TRY(check_version(registry));
    return registry;
}

Result<ggml_backend_reg_t> load_device(const std::string& path) {
    if (ggml_backend_reg_t registry = ggml_backend_reg_by_name(kRegistryName)) {
        SHOAL_TRY(check_same_file(registry, path));
        return find_device();
    }
    std::filesystem::path file = path;
    if (path.empty()) {
        const std::string here = file_of(reinterpret_cast<const void*>(&shoal_llama_load));
        file = std::filesystem::path(here).parent_path() / kPluginFile;
    }
    std::error_code error;
    if (!std::filesystem::is_regular_file(file, error)) {
        return refuse(StatusCode::not_found,
                      fmt::format("plugin_path = {}: no such file: must be {}", file.string(),
                                  kPluginFile));
    }
    if (ggml_backend_load(file.c_str()) == nullptr) {
        return refuse(StatusCode::unsupported,
                      fmt::format("plugin_path = {}: ggml does not load it; its log says why",
                                  file.string()));
    }
    return find_device();
}

Result<Config> next_config(ggml_backend_reg_t registry) {
    const auto next =
        side_call<shoal_llama_next_config_toml_t>(registry, "shoal_llama_next_config_toml");
    size_t length = 0;
    if (const char* error = next(nullptr, 0, &length)) {
        return refuse(StatusCode::invalid_argument, error);
    }
    std::string text(length + 1, '\0');
    next(text.data(), text.size(), nullptr);
    text.resize(length);
    Config config;
    SHOAL_TRY(config_merge_text(text, "configuration", config));
    return config;
}

}  // namespace shoal::llama_host
