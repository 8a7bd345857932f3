// Files that a run writes for other programs: OpenMetrics for collectors.
#pragma once

#include <cstdint>
#include <string>

#include <CLI/App.hpp>

#include "runtime/tool/engine.hpp"
#include "shoal/stats.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

struct ExportFlags {
    std::string metrics;  // "": none
};
void add_metrics_flag(CLI::App& command, ExportFlags& flags);

// An OpenMetrics file, replaced as a whole: a reader never sees half of one.
class MetricsFile {
public:
    explicit MetricsFile(std::string path) : path_(std::move(path)) {}
    Status write(const Stats& stats);
    bool due() const;  // a second has passed since the last write

private:
    std::string path_;
    uint64_t written_ns_ = 0;
};

// What the flags want, fed by an engine while it works.
class Exports {
public:
    explicit Exports(const ExportFlags& flags) : metrics_(flags.metrics), flags_(flags) {}
    // Makes the file, so that a bad path is known before the work is done.
    Status open();
    // Watches `engine` from here on, and must outlive it or be finished before.
    Status attach(Engine& engine);
    // Counters as they are now: before a context goes, or at the end.
    Status flush(Engine& engine);
    Status finish(Engine& engine);

private:
    void work_done(Engine& engine);

    MetricsFile metrics_;
    ExportFlags flags_;
    Status status_ = Status::ok();  // the first write that failed
};

}  // namespace shoal::tool
