// Files that a command writes: none of them may be one that it reads.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "shoal/status.hpp"

namespace shoal::tool {

struct OutputFile {
    const char* flag;            // "--trace"
    std::string path;            // "": not asked for
    std::string_view beginning;  // of every file of this kind
};
inline constexpr std::string_view kReportBeginning = "{\n  \"command\": \"";
inline constexpr std::string_view kMetricsBeginning = "# TYPE shoal_build info\n";
inline constexpr std::string_view kTraceBeginning =
    "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
inline constexpr std::string_view kSavedBeginning = "SHOALSEQ";
inline constexpr std::string_view kProfileBeginning = "{\n\"format\": \"shoal-profile\",";

// Refuses what cannot be written, a file named twice, and one that is there, is not empty and does
// not begin as a file of its kind does: a model or a text by mistake. Writes nothing.
Status check_outputs(std::span<const OutputFile> files);

}  // namespace shoal::tool
