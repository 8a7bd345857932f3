#include "runtime/tool/exports.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/clock.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/output_file.hpp"

namespace shoal {
extern const char kVersion[];
}

namespace shoal::tool {
namespace {

constexpr uint64_t kMetricsEveryNs = 1'000'000'000;
// A prefill micro-batch or token of 1,000 layers, each with a group per KV head.
constexpr uint32_t kEventsPerWork = 1 << 16;

std::string cannot_write(const char* flag, const std::string& path, int error) {
    return fmt::format("{} {}: {}", flag, path, std::generic_category().message(error));
}

}  // namespace

void add_metrics_flag(CLI::App& command, ExportFlags& flags) {
    command.add_option("--metrics", flags.metrics,
                       "keep this file up to date with counters while it runs, once a second, as "
                       "OpenMetrics text");
}

void add_trace_flag(CLI::App& command, ExportFlags& flags) {
    command.add_option("--trace", flags.trace,
                       "write every stage of every step to this file, for chrome://tracing or "
                       "ui.perfetto.dev");
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
    std::string next = path_ + ".XXXXXX";
    const int descriptor = mkstemp(next.data());
    if (descriptor < 0) return input_error(cannot_write("--metrics", path_, errno));
    const mode_t mask = umask(0);
    umask(mask);
    fchmod(descriptor, 0666 & ~mask);  // collectors run as other users
    std::FILE* file = fdopen(descriptor, "wb");
    int error = std::fwrite(text.data(), 1, text.size(), file) == text.size() ? 0 : errno;
    if (std::fclose(file) != 0 && error == 0) error = errno;
    if (error == 0 && std::rename(next.c_str(), path_.c_str()) != 0) error = errno;
    if (error == 0) return Status::ok();
    std::remove(next.c_str());
    return input_error(cannot_write("--metrics", path_, error));
}

bool MetricsFile::due() const {
    return !path_.empty() && now_ns() - written_ns_ >= kMetricsEveryNs;
}

Status TraceFile::open() {
    if (path_.empty()) return Status::ok();
    file_.reset(std::fopen(path_.c_str(), "wb"));
    if (!file_) return input_error(cannot_write("--trace", path_, errno));
    write(std::string(kTraceBeginning));
    return Status::ok();
}

void TraceFile::write(const std::string& text) {
    if (error_ != 0) return;
    if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size()) error_ = errno;
}

void TraceFile::event(char phase, const std::string& name, uint64_t at_ns,
                      const std::string& arguments) {
    const uint64_t since = at_ns - std::min(start_ns_, at_ns);
    write(fmt::format("{}\n{{\"ph\":\"{}\",\"name\":\"{}\",\"pid\":1,\"tid\":1,\"ts\":{}.{:03}{}}}",
                      first_ ? "" : ",", phase, name, since / 1000, since % 1000, arguments));
    first_ = false;
}

void TraceFile::add(const Engine::Work& work, std::vector<TraceEvent> events) {
    if (!file_) return;
    if (start_ns_ == 0) start_ns_ = work.begin_ns;
    std::erase_if(events, [&](const TraceEvent& event) { return event.begin_ns < work.begin_ns; });
    // Outer events first: a begin is written when it comes, its end before the first event that
    // begins at or after it.
    std::sort(events.begin(), events.end(), [](const TraceEvent& a, const TraceEvent& b) {
        return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.end_ns > b.end_ns;
    });
    std::vector<const TraceEvent*> open;
    const auto close_until = [&](uint64_t time_ns) {
        while (!open.empty() && open.back()->end_ns <= time_ns) {
            event('E', trace_stage_name(open.back()->stage), open.back()->end_ns, "");
            open.pop_back();
        }
    };
    const std::string name = work.is_prefill ? "prefill" : "decode";
    event('B', name, work.begin_ns, fmt::format(",\"args\":{{\"tokens\":{}}}", work.tokens));
    for (const TraceEvent& one : events) {
        close_until(one.begin_ns);
        const std::string layer = one.stage == TraceStage::step
                                      ? ""
                                      : fmt::format(",\"args\":{{\"layer\":{}}}", one.layer);
        event('B', trace_stage_name(one.stage), one.begin_ns, layer);
        open.push_back(&one);
    }
    close_until(UINT64_MAX);
    event('E', name, work.end_ns, "");
}

Status TraceFile::close() {
    if (!file_) return Status::ok();
    write("\n]}\n");
    if (std::fclose(file_.release()) != 0 && error_ == 0) error_ = errno;
    if (error_ == 0) return Status::ok();
    return Status::error(StatusCode::internal, cannot_write("--trace", path_, error_));
}

Status Exports::open(const std::string& report) {
    const OutputFile files[] = {{"--report", report, kReportBeginning},
                                {"--metrics", flags_.metrics, kMetricsBeginning},
                                {"--trace", flags_.trace, kTraceBeginning}};
    SHOAL_TRY(check_outputs(files));
    SHOAL_TRY(metrics_.write(Stats{}));
    return trace_.open();
}

Status Exports::attach(Engine& engine) {
    if (flags_.metrics.empty() && flags_.trace.empty()) return Status::ok();
    if (!flags_.trace.empty()) SHOAL_TRY(engine.plugin().trace(kEventsPerWork));
    engine.watch([this, &engine](const Engine::Work& work) { work_done(engine, work); });
    return Status::ok();
}

void Exports::work_done(Engine& engine, const Engine::Work& work) {
    if (!flags_.trace.empty()) {
        events_.clear();
        engine.plugin().read_trace(events_, dropped_);
        trace_.add(work, events_);
    }
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
    const Status flushed = flush(engine);
    if (!flags_.trace.empty()) {
        SHOAL_TRY(engine.plugin().trace(0));
        if (dropped_ > 0) {
            fmt::print(stderr, "shoal: --trace {}: {} events found no room\n", flags_.trace,
                       dropped_);
        }
    }
    const Status closed = trace_.close();
    return flushed.is_ok() ? closed : flushed;
}

}  // namespace shoal::tool
