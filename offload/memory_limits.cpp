#include "offload/memory_limits.hpp"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

namespace shoal::offload {

namespace {

std::optional<std::string> read_text(const std::string& path) {
    std::ifstream file(path);
    if (!file) return std::nullopt;
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

std::optional<uint64_t> parse_number(std::string_view text) {
    const size_t begin = text.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return std::nullopt;
    text.remove_prefix(begin);
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end == text.data()) return std::nullopt;
    return value;
}

std::optional<uint64_t> read_number(const std::string& path) {
    const std::optional<std::string> text = read_text(path);
    return text ? parse_number(*text) : std::nullopt;
}

// The number after `key` at the start of a line: "MemAvailable:   123 kB", "inactive_file 123".
std::optional<uint64_t> number_of_key(std::string_view text, std::string_view key) {
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string_view line = text.substr(at, end - at);
        if (line.starts_with(key)) {
            std::string_view rest = line.substr(key.size());
            if (rest.starts_with(':')) rest.remove_prefix(1);
            if (rest.starts_with(' ') || rest.starts_with('\t')) return parse_number(rest);
        }
        at = end + 1;
    }
    return std::nullopt;
}

bool is_folder(const std::string& path) {
    struct stat info {};
    return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// The paths that /proc/self/cgroup gives: of the v2 hierarchy, and of one v1 controller.
std::optional<std::string> cgroup_path_of(const std::string& text, std::string_view controller) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t first = line.find(':');
        const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
        const std::string wanted = "," + std::string(controller) + ",";
        if (names == wanted || (!controller.empty() && names.find(wanted) != std::string::npos)) {
            return line.substr(second + 1);
        }
    }
    return std::nullopt;
}

// "/a/b" -> {"/a/b", "/a", ""}. A container may see its own cgroup mounted as the root while
// /proc/self/cgroup names it by its path outside: levels that do not exist are left out by the
// readers, and the root always counts.
std::vector<std::string> levels_upwards(std::string path) {
    std::vector<std::string> levels;
    while (!path.empty() && path != "/") {
        levels.push_back(path);
        path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
    levels.emplace_back();
    return levels;
}

struct CgroupFiles {
    const char* limit;
    const char* used;
    const char* reclaimable_key;  // in memory.stat: page cache that the kernel drops first
};
constexpr CgroupFiles kFilesV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                  "total_inactive_file"};
constexpr CgroupFiles kFilesV2 = {"memory.max", "memory.current", "inactive_file"};

uint64_t left(uint64_t limit, uint64_t used) { return limit > used ? limit - used : 0; }

// Keeps the level that leaves the least. v1 writes "no limit" as a number near 2^63.
void read_cgroup_memory(const std::string& mount, const std::string& path,
                        const CgroupFiles& files, MemoryLimits& out) {
    constexpr uint64_t kNoLimit = uint64_t{1} << 62;
    for (const std::string& level : levels_upwards(path)) {
        const std::string folder = mount + level + "/";
        const std::optional<uint64_t> limit = read_number(folder + files.limit);
        if (!limit || *limit >= kNoLimit) continue;
        uint64_t used = read_number(folder + files.used).value_or(0);
        if (const auto stat_text = read_text(folder + "memory.stat")) {
            used = left(used, number_of_key(*stat_text, files.reclaimable_key).value_or(0));
        }
        if (out.cgroup_limit_bytes == MemoryLimits::kUnlimited ||
            left(*limit, used) < left(out.cgroup_limit_bytes, out.cgroup_used_bytes)) {
            out.cgroup_limit_bytes = *limit;
            out.cgroup_used_bytes = used;
            out.cgroup_path = level.empty() ? "/" : level;
        }
    }
}

void keep_least_quota(std::optional<uint64_t> quota_us, std::optional<uint64_t> period_us,
                      double& least) {
    if (!quota_us || !period_us || *period_us == 0) return;
    const double quota = static_cast<double>(*quota_us) / static_cast<double>(*period_us);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
}

void read_cgroup_cpu(const std::string& mount, const std::string& path, bool is_v2,
                     MemoryLimits& out) {
    for (const std::string& level : levels_upwards(path)) {
        const std::string folder = mount + level + "/";
        if (!is_v2) {
            keep_least_quota(read_number(folder + "cpu.cfs_quota_us"),
                             read_number(folder + "cpu.cfs_period_us"), out.cpu_quota);
        } else if (const auto text = read_text(folder + "cpu.max")) {
            // "max 100000" or "150000 100000"
            const size_t space = std::min(text->find(' '), text->size());
            keep_least_quota(parse_number(text->substr(0, space)),
                             parse_number(text->substr(space)), out.cpu_quota);
        }
    }
}

void read_cgroups(const std::string& root, MemoryLimits& out) {
    const std::string text = read_text(root + "/proc/self/cgroup").value_or("");
    const std::string base = root + "/sys/fs/cgroup";
    if (const auto path = cgroup_path_of(text, "memory")) {
        read_cgroup_memory(base + "/memory", *path, kFilesV1, out);
    }
    for (const char* mount : {"/cpu,cpuacct", "/cpu"}) {
        const auto path = cgroup_path_of(text, "cpu");
        if (path && is_folder(base + mount)) read_cgroup_cpu(base + mount, *path, false, out);
    }
    if (const auto path = cgroup_path_of(text, "")) {
        const std::string mount = is_folder(base + "/unified") ? base + "/unified" : base;
        read_cgroup_memory(mount, *path, kFilesV2, out);
        read_cgroup_cpu(mount, *path, true, out);
    }
}

}  // namespace

std::string MemoryLimits::available_text() const {
    if (bound == MemoryBound::cgroup) {
        return fmt::format("{} (cgroup limit {}, {} in use)", bytes_text(available_bytes),
                           bytes_text(cgroup_limit_bytes), bytes_text(cgroup_used_bytes));
    }
    return fmt::format("{} (MemAvailable, of {} in all)", bytes_text(available_bytes),
                       bytes_text(mem_total_bytes));
}

MemoryLimits read_memory_limits(const std::string& root) {
    MemoryLimits out;
    const std::string meminfo = read_text(root + "/proc/meminfo").value_or("");
    const auto kib = [&](std::string_view key) { return number_of_key(meminfo, key); };
    out.mem_total_bytes = kib("MemTotal").value_or(MemoryLimits::kUnlimited / 1024) * 1024;
    out.mem_available_bytes = out.mem_total_bytes;
    if (const auto available = kib("MemAvailable")) out.mem_available_bytes = *available * 1024;

    const std::string status = read_text(root + "/proc/self/status").value_or("");
    out.mapped_bytes = number_of_key(status, "RssFile").value_or(0) * 1024;

    read_cgroups(root, out);

    struct rlimit memlock {};
    if (getrlimit(RLIMIT_MEMLOCK, &memlock) == 0) {
        out.memlock_bytes =
            memlock.rlim_cur == RLIM_INFINITY ? MemoryLimits::kUnlimited : memlock.rlim_cur;
    }

    out.available_bytes = out.mem_available_bytes;
    out.bound = MemoryBound::mem_available;
    if (out.cgroup_limit_bytes != MemoryLimits::kUnlimited) {
        const uint64_t in_cgroup = left(out.cgroup_limit_bytes, out.cgroup_used_bytes);
        if (in_cgroup < out.available_bytes) {
            out.available_bytes = in_cgroup;
            out.bound = MemoryBound::cgroup;
        }
    }
    return out;
}

}  // namespace shoal::offload
