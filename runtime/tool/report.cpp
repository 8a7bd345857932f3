#include "runtime/tool/report.hpp"

#include <cstdio>
#include <fstream>

#include <fmt/format.h>
#include <llama.h>

#include "runtime/tool/exit.hpp"

namespace shoal {
extern const char kVersion[];
}

namespace shoal::tool {

nlohmann::ordered_json report_header(const std::string& command, const Prepared& prepared) {
    const ModelFile& model = prepared.engine.model;
    nlohmann::ordered_json json;
    json["command"] = command;
    json["shoal"] = std::string(kVersion);
    json["llama_cpp"] = llama_version();
    json["model"] = {{"path", model.path},
                     {"architecture", model.architecture},
                     {"name", model.name},
                     {"layers", model.layer_count},
                     {"q_heads", model.shape.q_head_count},
                     {"kv_heads", model.shape.layers.front().kv_head_count},
                     {"head_dim", model.shape.layers.front().k_head_dim},
                     {"context_trained", model.context_trained},
                     {"cache_type_k", dtype_name(model.shape.rows.k)},
                     {"cache_type_v", dtype_name(model.shape.rows.v)}};
    json["threads"] = prepared.engine.threads;
    for (const ConfigSetting& setting : prepared.config.settings) {
        json["config"][setting.key] = setting.value;
    }
    return json;
}

std::string changed_settings(const ResolvedConfig& config) {
    std::string text;
    for (const ConfigSetting& setting : config.settings) {
        if (setting.origin == ConfigOrigin::default_value) continue;
        text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", setting.key, setting.value);
    }
    return text;
}

namespace {

std::string json_text(const nlohmann::ordered_json& json) {
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

void print_json(const nlohmann::ordered_json& json) { fmt::print("{}", json_text(json)); }

Status print_result(const CommonFlags& flags, const nlohmann::ordered_json& json,
                    const std::string& text) {
    fmt::print("{}", flags.json ? json_text(json) : text);
    std::fflush(stdout);  // whether that went well is asked once, at the end of main
    if (flags.report.empty()) return Status::ok();
    std::ofstream file(flags.report);
    file << json_text(json) << std::flush;
    if (file) return Status::ok();
    return input_error(fmt::format("--report {}: cannot be written", flags.report));
}

}  // namespace shoal::tool
