#include "runtime/tool/plugin.hpp"

#include <array>
#include <filesystem>
#include <memory>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/tool/engine_log.hpp"

namespace shoal::tool {
namespace {

constexpr const char* kPluginFile = "libggml-shoal.so";

Result<std::string> find_plugin() {
    std::error_code error;
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
    const std::filesystem::path folder = program.parent_path();
    const std::array<std::filesystem::path, 3> folders = {folder, folder / "../lib",
                                                          folder / "../lib/shoal"};
    for (const auto& candidate : folders) {
        const std::filesystem::path file = candidate / kPluginFile;
        if (std::filesystem::exists(file, error)) return file.lexically_normal().string();
    }
    return Status::error(StatusCode::not_found,
                         fmt::format("{}: not beside the program ({}) nor in ../lib", kPluginFile,
                                     folder.string()));
}

template <typename Function>
bool resolve(ggml_backend_reg_t reg, const char* name, Function& function) {
    // ggml hands out object pointers; POSIX makes the cast well defined.
    function = reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(reg, name));
    return function != nullptr;
}

Status from_text(const char* error) {
    if (error == nullptr) return Status::ok();
    return Status::error(StatusCode::invalid_argument, error);
}

Stats stats_from_json(const std::string& text) {
    Stats stats;
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_object()) return stats;
    const auto read = [&](const char* key, auto& field) {
        const auto found = json.find(key);
        if (found != json.end() && found->is_number()) found->get_to(field);
    };
    read("steps", stats.steps);
    read("tokens_written", stats.tokens_written);
    read("queries_sparse", stats.queries_sparse);
    read("queries_dense", stats.queries_dense);
    read("queries_exact", stats.queries_exact);
    read("rows_attended", stats.rows_attended);
    read("kv_bytes_read", stats.kv_bytes_read);
    read("label_bytes_read", stats.label_bytes_read);
    read("append_ns", stats.append_ns);
    read("score_ns", stats.score_ns);
    read("select_ns", stats.select_ns);
    read("attend_ns", stats.attend_ns);
    read("exact_ns", stats.exact_ns);
    read("selections", stats.selections);
    read("selections_reused", stats.selections_reused);
    read("rescans", stats.rescans);
    read("guess_misses", stats.guess_misses);
    read("spans_encoded", stats.spans_encoded);
    read("spans_ranged_again", stats.spans_ranged_again);
    read("recall_samples", stats.recall_samples);
    read("mass_recall_sum", stats.mass_recall_sum);
    read("mass_recall_min", stats.mass_recall_min);
    read("mass_recall_min_layer", stats.mass_recall_min_layer);
    read("rows_checked", stats.rows_checked);
    read("dense_without_statistics", stats.dense_without_statistics);
    read("block_hits", stats.block_hits);
    read("block_misses", stats.block_misses);
    read("blocks_prefetched", stats.blocks_prefetched);
    read("blocks_prefetched_used", stats.blocks_prefetched_used);
    read("blocks_prefetched_late", stats.blocks_prefetched_late);
    read("blocks_prefetched_wasted", stats.blocks_prefetched_wasted);
    read("blocks_written", stats.blocks_written);
    read("disk_reads", stats.disk_reads);
    read("disk_read_bytes", stats.disk_read_bytes);
    read("disk_written_bytes", stats.disk_written_bytes);
    read("fetch_ns", stats.fetch_ns);
    read("exposed_wait_ns", stats.exposed_wait_ns);
    read("prefetch_ns", stats.prefetch_ns);
    read("prefetch_guesses", stats.prefetch_guesses);
    read("prefetch_hints", stats.prefetch_hints);
    read("write_wait_ns", stats.write_wait_ns);
    read("disk_retries", stats.disk_retries);
    read("disk_checksum_mismatches", stats.disk_checksum_mismatches);
    read("disk_deadlines_missed", stats.disk_deadlines_missed);
    read("block_write_failures", stats.block_write_failures);
    read("prefetch_switched_off", stats.prefetch_switched_off);
    read("disk_paths_refused", stats.disk_paths_refused);
    read("host_kv_bytes", stats.host_kv_bytes);
    read("disk_kv_bytes", stats.disk_kv_bytes);
    read("label_bytes", stats.label_bytes);
    read("slots_used", stats.slots_used);
    return stats;
}

}  // namespace

Result<const Plugin*> Plugin::load() {
    static std::unique_ptr<Plugin> loaded;
    if (loaded) return static_cast<const Plugin*>(loaded.get());
    const Result<std::string> path = find_plugin();
    if (!path) return path.status();
    std::unique_ptr<Plugin> plugin(new Plugin());
    SHOAL_TRY(plugin->open(*path));
    loaded = std::move(plugin);
    return static_cast<const Plugin*>(loaded.get());
}

Status Plugin::open(const std::string& path) {
    path_ = path;
    EngineLog::instance().clear();
    ggml_backend_reg_t reg = ggml_backend_load(path.c_str());
    if (reg == nullptr || ggml_backend_reg_dev_count(reg) == 0) {
        return Status::error(StatusCode::unsupported,
                             fmt::format("{}: ggml refused it: {}", path,
                                         EngineLog::instance().last_error()));
    }
    device_ = ggml_backend_reg_dev_get(reg, 0);
    const bool complete = resolve(reg, "shoal_llama_configure", configure_) &&
                          resolve(reg, "shoal_llama_set_model", set_model_) &&
                          resolve(reg, "shoal_llama_reconfigure", reconfigure_) &&
                          resolve(reg, "shoal_llama_stats_json", stats_json_) &&
                          resolve(reg, "shoal_llama_reset_stats", reset_stats_) &&
                          resolve(reg, "shoal_llama_trace", trace_) &&
                          resolve(reg, "shoal_llama_read_trace", read_trace_) &&
                          resolve(reg, "shoal_llama_write_profile", write_profile_) &&
                          resolve(reg, "shoal_llama_last_error", last_error_);
    if (complete) return Status::ok();
    return Status::error(StatusCode::unsupported,
                         fmt::format("{}: of another version than this program", path));
}

Status Plugin::configure(const Config& config, const std::string& model_fingerprint) const {
    set_model_(model_fingerprint.c_str());
    return from_text(configure_(config_to_toml(config).c_str()));
}

Status Plugin::reconfigure(const Config& config) const {
    return from_text(reconfigure_(config_to_toml(config).c_str()));
}

Status Plugin::trace(uint32_t event_capacity) const { return from_text(trace_(event_capacity)); }

void Plugin::read_trace(std::vector<TraceEvent>& events, uint64_t& dropped) const {
    std::array<shoal_llama_trace_event, 256> part = {};
    size_t got = part.size();
    while (got == part.size()) {
        got = read_trace_(part.data(), part.size(), &dropped);
        for (size_t i = 0; i < got; ++i) {
            events.push_back({part[i].begin_ns, part[i].end_ns, part[i].layer,
                              static_cast<TraceStage>(part[i].stage)});
        }
    }
}

Status Plugin::write_profile(const std::string& path, const std::string& source) const {
    return from_text(write_profile_(path.c_str(), source.c_str()));
}

std::string Plugin::stats_json() const {
    std::array<char, 4096> buffer = {};
    const size_t length = stats_json_(buffer.data(), buffer.size());
    if (length < buffer.size()) return buffer.data();
    std::string text(length + 1, '\0');
    text.resize(std::min(length, stats_json_(text.data(), text.size())));
    return text;
}

Stats Plugin::stats() const { return stats_from_json(stats_json()); }

std::string Plugin::last_error() const { return last_error_(); }

}  // namespace shoal::tool
