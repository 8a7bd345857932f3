#include "runtime/tool/saved_kv.hpp"

#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/clock.hpp"
#include "runtime/saved_file.hpp"
#include "runtime/saved_sequence.hpp"
#include "runtime/tool/exit.hpp"

namespace shoal::tool {
namespace {

uint64_t file_bytes(const std::string& path) {
    std::error_code error;
    const uint64_t bytes = std::filesystem::file_size(path, error);
    return error ? 0 : bytes;
}

double seconds_since(uint64_t start_ns) {
    return static_cast<double>(now_ns() - start_ns) * 1e-9;
}

}  // namespace

void add_saved_kv_flags(CLI::App& command, SavedKvFlags& flags) {
    command.add_option("--save-kv", flags.save,
                       "write the KV cache of the prompt to this file, to go on from it later");
    command.add_option("--load-kv", flags.load,
                       "begin with the KV cache of such a file; -p and -f go on after it");
}

Status check_kv_files(const SavedKvFlags& flags, const EngineOptions& options,
                      SavedKvTiming& timing) {
    if (flags.save.empty() && flags.load.empty()) return Status::ok();
    for (const LayerShape& layer : options.model.shape.layers) {
        if (layer.kind != LayerKind::sliding) continue;
        return Status::error(StatusCode::unsupported,
                             fmt::format("{}: not supported for models with a sliding window",
                                         flags.save.empty() ? "--load-kv" : "--save-kv"));
    }
    if (flags.load.empty()) return Status::ok();
    const Result<std::unique_ptr<SavedFileReader>> file = SavedFileReader::open(flags.load);
    if (!file) {
        return Status::error(file.status().code(),
                             fmt::format("--load-kv: {}", file.status().message()));
    }
    const SavedHeader& header = (*file)->front().header;
    SessionOptions session;
    session.slots_per_store = kSavedSlotsMax;
    session.model_fingerprint = options.model.fingerprint;
    ModelShape shape = options.model.shape;
    shape.rows = stored_rows(options.config, shape.rows);
    const Status fits = check_saved_model(header, shape, session, flags.load);
    if (!fits) return Status::error(fits.code(), fmt::format("--load-kv: {}", fits.message()));
    timing.loaded_tokens = header.token_count;
    return Status::ok();
}

Status load_kv(Engine& engine, const SavedKvFlags& flags, std::span<llama_token> tokens,
               SavedKvTiming& timing) {
    if (flags.load.empty()) return Status::ok();
    const uint64_t start = now_ns();
    SHOAL_TRY(engine.load_kv(flags.load, tokens, timing.logits));
    timing.load_seconds = seconds_since(start);
    timing.loaded_bytes = file_bytes(flags.load);
    return Status::ok();
}

Status save_kv(Engine& engine, const SavedKvFlags& flags, std::span<const llama_token> tokens,
               SavedKvTiming& timing) {
    if (flags.save.empty()) return Status::ok();
    const uint64_t start = now_ns();
    const std::span<const float> logits =
        timing.logits.empty() ? engine.logits() : std::span<const float>(timing.logits);
    SHOAL_TRY(engine.save_kv(flags.save, tokens, logits));
    timing.save_seconds = seconds_since(start);
    timing.saved_bytes = file_bytes(flags.save);
    return Status::ok();
}

std::string seconds_text(uint64_t bytes, double seconds) {
    return fmt::format("{:.2f} s, {:.0f} MB/s", seconds,
                       static_cast<double>(bytes) / std::max(seconds, 1e-9) * 1e-6);
}

nlohmann::ordered_json saved_kv_json(const SavedKvTiming& timing) {
    return {{"loaded_tokens", timing.loaded_tokens}, {"loaded_bytes", timing.loaded_bytes},
            {"load_seconds", timing.load_seconds},   {"saved_bytes", timing.saved_bytes},
            {"save_seconds", timing.save_seconds}};
}

}  // namespace shoal::tool
