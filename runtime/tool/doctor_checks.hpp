// What a machine allows, one finding per line of `shoal doctor`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tool/config_layers.hpp"

namespace shoal::tool {

enum class Verdict : uint8_t {
    ok,
    warning,  // Shoal runs; `means` says what is lost and what to do about it
    failure,  // Shoal cannot run
};
const char* verdict_name(Verdict verdict);

struct Finding {
    std::string name;   // "huge pages"
    Verdict verdict = Verdict::ok;
    std::string found;  // what this machine says: "madvise"
    std::string means;  // what follows from it for Shoal
};

// Of the machine: processor, memory, kernel. `config` decides what is missed when it is missing.
std::vector<Finding> check_processor(const Config& config);
std::vector<Finding> check_memory_limits(const Config& config);
Finding check_disk_io();
// The driver is opened by name at run time; nothing of Shoal is linked to it.
Finding check_gpu();
// Of the installation: llama.cpp as it is loaded, and the device that it would load.
Finding check_llama_cpp();
Finding check_plugin();

}  // namespace shoal::tool
