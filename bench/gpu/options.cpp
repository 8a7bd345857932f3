#include "bench/gpu/options.hpp"

#include <algorithm>

namespace shoal::gpu {
namespace {

constexpr PartInfo kParts[kPartCount] = {
    {"link", "DMA by piece size and direction, pinning, HBM read and copy", 75},
    {"gather", "SM gather from pinned host memory, and what it costs its neighbours", 110},
    {"label_scan", "mixed-bit label scan with combine and histogram", 45},
    {"select", "the best k of n: CUB, histogram, last threshold as guess", 45},
    {"resolve_attend", "slot lookup with replacement, split-KV attention", 45},
    {"step_graph", "32 layers in one CUDA graph, by stage and miss rate", 100},
    {"write_back", "rows and acknowledgements to pinned memory, host nodes", 20},
};

std::string part_names() {
    std::string names;
    for (const PartInfo& info : kParts) {
        names += (names.empty() ? "" : ", ") + std::string(info.name);
    }
    return names;
}

Status add_parts(const std::string& names, std::vector<Part>& parts) {
    for (size_t begin = 0; begin <= names.size();) {
        const size_t end = std::min(names.find(',', begin), names.size());
        const std::string name = names.substr(begin, end - begin);
        const auto* found = std::find_if(std::begin(kParts), std::end(kParts),
                                         [&](const PartInfo& info) { return info.name == name; });
        if (found == std::end(kParts)) {
            return Status::error(StatusCode::invalid_argument,
                                 "--only " + names + ": no part \"" + name +
                                     "\" (allowed: " + part_names() + ")");
        }
        parts.push_back(static_cast<Part>(found - kParts));
        begin = end + 1;
    }
    return Status::ok();
}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

const PartInfo& part_info(Part part) { return kParts[static_cast<size_t>(part)]; }

Result<Options> parse_options(const std::vector<std::string>& arguments) {
    Options options;
    for (size_t i = 0; i < arguments.size(); ++i) {
        const std::string& name = arguments[i];
        const bool takes_value = name == "--only" || name == "--json";
        if (takes_value && (i + 1 == arguments.size() || arguments[i + 1].empty())) {
            return Status::error(StatusCode::invalid_argument, name + ": needs a value");
        }
        if (name == "--only") {
            SHOAL_TRY(add_parts(arguments[++i], options.parts));
        } else if (name == "--json") {
            options.json_path = arguments[++i];
        } else if (name == "--small") {
            options.small = true;
        } else if (name == "--list") {
            options.list = true;
        } else if (name == "--help" || name == "-h") {
            options.help = true;
        } else {
            return Status::error(StatusCode::invalid_argument,
                                 name + ": unknown option (allowed: --only NAME,..., --json FILE, "
                                        "--small, --list, --help)");
        }
    }
    if (options.parts.empty()) {
        for (uint32_t i = 0; i < kPartCount; ++i) options.parts.push_back(static_cast<Part>(i));
    }
    std::sort(options.parts.begin(), options.parts.end());
    options.parts.erase(std::unique(options.parts.begin(), options.parts.end()),
                        options.parts.end());
    return options;
}

std::string usage_text() {
    return "usage: gpu_facts [--only NAME,...] [--json FILE] [--small] [--list]\n"
           "  --only NAME,...  these parts: " + part_names() + "\n"
           "  --json FILE      every figure, also\n"
           "  --small          small sizes, few repetitions: for compute-sanitizer\n"
           "  --list           what the parts measure\n"
           "exit code: 0 all checks passed, 1 one failed, 2 wrong use, 3 no usable GPU\n";
}

std::string list_text() {
    std::string text;
    for (const PartInfo& info : kParts) {
        std::string name = info.name;
        name.resize(16, ' ');
        text += name + info.about + ", " + std::to_string(static_cast<int>(info.budget_s)) + " s\n";
    }
    return text;
}

std::string refusal(int driver_version, int runtime_version, int device_count,
                    const std::string& cuda_error) {
    if (driver_version == 0) return "no NVIDIA driver on this machine: nothing measured";
    if (driver_version / 1000 < runtime_version / 1000) {
        return "the driver serves CUDA " + version_text(driver_version) + ", this program needs " +
               version_text(runtime_version / 1000 * 1000) + ": update the driver";
    }
    if (!cuda_error.empty()) return "CUDA does not start: " + cuda_error;
    if (device_count == 0) return "a driver, but no GPU: nothing measured";
    return "";
}

}  // namespace shoal::gpu
