// Numbers are written as the shortest decimal that reads back as the same float, so that the
// labels of a session that learnt a profile and of one that loads it are the same. A model of
// 30 layers x 3 KV heads x 64 takes about 200 KB.
#include "calib/profile_text.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

namespace shoal::calib {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormatName = "shoal-profile";
// Deeper text is no profile; without a limit a file of brackets costs 50 times its size.
constexpr int kDepthMax = 8;

std::string checksum_tail(std::string_view content) {
    return fmt::format("\"checksum\": \"xxh3:{:016x}\"\n}}",
                       XXH3_64bits(content.data(), content.size()));
}

void append_numbers(std::string& text, const char* key, const std::vector<float>& values) {
    fmt::format_to(std::back_inserter(text), "\"{}\": [{}]", key, fmt::join(values, ","));
}

// A value as it appears in messages.
std::string shown(const Json& value) {
    if (value.is_array()) return fmt::format("{} values", value.size());
    if (value.is_object()) return fmt::format("an object of {} fields", value.size());
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
}

// Reads fields of the parsed text; the first thing that is wrong ends it.
class Reader {
public:
    explicit Reader(const std::string& name) : name_(name) {}

    Status error(StatusCode code, const std::string& field, const std::string& value,
                 const std::string& allowed) const {
        return Status::error(code, fmt::format("{}: {} = {}: {}", name_, field, value, allowed));
    }

    Status only_fields(const Json& object, const std::string& path,
                       std::initializer_list<const char*> known) const {
        for (const auto& item : object.items()) {
            const auto is_key = [&](const char* key) { return item.key() == key; };
            if (std::ranges::any_of(known, is_key)) continue;
            return error(StatusCode::corrupt, path + item.key(), shown(item.value()),
                         fmt::format("no such field; allowed: {}", fmt::join(known, ", ")));
        }
        return Status::ok();
    }

    // The field of an object, which must be of the type that `is` tells.
    Status find(const Json& object, const std::string& path, const char* key,
                bool (Json::*is)() const, const char* allowed, const Json** out) const {
        const auto found = object.find(key);
        const std::string value = found == object.end() ? "absent" : shown(*found);
        if (found == object.end() || !((*found).*is)()) {
            return error(StatusCode::corrupt, path + key, value, allowed);
        }
        *out = &*found;
        return Status::ok();
    }

    Status read_text(const Json& object, const std::string& path, const char* key,
                     std::string& out) const {
        const Json* value = nullptr;
        SHOAL_TRY(find(object, path, key, kIsText, "must be a string", &value));
        out = value->get<std::string>();
        return Status::ok();
    }

    template <typename T>
    Status read_count(const Json& object, const std::string& path, const char* key, T& out) const {
        const Json* value = nullptr;
        const char* allowed = sizeof(T) == 4 ? "must be a whole number, 0 to 4294967295"
                                             : "must be a whole number, 0 or more";
        SHOAL_TRY(find(object, path, key, kIsCount, allowed, &value));
        const uint64_t count = value->get<uint64_t>();
        if (count > std::numeric_limits<T>::max()) {
            return error(StatusCode::corrupt, path + key, shown(*value), allowed);
        }
        out = static_cast<T>(count);
        return Status::ok();
    }

    Status read_numbers(const Json& object, const std::string& path, const char* key,
                        std::vector<float>& out) const {
        const Json* values = nullptr;
        SHOAL_TRY(find(object, path, key, kIsArray, "must be an array of numbers", &values));
        out.reserve(values->size());
        for (const Json& value : *values) {
            if (!value.is_number()) {
                return error(StatusCode::corrupt, fmt::format("{}{}[{}]", path, key, out.size()),
                             shown(value), "must be a finite number");
            }
            out.push_back(static_cast<float>(value.get<double>()));
        }
        return Status::ok();
    }

