#include "shoal/config.hpp"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>

#include "runtime/config_keys.hpp"
#include "runtime/config_text.hpp"

namespace shoal {
namespace {

Status invalid(const std::string& where, const std::string& what) {
    return Status::error(StatusCode::invalid_argument,
                         where.empty() ? what : fmt::format("{}: {}", where, what));
}

Status apply(const std::string& name, const ConfigValue& value, const std::string& where,
             Config& config) {
    const ConfigKey* key = config_key_find(name);
    if (key == nullptr) {
        return invalid(where, fmt::format("{}: {}", name, config_unknown_key_text(name)));
    }
    const Result<ConfigValue> read = config_key_read(*key, value);
    if (!read) return invalid(where, read.status().message());
    key->set(config, *read);
    return Status::ok();
}

// "budget." is an empty section: nothing to set, but the name must be one.
Status check_section(const std::string& name, const std::string& where) {
    const std::string section = name.substr(0, name.size() - 1);
    if (!config_section_doc(section).empty()) return Status::ok();
    return invalid(where, fmt::format("{}: {}", section, config_unknown_key_text(section)));
}

// The flag gives text; for the key kinds that are text it is taken as it is.
ConfigValue value_from_word(const ConfigKey* key, std::string_view word) {
    const bool quoted = !word.empty() && (word.front() == '"' || word.front() == '\'');
    const bool textual = key != nullptr && (key->kind == ConfigKeyKind::text ||
                                            key->kind == ConfigKeyKind::size);
    if (textual && !quoted) return std::string(word);
    if (key != nullptr && key->kind == ConfigKeyKind::list && !word.starts_with('[')) {
        return config_parse_value(fmt::format("[{}]", word));
    }
    return config_parse_value(word);
}

std::string default_where(ConfigOrigin origin, std::string_view key) {
    if (origin == ConfigOrigin::flag) return fmt::format("--{}", key);
    if (origin != ConfigOrigin::environment) return "";
    std::string name = "SHOAL_";
    for (const char c : key) {
        name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    return name;
}

}  // namespace

Status config_merge_text(std::string_view text, const std::string& source, Config& config) {
    const Result<std::vector<ConfigEntry>> entries = config_parse_text(text, source);
    if (!entries) return entries.status();
    Config merged = config;
    for (const ConfigEntry& entry : *entries) {
        const std::string where = entry.where(source);
        SHOAL_TRY(entry.key.ends_with('.') ? check_section(entry.key, where)
                                           : apply(entry.key, entry.value, where, merged));
    }
    const Status checked = config_check(merged);
    if (!checked.is_ok()) return invalid(source, checked.message());
    config = std::move(merged);
    return Status::ok();
}

Status config_merge_file(const std::string& path, Config& config) {
    const Result<std::string> text = config_read_file(path);
    if (!text) return text.status();
    return config_merge_text(*text, path, config);
}

Status config_set(std::string_view key, std::string_view value, ConfigOrigin origin,
                  const std::string& where, Config& config) {
    const std::string place = where.empty() ? default_where(origin, key) : where;
    const std::string name(key);
    return apply(name, value_from_word(config_key_find(key), value), place, config);
}

RowFormat stored_rows(const Config& config, const RowFormat& rows) {
    return config.host.rows == HostRows::q8 ? RowFormat{DType::q8, DType::q8} : rows;
}

Status config_check(const Config& config) {
    for (const ConfigKey& key : config_keys()) {
        const ConfigValue value = key.get(config);
        // A choice holds its index, a size its bytes: always in range once stored.
        if (key.kind == ConfigKeyKind::choice || key.kind == ConfigKeyKind::size) continue;
        const Result<ConfigValue> read = config_key_read(key, value);
        if (!read) return read.status();
    }
    const ConfigKey& page = *config_key_find("selector.page");
    if (static_cast<size_t>(std::get<int64_t>(page.get(config))) < page.choices.size()) {
        return Status::ok();
    }
    return invalid("", fmt::format("selector.page = {}: must be {}", config.selector.page,
                                   config_key_allowed(page)));
}

std::vector<ConfigSetting> config_settings(const Config& config) {
    std::vector<ConfigSetting> settings;
    for (const ConfigKey& key : config_keys()) {
        settings.push_back({.key = std::string(key.name),
                            .value = config_key_text(key, config),
                            .origin = ConfigOrigin::default_value,
                            .where = ""});
    }
    return settings;
}

std::string config_to_toml(const Config& config) {
    std::string text;
    std::string_view section;
    for (const ConfigKey& key : config_keys()) {
        if (key.section() != section) {
            if (!section.empty()) text += "\n";
            section = key.section();
            text += fmt::format("[{}]  # {}\n", section, config_section_doc(section));
        }
        text += fmt::format("{} = {}  # {}\n", key.leaf(), config_key_text(key, config), key.doc);
    }
    return text;
}

}  // namespace shoal
