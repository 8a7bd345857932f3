// What every command's JSON begins with, and the settings that differ from the defaults.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "runtime/tool/options.hpp"

namespace shoal::tool {

// Versions, model, threads and configuration.
nlohmann::ordered_json report_header(const std::string& command, const Prepared& prepared);
// "budget.rows = 512, selector.kind = "dense"", or "".
std::string changed_settings(const ResolvedConfig& config);
// Bytes that are no UTF-8 (a text may end inside a character) become U+FFFD: JSON has no others.
void print_json(const nlohmann::ordered_json& json);
// The result of a command, as the flags want it: JSON on stdout or the text, and the report file.
Status print_result(const CommonFlags& flags, const nlohmann::ordered_json& json,
                    const std::string& text);

}  // namespace shoal::tool
