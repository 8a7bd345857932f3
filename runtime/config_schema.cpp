#include <nlohmann/json.hpp>

#include "runtime/config_keys.hpp"
#include "shoal/config.hpp"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

Json choice_values(const ConfigKey& key) {
    Json values = Json::array();
    for (const std::string_view name : key.choices) {
        if (name.find_first_not_of("0123456789") == std::string_view::npos) {
            values.push_back(std::stoi(std::string(name)));
        } else {
            values.push_back(std::string(name));
        }
    }
    return values;
}

Json key_schema(const ConfigKey& key, const Config& defaults) {
    Json schema;
    schema["description"] = std::string(key.doc);
    const ConfigValue value = key.get(defaults);
    switch (key.kind) {
        case ConfigKeyKind::choice:
            schema["enum"] = choice_values(key);
            schema["default"] = schema["enum"][static_cast<size_t>(std::get<int64_t>(value))];
            return schema;
        case ConfigKeyKind::integer:
            schema["type"] = "integer";
            schema["minimum"] = key.low;
            schema["maximum"] = key.high;
            schema["default"] = std::get<int64_t>(value);
            return schema;
        case ConfigKeyKind::boolean:
            schema["type"] = "boolean";
            schema["default"] = std::get<bool>(value);
            return schema;
        case ConfigKeyKind::size:
            schema["anyOf"] = {{{"const", 0}},
                               {{"type", "string"},
                                {"pattern", "^[0-9]+(\\.[0-9]+)? ?([KMGT]i?B|B|%)$"}}};
            schema["default"] = std::get<int64_t>(value);
            return schema;
        case ConfigKeyKind::text:
            schema["type"] = "string";
            schema["default"] = std::get<std::string>(value);
            return schema;
        case ConfigKeyKind::list:
            schema["type"] = "array";
            schema["items"] = {{"type", "integer"}, {"minimum", key.low}, {"maximum", key.high}};
            schema["uniqueItems"] = true;
            schema["default"] = std::get<std::vector<int64_t>>(value);
            return schema;
    }
    return schema;
}

}  // namespace

std::string config_schema() {
    const Config defaults;
    Json schema;
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
    schema["title"] = "Shoal configuration";
    schema["type"] = "object";
    schema["additionalProperties"] = false;
    for (const ConfigKey& key : config_keys()) {
        Json& section = schema["properties"][std::string(key.section())];
        if (section.is_null()) {
            section["description"] = std::string(config_section_doc(key.section()));
            section["type"] = "object";
            section["additionalProperties"] = false;
        }
        section["properties"][std::string(key.leaf())] = key_schema(key, defaults);
    }
    return schema.dump(2);
}

}  // namespace shoal
