// shoal plan: what a context would take, before anything is allocated.
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "offload/memory_limits.hpp"
#include "runtime/tool/commands.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/options.hpp"
#include "runtime/tool/report.hpp"
#include "runtime/tool/table.hpp"
#include "runtime/tool/terminal.hpp"

namespace shoal::tool {
namespace {

using offload::bytes_text;

std::string plan_text(const ModelFile& model, const RowFormat& stored, const MemoryPlan& plan,
                      uint32_t tokens) {
    const uint64_t rows_bytes = plan.disk_bytes != 0 ? plan.disk_bytes : plan.kv_bytes;
    Table table({"RAM", "bytes", ""});
    table.add({"model weights (mapped file)", bytes_text(model.file_bytes), ""});
    table.add({"K and V rows", bytes_text(plan.kv_bytes),
               fmt::format("{} B a token", grouped(model.kv_bytes_per_token(stored)))});
    table.add({"labels, page bounds", bytes_text(plan.label_bytes),
               fmt::format("{:.1f} % of the rows", 100.0 * static_cast<double>(plan.label_bytes) /
                                                       static_cast<double>(rows_bytes))});
    table.add({"index", bytes_text(plan.index_bytes), ""});
    table.add({"workspace", bytes_text(plan.workspace_bytes), ""});
    table.add({"total", bytes_text(plan.total_bytes + model.file_bytes),
               fmt::format("of {}", offload::read_memory_limits().available_text())});
    std::string text = fmt::format("{}: {} tokens ({} trained), {} and {}{}\n\n{}", model.name,
                                   grouped(tokens), grouped(model.context_trained),
                                   dtype_name(model.shape.rows.k), dtype_name(model.shape.rows.v),
                                   stored == model.shape.rows ? "" : ", kept as q8",
                                   table.text());
    if (plan.disk_bytes != 0) {
        text += fmt::format("On disk: {} of {}, every row; of RAM, {} would do\n",
                            bytes_text(plan.disk_bytes), bytes_text(plan.disk_available_bytes),
                            bytes_text(plan.least_bytes + model.file_bytes));
    }
    for (const std::string& note : plan.notes) text += note + "\n";
    return text + fmt::format("Largest context that fits: {} tokens\n",
                              grouped(context_that_fits(plan, model, tokens)));
}

nlohmann::ordered_json plan_json(const Prepared& prepared, const MemoryPlan& plan, uint32_t tokens,
                                 bool fits) {
    nlohmann::ordered_json json = report_header("plan", prepared);
    json["context_tokens"] = tokens;
    json["model_bytes"] = prepared.engine.model.file_bytes;
    json["kv_bytes"] = plan.kv_bytes;
    json["label_bytes"] = plan.label_bytes;
    json["index_bytes"] = plan.index_bytes;
    json["workspace_bytes"] = plan.workspace_bytes;
    json["total_bytes"] = plan.total_bytes;
    json["least_bytes"] = plan.least_bytes;
    json["disk_bytes"] = plan.disk_bytes;
    json["disk_available_bytes"] = plan.disk_available_bytes;
    json["machine_bytes"] = plan.machine_bytes;
    json["available_bytes"] = plan.available_bytes;
    json["bytes_per_token"] = plan.bytes_per_slot;
    json["context_tokens_fit"] = context_that_fits(plan, prepared.engine.model, tokens);
    json["fits"] = fits;
    json["notes"] = plan.notes;
    return json;
}

int plan_command(const CommonFlags& flags) {
    const Result<Prepared> prepared = prepare(flags);
    if (!prepared) return report_error(prepared.status());
    const ModelFile& model = prepared->engine.model;
    const uint32_t given = prepared->engine.context_tokens;
    const uint32_t tokens = given == 0 ? model.context_trained : given;
    const Result<MemoryPlan> plan = plan_memory(prepared->config.config, model, tokens,
                                                prepared->engine.micro_batch);
    if (!plan) return report_error(plan.status());
    const Status fits = check_memory(*plan, model, tokens);
    const RowFormat stored = stored_rows(prepared->config.config, model.shape.rows);
    SHOAL_TOOL_TRY(print_result(flags, plan_json(*prepared, *plan, tokens, fits.is_ok()),
                                plan_text(model, stored, *plan, tokens)));
    return fits.is_ok() ? kExitOk : report_error(fits);
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
    auto flags = std::make_shared<CommonFlags>();
    CLI::App* command =
        app.add_subcommand("plan", "how much memory a context takes; allocates nothing");
    add_model_flags(*command, flags->model);
    add_output_flags(*command, *flags);
    add_config_flags(*command, flags->config);
    command->callback([flags, &action] { action.run = [flags] { return plan_command(*flags); }; });
}

}  // namespace shoal::tool
