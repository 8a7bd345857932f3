// The configuration of a command: flag > environment > file > default, with every origin.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "shoal/config.hpp"
#include "shoal/status.hpp"

namespace shoal::tool {

// What the command line gave, in its order.
struct ConfigFlags {
    std::string file;               // --config, or "" for SHOAL_CONFIG or none
    std::vector<std::string> sets;  // --set key=value
    std::map<std::string, std::string> keys;  // --section.key value
};

struct ResolvedConfig {
    Config config;
    std::vector<ConfigSetting> settings;  // every key, with origin and place
    bool is_default(const std::string& key) const;
};

// Reads file and environment. An unknown key, file entry or SHOAL_ variable is an error.
Result<ResolvedConfig> resolve_config(const ConfigFlags& flags);

// "budget.rows" -> "SHOAL_BUDGET_ROWS".
std::string environment_name(const std::string& key);

// Lines "budget.rows = 512   flag --budget.rows", for `shoal config`.
std::string settings_text(const ResolvedConfig& resolved);

}  // namespace shoal::tool