    Status read_object_array(const Json& object, const std::string& path, const char* key,
                             const Json** out) const {
        SHOAL_TRY(find(object, path, key, kIsArray, "must be an array of objects", out));
        for (size_t i = 0; i < (*out)->size(); ++i) {
            const Json& item = (**out)[i];
            if (item.is_object()) continue;
            return error(StatusCode::corrupt, fmt::format("{}{}[{}]", path, key, i), shown(item),
                         "must be an object");
        }
        return Status::ok();
    }

private:
    static constexpr bool (Json::*kIsText)() const = &Json::is_string;
    static constexpr bool (Json::*kIsCount)() const = &Json::is_number_unsigned;
    static constexpr bool (Json::*kIsArray)() const = &Json::is_array;
    const std::string& name_;
};

Status read_layer(const Reader& reader, const Json& json, const std::string& path,
                  LayerProfile& layer) {
    SHOAL_TRY(reader.only_fields(json, path, {"k_head_dim", "heads"}));
    SHOAL_TRY(reader.read_count(json, path, "k_head_dim", layer.k_head_dim));
    const Json* heads = nullptr;
    SHOAL_TRY(reader.read_object_array(json, path, "heads", &heads));
    for (const Json& head : *heads) {
        const std::string head_path = fmt::format("{}heads[{}].", path, layer.heads.size());
        ChannelMoments& moments = layer.heads.emplace_back();
        SHOAL_TRY(
            reader.only_fields(head, head_path, {"key_mean", "key_variance", "query_square"}));
        SHOAL_TRY(reader.read_numbers(head, head_path, "key_mean", moments.key_mean));
        SHOAL_TRY(reader.read_numbers(head, head_path, "key_variance", moments.key_variance));
        SHOAL_TRY(reader.read_numbers(head, head_path, "query_square", moments.query_square));
    }
    return Status::ok();
}

Status read_dense_layers(const Reader& reader, const Json& root, Profile& profile) {
    if (!root.contains("dense_layers")) return Status::ok();
    const Json& values = root["dense_layers"];
    const char* allowed = "must be an array of layer indices";
    if (!values.is_array()) {
        return reader.error(StatusCode::corrupt, "dense_layers", shown(values), allowed);
    }
    profile.dense_layers.emplace();
    for (const Json& value : values) {
        if (!value.is_number_unsigned() || value.get<uint64_t>() > UINT32_MAX) {
            return reader.error(StatusCode::corrupt,
                                fmt::format("dense_layers[{}]", profile.dense_layers->size()),
                                shown(value), "must be the index of a layer");
        }
        profile.dense_layers->push_back(value.get<uint32_t>());
    }
    return Status::ok();
}

Status read_fields(const Reader& reader, const Json& root, Profile& profile) {
    SHOAL_TRY(reader.only_fields(root, "", {"format", "version", "model", "source", "token_count",
                                            "q_head_count", "dense_layers", "layers", "checksum"}));
    SHOAL_TRY(reader.read_text(root, "", "model", profile.model_fingerprint));
    SHOAL_TRY(reader.read_text(root, "", "source", profile.source));
    SHOAL_TRY(reader.read_count(root, "", "token_count", profile.token_count));
    SHOAL_TRY(reader.read_count(root, "", "q_head_count", profile.q_head_count));
    SHOAL_TRY(read_dense_layers(reader, root, profile));
    const Json* layers = nullptr;
    SHOAL_TRY(reader.read_object_array(root, "", "layers", &layers));
    for (const Json& layer : *layers) {
        const std::string path = fmt::format("layers[{}].", profile.layers.size());
        SHOAL_TRY(read_layer(reader, layer, path, profile.layers.emplace_back()));
    }
    return Status::ok();
}

// Is this a profile of this version, and is its content what was written?
Status check_envelope(const Reader& reader, const Json& root, std::string_view text) {
    std::string format;
    SHOAL_TRY(reader.read_text(root, "", "format", format));
    if (format != kFormatName) {
        return reader.error(StatusCode::corrupt, "format", shown(root["format"]),
                            fmt::format("must be \"{}\"", kFormatName));
    }
    uint32_t version = 0;
    SHOAL_TRY(reader.read_count(root, "", "version", version));
    if (version != Profile::kVersion) {
        return reader.error(StatusCode::unsupported, "version", fmt::to_string(version),
                            fmt::format("must be {}: make the profile again with this Shoal",
                                        Profile::kVersion));
    }
    std::string checksum;
    SHOAL_TRY(reader.read_text(root, "", "checksum", checksum));
    text = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
    // A key cannot occur inside a string unescaped: the last one found is the field.
    const size_t begin = text.rfind("\"checksum\"");
    const std::string expected = checksum_tail(text.substr(0, begin));
    if (begin == std::string_view::npos || text.substr(begin) != expected) {
        return reader.error(StatusCode::corrupt, "checksum", shown(root["checksum"]),
                            fmt::format("must end the file as \"{}\" for this content: the file "
                                        "was damaged or edited",
                                        expected.substr(13, 21)));
    }
    return Status::ok();
}

Status syntax_error(const Json::parse_error& parse_error, const std::string& text,
                    const std::string& name) {
    const size_t at = std::min<size_t>(parse_error.byte, text.size());
    const std::string_view before = std::string_view(text).substr(0, at);
    const auto line = std::ranges::count(before, '\n') + 1;
    const size_t line_begin = before.rfind('\n') + 1;  // npos + 1 = 0
    const bool at_end = parse_error.byte > text.size();
    return Status::error(
        StatusCode::corrupt,
        fmt::format("{}:{}:{}: not valid JSON: {}", name, line, at - line_begin + (at_end ? 1 : 0),
                    at_end ? "the file ends too early (it was cut)"
                           : "the file is damaged or not a profile"));
}

}  // namespace

