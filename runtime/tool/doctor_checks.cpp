#include "runtime/tool/doctor_checks.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <string_view>

#include <fmt/format.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include "kernels/backend.hpp"
#include "offload/arena.hpp"
#include "offload/memory_limits.hpp"
#include "offload/topology.hpp"
#include "runtime/tool/plugin.hpp"
#include "shoal/session.hpp"

namespace shoal::tool {
namespace {

using offload::bytes_text;
using offload::MemoryLimits;

// What the smallest session takes: a model of one lane, llama.cpp's smallest context.
uint64_t least_bytes() {
    ModelShape shape;
    shape.layers = {LayerShape{LayerKind::full, 1, 64, 64, 0}};
    shape.q_head_count = 1;
    SessionOptions options;
    options.slots_per_store = 256;
    const Result<MemoryPlan> plan = Session::plan(Config{}, shape, options);
    return plan ? plan->total_bytes : 0;
}

std::string count_text(uint64_t count, const std::string& thing) {
    return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

Finding check_instructions() {
    const std::string target = kernels::cpu_target_name();
    Finding finding{"processor", Verdict::ok, target, ""};
    if (target.starts_with("AVX3") || target.starts_with("AVX10")) {
        finding.means = "kernels use AVX-512";
    } else if (target == "AVX2" || target.starts_with("NEON") || target.starts_with("SVE")) {
        finding.means = "kernels use vectors of this set; figures of the documents are of AVX-512";
    } else {
        finding.verdict = Verdict::warning;
        finding.means = "kernels run, but slowly: AVX2, AVX-512 or NEON is what they are made for";
    }
    return finding;
}

Finding check_cores(const offload::Topology& topology, const MemoryLimits& limits) {
    Finding finding{"cores", Verdict::ok,
                    fmt::format("{} for this process, {}", topology.core_count,
                                count_text(topology.processors.size(), "hardware thread")),
                    ""};
    const auto processors = static_cast<double>(topology.processors.size());
    if (limits.cpu_quota > 0 && limits.cpu_quota < processors) {
        finding.verdict = Verdict::warning;
        finding.found += fmt::format(", cgroup quota {:.1f}", limits.cpu_quota);
        finding.means = fmt::format("more threads than the quota are stopped in the middle of a "
                                    "step: use -t {}",
                                    std::max(1, static_cast<int>(limits.cpu_quota)));
        return finding;
    }
    finding.means = fmt::format("-t 0 uses {}", topology.processors.size());
    return finding;
}

Finding check_pinning(const offload::Topology& topology, const Config& config) {
    Finding finding{"pinning", Verdict::ok, "", ""};
    const std::vector<uint32_t> before = offload::current_affinity();
    const Status pinned = offload::pin_current_thread(topology.processors.front().os_index);
    const Status restored = offload::set_affinity(before);
    const std::string nodes = count_text(topology.numa_node_count, "NUMA node");
    if (!pinned || !restored) {
        finding.verdict = config.host.pin ? Verdict::warning : Verdict::ok;
        finding.found = fmt::format("refused ({}), {}", (pinned ? restored : pinned).message(),
                                    nodes);
        finding.means = "Shoal's own workers may be moved between cores in the middle of a step; "
                        "inside llama.cpp its workers are used as they are";
        return finding;
    }
    finding.found = fmt::format("works, {}", nodes);
    finding.means = "Shoal's own workers stay on their cores";
    if (topology.numa_node_count > 1) {
        finding.verdict = Verdict::warning;
        finding.means += "; rows are on the node that touched them first: one node is faster for "
                         "one model (numactl --cpunodebind=0 --membind=0)";
    }
    return finding;
}

// The word in brackets: "always [madvise] never".
std::string chosen_word(const std::string& path) {
    std::string text;
    std::getline(std::ifstream(path), text);
    const size_t open = text.find('[');
    const size_t close = text.find(']');
    if (open == std::string::npos || close == std::string::npos) return "";
    return text.substr(open + 1, close - open - 1);
}

Finding check_huge_pages(const Config& config) {
    Finding finding{"huge pages", Verdict::ok,
                    chosen_word("/sys/kernel/mm/transparent_hugepage/enabled"), ""};
    if (finding.found.empty()) finding.found = "not in this kernel";
    const bool there = finding.found == "always" || finding.found == "madvise";
    if (!config.host.huge_pages) {
        finding.means = "not asked for (host.huge_pages = false)";
    } else if (there) {
        finding.means = fmt::format("rows lie in pages of {}",
                                    bytes_text(offload::kHugePageBytes));
    } else {
        finding.verdict = Verdict::warning;
        finding.means = "rows lie in pages of 4 KiB: more TLB misses at long contexts. Write "
                        "madvise to /sys/kernel/mm/transparent_hugepage/enabled";
    }
    return finding;
}

Finding check_memlock(const MemoryLimits& limits) {
    const bool unlimited = limits.memlock_bytes == MemoryLimits::kUnlimited;
    return {"locked memory", Verdict::ok,
            unlimited ? "unlimited" : bytes_text(limits.memlock_bytes),
            "rows on disk: up to 256 MiB of RAM are registered with io_uring; where the limit is "
            "lower none is, and a read costs .2 us of processor time more"};
}

Finding check_cgroup(const MemoryLimits& limits) {
    if (limits.cgroup_limit_bytes == MemoryLimits::kUnlimited) {
        return {"cgroup memory", Verdict::ok, "no limit", "the memory of the machine is the limit"};
    }
    const bool binding = limits.bound == offload::MemoryBound::cgroup;
    return {"cgroup memory", Verdict::ok,
            fmt::format("{} at {}, {} in use", bytes_text(limits.cgroup_limit_bytes),
                        limits.cgroup_path.empty() ? "/" : limits.cgroup_path,
                        bytes_text(limits.cgroup_used_bytes)),
            binding ? "this is the limit of what Shoal plans with"
                    : "the memory of the machine ends before it"};
}

Finding check_available(const MemoryLimits& limits, const Config& config) {
    Finding finding{"memory", Verdict::ok,
                    fmt::format("{} available of {}", bytes_text(limits.mem_available_bytes),
                                bytes_text(limits.mem_total_bytes)),
                    ""};
    const uint64_t asked = config.host.kv_bytes;
    const uint64_t usable =
        asked == 0 ? limits.available_bytes : std::min(asked, limits.available_bytes);
    const uint64_t least = least_bytes();
    finding.means = fmt::format(
        "{} may take {} (shoal plan -m MODEL says how many tokens that is)",
        asked == 0 ? "weights and KV cache" : "of it the KV cache", bytes_text(usable));
    if (usable < least) {
        finding.verdict = Verdict::failure;
        finding.means = fmt::format("{} is not enough for any context: the smallest takes {}{}",
                                    bytes_text(usable), bytes_text(least),
                                    usable == asked ? " (host.kv_bytes)" : "");
    } else if (asked > limits.available_bytes) {
        finding.verdict = Verdict::warning;
        finding.means = fmt::format("host.kv_bytes = {}: this machine offers {}",
                                    bytes_text(asked), limits.available_text());
    }
    return finding;
}

// As the plugin asks: a process may have an OpenMP runtime for other reasons.
bool engine_uses_openmp() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (cpu == nullptr) return false;
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(cpu);
    auto get_features = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_get_features"));
    if (get_features == nullptr) return false;
    for (const ggml_backend_feature* f = get_features(registry); f->name != nullptr; ++f) {
        if (std::string_view(f->name) == "OPENMP") return std::string_view(f->value) == "1";
    }
    return false;
}

std::string library_of(const void* symbol) {
    Dl_info info = {};
    return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

}  // namespace

const char* verdict_name(Verdict verdict) {
    switch (verdict) {
        case Verdict::ok: return "ok";
        case Verdict::warning: return "warning";
        case Verdict::failure: return "failure";
    }
    return "";
}

std::vector<Finding> check_processor(const Config& config) {
    const offload::Topology topology = offload::read_topology();
    const MemoryLimits limits = offload::read_memory_limits();
    return {check_instructions(), check_cores(topology, limits), check_pinning(topology, config)};
}

std::vector<Finding> check_memory_limits(const Config& config) {
    const MemoryLimits limits = offload::read_memory_limits();
    return {check_available(limits, config), check_cgroup(limits), check_huge_pages(config),
            check_memlock(limits)};
}

Finding check_llama_cpp() {
    const bool openmp = engine_uses_openmp();
    return {"llama.cpp", Verdict::ok,
            fmt::format("{}, ggml {}, {}", llama_version(), ggml_version(),
                        library_of(reinterpret_cast<const void*>(&llama_version))),
            openmp ? "built with OpenMP: its workers attend for Shoal"
                   : "built without OpenMP: Shoal attends with threads of its own"};
}

Finding check_plugin() {
    const Result<const Plugin*> plugin = Plugin::load();
    if (!plugin) {
        return {"plugin", Verdict::failure, plugin.status().message(),
                "llama.cpp has no device to keep the KV cache in"};
    }
    // What the plugin says of itself at load: another ggml, or a configuration it cannot read.
    const std::string error = (*plugin)->last_error();
    if (!error.empty()) return {"plugin", Verdict::failure, error, "it refuses every context"};
    return {"plugin", Verdict::ok, (*plugin)->path(),
            fmt::format("stock programs load it with GGML_BACKEND_PATH={}", (*plugin)->path())};
}

}  // namespace shoal::tool
