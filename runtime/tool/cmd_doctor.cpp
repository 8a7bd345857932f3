// shoal doctor: what this machine allows, and what that means for Shoal.
#include <algorithm>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/commands.hpp"
#include "runtime/tool/doctor_checks.hpp"
#include "runtime/tool/engine_log.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/report.hpp"

namespace shoal::tool {
namespace {

struct DoctorFlags {
    ConfigFlags config;
    bool json = false;
};

Finding check_configuration(const Result<ResolvedConfig>& resolved) {
    if (!resolved) {
        return {"configuration", Verdict::failure, resolved.status().message(),
                "every command refuses it"};
    }
    const auto changed = std::count_if(
        resolved->settings.begin(), resolved->settings.end(), [](const ConfigSetting& setting) {
            return setting.origin != ConfigOrigin::default_value;
        });
    return {"configuration", Verdict::ok,
            fmt::format("{} of {} keys changed", changed, resolved->settings.size()),
            "shoal config shows where each value comes from"};
}

std::vector<Finding> examine(const ConfigFlags& flags) {
    const Result<ResolvedConfig> resolved = resolve_config(flags);
    const Config config = resolved ? resolved->config : Config{};
    std::vector<Finding> findings = check_processor(config);
    for (Finding& finding : check_memory_limits(config)) findings.push_back(std::move(finding));
    findings.push_back(check_disk_io());
    findings.push_back(check_gpu());
    findings.push_back(check_llama_cpp());
    findings.push_back(check_plugin());
    findings.push_back(check_configuration(resolved));
    return findings;
}

Verdict worst(const std::vector<Finding>& findings) {
    Verdict verdict = Verdict::ok;
    for (const Finding& finding : findings) verdict = std::max(verdict, finding.verdict);
    return verdict;
}

std::string findings_text(const std::vector<Finding>& findings) {
    std::string text;
    for (const Finding& finding : findings) {
        text += fmt::format("{:<8} {:<14} {}: {}\n", verdict_name(finding.verdict), finding.name,
                            finding.found, finding.means);
    }
    switch (worst(findings)) {
        case Verdict::ok: return text + "Shoal can run here\n";
        case Verdict::warning: return text + "Shoal can run here, less well than it could\n";
        case Verdict::failure: return text + "Shoal cannot run here\n";
    }
    return text;
}

nlohmann::ordered_json findings_json(const std::vector<Finding>& findings) {
    nlohmann::ordered_json json;
    json["command"] = "doctor";
    json["can_run"] = worst(findings) != Verdict::failure;
    for (const Finding& finding : findings) {
        json["findings"].push_back({{"name", finding.name},
                                    {"verdict", verdict_name(finding.verdict)},
                                    {"found", finding.found},
                                    {"means", finding.means}});
    }
    return json;
}

int doctor_command(const DoctorFlags& flags) {
    EngineLog::instance().install(false);
    const std::vector<Finding> findings = examine(flags.config);
    if (flags.json) print_json(findings_json(findings));
    else fmt::print("{}", findings_text(findings));
    return worst(findings) == Verdict::failure ? kExitFailure : kExitOk;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
    auto flags = std::make_shared<DoctorFlags>();
    CLI::App* command =
        app.add_subcommand("doctor", "what this machine allows, and what it means for Shoal");
    command->add_flag("--json", flags->json, "print one JSON object");
    add_config_flags(*command, flags->config);
    command->callback(
        [flags, &action] { action.run = [flags] { return doctor_command(*flags); }; });
}

}  // namespace shoal::tool