Result<std::string> profile_to_text(const Profile& profile, const std::string& name) {
    std::string text = fmt::format("{{\n\"format\": \"{}\",\n\"version\": {},\n", kFormatName,
                                   Profile::kVersion);
    const auto append_text = [&](const char* key, const std::string& value) {
        try {
            text += fmt::format("\"{}\": {},\n", key, Json(value).dump());
            return Status::ok();
        } catch (const Json::exception&) {
            return Status::error(StatusCode::invalid_argument,
                                 fmt::format("{}: {} = (bytes): must be UTF-8", name, key));
        }
    };
    SHOAL_TRY(append_text("model", profile.model_fingerprint));
    SHOAL_TRY(append_text("source", profile.source));
    text += fmt::format("\"token_count\": {},\n\"q_head_count\": {},\n", profile.token_count,
                        profile.q_head_count);
    if (profile.dense_layers) {
        text += fmt::format("\"dense_layers\": [{}],\n", fmt::join(*profile.dense_layers, ","));
    }
    text += "\"layers\": [";
    for (size_t l = 0; l < profile.layers.size(); ++l) {
        const LayerProfile& layer = profile.layers[l];
        text += fmt::format("{}\n{{\"k_head_dim\": {}, \"heads\": [", l == 0 ? "" : ",",
                            layer.k_head_dim);
        for (size_t h = 0; h < layer.heads.size(); ++h) {
            text += h == 0 ? "\n{" : ",\n{";
            append_numbers(text, "key_mean", layer.heads[h].key_mean);
            text += ",\n ";
            append_numbers(text, "key_variance", layer.heads[h].key_variance);
            text += ",\n ";
            append_numbers(text, "query_square", layer.heads[h].query_square);
            text += "}";
        }
        text += "]}";
    }
    text += "],\n";
    text += checksum_tail(text) + "\n";
    return text;
}

Result<Profile> parse_profile(const std::string& text, const std::string& name) {
    Json root;
    try {
        const auto not_too_deep = [](int depth, Json::parse_event_t, Json&) {
            return depth <= kDepthMax;
        };
        root = Json::parse(text, not_too_deep);
    } catch (const Json::parse_error& error) {
        return syntax_error(error, text, name);
    } catch (const Json::exception& error) {
        const std::string what = error.what();
        return Status::error(StatusCode::corrupt,
                             fmt::format("{}: not valid JSON: {}", name,
                                         what.substr(what.find("] ") + 2).substr(0, 120)));
    }
    const Reader reader(name);
    if (!root.is_object()) {
        return Status::error(StatusCode::corrupt,
                             fmt::format("{}: {}: must be a JSON object", name, shown(root)));
    }
    SHOAL_TRY(check_envelope(reader, root, text));
    Profile profile;
    SHOAL_TRY(read_fields(reader, root, profile));
    SHOAL_TRY(check_fields(profile, name, StatusCode::corrupt));
    return profile;
}

}  // namespace shoal::calib
