// TOML or JSON text as a flat list of keys and values, with their places.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config_keys.hpp"
#include "shoal/status.hpp"

namespace shoal {

struct ConfigEntry {
    std::string key;  // "budget.rows"; a section alone ("budget") when the text gives it a value
    ConfigValue value;
    uint32_t line = 0;    // 1 .., of the key
    uint32_t column = 0;  // 1 .., in characters
    std::string where(const std::string& source) const;  // "shoal.toml:7:3"
};

// Reads JSON when the first character is '{', else TOML. Syntax errors and a key that is there
// twice are errors, "source:line:column: what is wrong". Names are not looked at.
Result<std::vector<ConfigEntry>> config_parse_text(std::string_view text,
                                                   const std::string& source);
// One value as TOML, or the text itself where that is no TOML value (a bare word).
ConfigValue config_parse_value(std::string_view text);

// Text of a file of at most 1 MiB.
Result<std::string> config_read_file(const std::string& path);

}  // namespace shoal
