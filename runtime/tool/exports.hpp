// Files that a run writes for other programs: OpenMetrics for collectors, Chrome's trace events
// for a picture of single steps (chrome://tracing, ui.perfetto.dev).
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <CLI/App.hpp>

#include "runtime/tool/engine.hpp"
#include "shoal/stats.hpp"
#include "shoal/status.hpp"
#include "shoal/trace.hpp"

namespace shoal::tool {

struct ExportFlags {
    std::string metrics;  // "": none
    std::string trace;
};
void add_metrics_flag(CLI::App& command, ExportFlags& flags);
void add_trace_flag(CLI::App& command, ExportFlags& flags);

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

// A trace, written as it goes: bounded memory, any length.
class TraceFile {
public:
    explicit TraceFile(std::string path) : path_(std::move(path)) {}
    Status open();
    // Events of one llama_decode and the decode itself, which holds them.
    void add(const Engine::Work& work, std::vector<TraceEvent> events);
    // Says what could not be written since open().
    Status close();

private:
    struct Closer {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    void write(const std::string& text);
    void event(char phase, const std::string& name, uint64_t at_ns, const std::string& arguments);

    std::string path_;
    std::unique_ptr<std::FILE, Closer> file_;
    uint64_t start_ns_ = 0;
    bool first_ = true;
    int error_ = 0;  // errno of the first write that failed: nothing is written after it
};

// Both, as the flags want them, fed by an engine while it works.
class Exports {
public:
    explicit Exports(const ExportFlags& flags) : metrics_(flags.metrics), trace_(flags.trace),
                                                 flags_(flags) {}
    // Makes the files, so that a bad path is known before the work is done. `report`: the path of
    // --report, which must be none of theirs.
    Status open(const std::string& report);
    // Watches `engine` from here on, and must outlive it or be finished before. For a trace the
    // engine has its context.
    Status attach(Engine& engine);
    // Counters as they are now: before a context goes, or at the end.
    Status flush(Engine& engine);
    Status finish(Engine& engine);

private:
    void work_done(Engine& engine, const Engine::Work& work);

    MetricsFile metrics_;
    TraceFile trace_;
    ExportFlags flags_;
    std::vector<TraceEvent> events_;
    uint64_t dropped_ = 0;
    Status status_ = Status::ok();  // the first write that failed
};

}  // namespace shoal::tool
