#include "runtime/tool/exports.hpp"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/clock.hpp"
#include "runtime/tool/exit.hpp"

namespace shoal {
extern const char kVersion[];
}

namespace shoal::tool {
namespace {

constexpr uint64_t kMetricsEveryNs = 1'000'000'000;

Status cannot_write(const std::string& path, int error) {
    return input_error(
        fmt::format("--metrics {}: {}", path, std::generic_category().message(error)));
}

}  // namespace

void add_metrics_flag(CLI::App& command, ExportFlags& flags) {
    command.add_option("--metrics", flags.metrics,
                       "keep this file up to date with counters while it runs, once a second, as "
                       "OpenMetrics text");
}

Status MetricsFile::write(const Stats& stats) {
    if (path_.empty()) return Status::ok();
    written_ns_ = now_ns();
    // A device or a pipe would be replaced by a file of its name.
    std::error_code ignored;
    if (std::filesystem::exists(path_, ignored) &&
        !std::filesystem::is_regular_file(path_, ignored)) {
        return input_error(fmt::format("--metrics {}: is no regular file", path_));
    }
    const std::string text = stats_to_openmetrics(stats, kVersion);
    const std::string next = path_ + ".new";
    std::FILE* file = std::fopen(next.c_str(), "wb");
    if (file == nullptr) return cannot_write(path_, errno);
    int error = std::fwrite(text.data(), 1, text.size(), file) == text.size() ? 0 : errno;
    if (std::fclose(file) != 0 && error == 0) error = errno;
    if (error == 0 && std::rename(next.c_str(), path_.c_str()) != 0) error = errno;
    if (error == 0) return Status::ok();
    std::remove(next.c_str());
    return cannot_write(path_, error);
}

bool MetricsFile::due() const {
    return !path_.empty() && now_ns() - written_ns_ >= kMetricsEveryNs;
}

Status Exports::open() { return metrics_.write(Stats{}); }

Status Exports::attach(Engine& engine) {
    if (flags_.metrics.empty()) return Status::ok();
    engine.watch([this, &engine] { work_done(engine); });
    return Status::ok();
}

void Exports::work_done(Engine& engine) {
    if (status_.is_ok() && metrics_.due()) status_ = metrics_.write(engine.plugin().stats());
}

Status Exports::flush(Engine& engine) {
    if (status_.is_ok() && !flags_.metrics.empty()) {
        status_ = metrics_.write(engine.plugin().stats());
    }
    return status_;
}

Status Exports::finish(Engine& engine) {
    engine.watch({});
    return flush(engine);
}

}  // namespace shoal::tool
