// The table of configuration keys. Everything about a key is one entry of it: parsing, checking,
// printing, the schema and the tool's help texts are made from the entry.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "shoal/config.hpp"
#include "shoal/status.hpp"

namespace shoal {

// A value that no key accepts (a float, a date, a table, a mixed list), as it was written.
struct ConfigUnfit {
    std::string shown;
};
// A value as TOML and JSON know it, before a key gives it meaning.
using ConfigValue =
    std::variant<bool, int64_t, std::string, std::vector<int64_t>, ConfigUnfit>;

// TOML text of a value: 1024, true, "labels", [0, 1].
std::string config_value_text(const ConfigValue& value);

enum class ConfigKeyKind : uint8_t {
    choice,   // one of `choices`; those that are numbers may be written without quotes
    integer,  // `low` .. `high`
    boolean,
    size,     // bytes: a string with a unit, or 0
    text,
    list,     // whole numbers, each `low` .. `high`
};

struct ConfigKey {
    std::string_view name;                     // "budget.rows"
    ConfigKeyKind kind;
    std::span<const std::string_view> choices; // in the order of the enum's values
    int64_t low;
    int64_t high;
    std::string_view hint;                     // "or ...": what else helps when out of range
    std::string_view doc;                      // one sentence without a full stop
    ConfigValue (*get)(const Config&);
    void (*set)(Config&, const ConfigValue&);  // takes what config_key_read() returned

    std::string_view section() const { return name.substr(0, name.find('.')); }
    std::string_view leaf() const { return name.substr(name.find('.') + 1); }
};

// All keys, section by section, in the order in which they are printed.
std::span<const ConfigKey> config_keys();
const ConfigKey* config_key_find(std::string_view name);
// One sentence on each section, for printed files and help texts.
std::string_view config_section_doc(std::string_view section);

// Checks `value` against the key and brings it to the form that `set` takes (a choice becomes its
// index, a size its bytes). The error text is "budget.rows = 0: must be 1 or more".
Result<ConfigValue> config_key_read(const ConfigKey& key, const ConfigValue& value);
// The value of a key as TOML text: choices by name, sizes with a unit.
std::string config_key_text(const ConfigKey& key, const Config& config);
// "whole number, 1 or more", for help texts and type errors.
std::string config_key_allowed(const ConfigKey& key);

// "unknown key (did you mean budget.rows?)", or the keys of the section when none is near.
std::string config_unknown_key_text(std::string_view name);

}  // namespace shoal
