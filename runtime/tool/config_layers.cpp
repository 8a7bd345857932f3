#include "runtime/tool/config_layers.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include "runtime/config_keys.hpp"
#include "runtime/config_text.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/table.hpp"

namespace shoal::tool {
namespace {

constexpr std::string_view kPrefix = "SHOAL_";
constexpr const char* kFileVariable = "SHOAL_CONFIG";

const char* origin_name(ConfigOrigin origin) {
    switch (origin) {
        case ConfigOrigin::default_value: return "default";
        case ConfigOrigin::file: return "file";
        case ConfigOrigin::environment: return "environment";
        case ConfigOrigin::flag: return "flag";
    }
    return "";
}

class Layers {
public:
    Status add_file(const std::string& path) {
        const Result<std::string> text = config_read_file(path);
        if (!text) return text.status();
        SHOAL_TRY(config_merge_text(*text, path, resolved_.config));
        const Result<std::vector<ConfigEntry>> entries = config_parse_text(*text, path);
        if (!entries) return entries.status();
        for (const ConfigEntry& entry : *entries) {
            note(entry.key, ConfigOrigin::file, entry.where(path));
        }
        return Status::ok();
    }

    Status add(const std::string& key, const std::string& value, ConfigOrigin origin,
               const std::string& where) {
        SHOAL_TRY(config_set(key, value, origin, where, resolved_.config));
        note(key, origin, where);
        return Status::ok();
    }

    Result<ResolvedConfig> finish() {
        const Status checked = config_check(resolved_.config);
        if (!checked.is_ok()) return checked;
        resolved_.settings = config_settings(resolved_.config);
        for (ConfigSetting& setting : resolved_.settings) {
            const auto found = origins_.find(setting.key);
            if (found == origins_.end()) continue;
            setting.origin = found->second.first;
            setting.where = found->second.second;
        }
        return std::move(resolved_);
    }

private:
    void note(const std::string& key, ConfigOrigin origin, const std::string& where) {
        origins_[key] = {origin, where};
    }

    ResolvedConfig resolved_;
    std::map<std::string, std::pair<ConfigOrigin, std::string>> origins_;
};

// "SHOAL_BUDGET_ROWS" -> "budget.rows"; the first '_' ends the section.
std::string key_of_variable(std::string_view name) {
    std::string key;
    for (const char c : name.substr(kPrefix.size())) {
        key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    const size_t end = key.find('_');
    if (end != std::string::npos) key[end] = '.';
    return key;
}

Status add_environment(Layers& layers) {
    for (char** variable = environ; *variable != nullptr; ++variable) {
        const std::string_view text = *variable;
        const size_t equal = text.find('=');
        const std::string_view name = text.substr(0, equal);
        if (!name.starts_with(kPrefix) || name == kFileVariable) continue;
        if (equal == std::string_view::npos) continue;
        SHOAL_TRY(layers.add(key_of_variable(name), std::string(text.substr(equal + 1)),
                             ConfigOrigin::environment, std::string(name)));
    }
    return Status::ok();
}

}  // namespace

bool ResolvedConfig::is_default(const std::string& key) const {
    return std::none_of(settings.begin(), settings.end(), [&](const ConfigSetting& setting) {
        return setting.key == key && setting.origin != ConfigOrigin::default_value;
    });
}

std::string environment_name(const std::string& key) {
    std::string name(kPrefix);
    for (const char c : key) {
        name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    return name;
}

Result<ResolvedConfig> resolve_config(const ConfigFlags& flags) {
    Layers layers;
    const char* named = std::getenv(kFileVariable);
    const std::string file = !flags.file.empty() ? flags.file : named != nullptr ? named : "";
    if (!file.empty()) {
        const Status added = layers.add_file(file);
        if (!added.is_ok()) {
            const char* from = flags.file.empty() ? kFileVariable : "--config";
            return Status::error(added.code(), fmt::format("{}: {}", from, added.message()));
        }
    }
    SHOAL_TRY(add_environment(layers));
    for (const std::string& set : flags.sets) {
        const size_t equal = set.find('=');
        if (equal == std::string::npos) {
            return input_error(fmt::format("--set {}: must be key=value, such as budget.rows=512",
                                           set));
        }
        SHOAL_TRY(layers.add(set.substr(0, equal), set.substr(equal + 1), ConfigOrigin::flag,
                             "--set"));
    }
    for (const auto& [key, value] : flags.keys) {
        SHOAL_TRY(layers.add(key, value, ConfigOrigin::flag, "--" + key));
    }
    return layers.finish();
}

std::string settings_text(const ResolvedConfig& resolved) {
    size_t width = 0;
    for (const ConfigSetting& setting : resolved.settings) {
        width = std::max(width, setting.key.size() + setting.value.size() + 3);
    }
    std::string text;
    for (const ConfigSetting& setting : resolved.settings) {
        const std::string value = fmt::format("{} = {}", setting.key, setting.value);
        text += fmt::format("{:<{}}  # {}{}{}\n", value, width, origin_name(setting.origin),
                            setting.where.empty() ? "" : " ", setting.where);
    }
    return text;
}

}  // namespace shoal::tool
