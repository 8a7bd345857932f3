// What the program was asked to do, and how it ends.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shoal/status.hpp"

namespace shoal::gpu {

// In the order in which they run.
enum class Part : uint8_t {
    link,
    gather,
    label_scan,
    select,
    resolve_attend,
    step_graph,
    write_back,
};
inline constexpr uint32_t kPartCount = 7;

struct PartInfo {
    const char* name;
    const char* about;
    double budget_s;  // of wall time; all of them together stay below kTotalBudgetS
};
const PartInfo& part_info(Part part);

// The eight minutes, less the start of the program and its buffers.
inline constexpr double kTotalBudgetS = 450.0;

struct Options {
    std::vector<Part> parts;  // ascending, no part twice
    bool small = false;       // sizes for compute-sanitizer; figures mean nothing
    bool list = false;
    bool help = false;
    std::string json_path;    // empty: no file
};

// Exit codes of the program and of bench/gpu.sh.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // a check or a CUDA call failed
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNoGpu = 3;   // no GPU, no driver, too old a driver; gpu.sh: no compiler

// `arguments` without the program's name. An error names the argument and what is allowed.
Result<Options> parse_options(const std::vector<std::string>& arguments);
std::string usage_text();
std::string list_text();

// Why the program cannot run here, as one sentence, or "". Versions as CUDA gives them
// (13000 = 13.0); driver_version is 0 where no driver answers.
std::string refusal(int driver_version, int runtime_version, int device_count,
                    const std::string& cuda_error);

}  // namespace shoal::gpu
