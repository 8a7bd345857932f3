#include "runtime/tool/options.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "runtime/config_keys.hpp"
#include "runtime/tool/engine_log.hpp"
#include "runtime/tool/exit.hpp"
#include "runtime/tool/output_file.hpp"
#include "runtime/tool/utf8.hpp"

namespace shoal::tool {
namespace {

constexpr uint64_t kTextBytesMax = uint64_t{256} << 20;

struct Spelling {
    std::string_view given;
    std::string_view expanded;
};
constexpr std::array<Spelling, 9> kSpellings = {{{"-ctk", "--cache-type-k"},
                                                 {"-ctv", "--cache-type-v"},
                                                 {"-ub", "--ubatch-size"},
                                                 {"-fa", "--flash-attn"},
                                                 {"-nkvo", "--no-kv-offload"},
                                                 {"-kvo", "--kv-offload"},
                                                 {"-cnv", "--chat"},
                                                 {"-no-cnv", "--no-chat"},
                                                 {"-tb", "--threads-batch"}}};

Result<llama_flash_attn_type> parse_flash_attention(const std::string& value) {
    if (value == "on" || value == "1") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (value == "auto") return LLAMA_FLASH_ATTN_TYPE_AUTO;
    if (value == "off" || value == "0") return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return input_error(fmt::format("--flash-attn {}: must be on or auto", value));
}

// What the flags say of the context, checked as the parameters they become.
Status check_context(const ModelFlags& flags, ModelFile& model) {
    const Result<llama_flash_attn_type> flash = parse_flash_attention(flags.flash_attention);
    if (!flash) return flash.status();
    const Result<ggml_type> k = parse_cache_type("-ctk", flags.type_k);
    if (!k) return k.status();
    const Result<ggml_type> v = parse_cache_type("-ctv", flags.type_v);
    if (!v) return v.status();
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(flags.context);
    params.flash_attn_type = *flash;
    params.offload_kqv = !flags.no_kv_offload;
    params.type_k = *k;
    params.type_v = *v;
    SHOAL_TRY(check_parameters(params, model));
    model.shape.rows = {.k = *llama_host::row_dtype(*k), .v = *llama_host::row_dtype(*v)};
    return Status::ok();
}

}  // namespace

std::vector<std::string> expand_short_flags(int argc, char** argv) {
    std::vector<std::string> arguments;
    for (int i = 1; i < argc; ++i) {
        std::string argument = argv[i];
        for (const Spelling& spelling : kSpellings) {
            if (argument == spelling.given) argument = spelling.expanded;
        }
        arguments.push_back(std::move(argument));
    }
    return arguments;
}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
    command.add_option("-m,--model", flags.model, "model file (GGUF)")->required();
    command.add_option("-c,--ctx-size", flags.context,
                       "tokens the context can hold; 0 is as many as this command needs");
    command.add_option("-b,--batch-size", flags.batch, "most tokens per llama.cpp batch")
        ->capture_default_str();
    command.add_option("--ubatch-size", flags.micro_batch,
                       "-ub: tokens that are read at a time while the prompt is read")
        ->capture_default_str();
    command.add_option("-t,--threads", flags.threads, "threads; 0 is every core");
    command.add_option("--cache-type-k", flags.type_k, "-ctk: how K is stored: f16, bf16 or f32")
        ->capture_default_str();
    command.add_option("--cache-type-v", flags.type_v, "-ctv: how V is stored: f16, bf16 or f32")
        ->capture_default_str();
    command.add_option("--flash-attn", flags.flash_attention, "-fa: must be on or auto")
        ->group("");
    command.add_flag("--no-kv-offload", flags.no_kv_offload)->group("");
}

void add_config_flags(CLI::App& command, ConfigFlags& flags) {
    command.add_option("--config", flags.file, "configuration file, TOML or JSON");
    command.add_option("--set", flags.sets, "key=value: one configuration key, such as "
                                            "budget.rows=512")
        ->allow_extra_args(false);
    const auto short_for = [&](const std::string& flag, const std::string& name,
                               const std::string& type, const std::string& doc) {
        command
            .add_option_function<std::string>(
                flag, [&flags, name](const std::string& value) { flags.keys[name] = value; }, doc)
            ->type_name(type);
    };
    short_for("--kv-ram", "host.kv_bytes", "BYTES",
              "most RAM of the KV cache, such as 8GiB: --host.kv_bytes");
    short_for("--kv-disk", "disk.dir", "DIR",
              "folder for a file with all rows of the cache, those in use in RAM: --disk.dir");
    for (const ConfigKey& key : config_keys()) {
        const std::string name(key.name);
        command
            .add_option_function<std::string>(
                "--" + name, [&flags, name](const std::string& value) { flags.keys[name] = value; },
                std::string(key.doc))
            ->type_name(config_key_text(key, Config{}))
            ->group("Configuration (with defaults; in a file: [section] key = value)");
    }
}

void add_output_flags(CLI::App& command, CommonFlags& flags) {
    command.add_flag("--json", flags.json, "print one JSON object on stdout");
    command.add_option("--report", flags.report, "write that object to this file as well");
    command.add_flag("-v,--verbose", flags.verbose, "show what llama.cpp and Shoal log");
}

Result<uint32_t> checked_number(const std::string& flag, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return static_cast<uint32_t>(value);
    return input_error(fmt::format("{} {}: must be {} to {}", flag, value, low, high));
}

Status check_writable(const std::string& flag, const std::string& path) {
    std::error_code error;
    const auto refuse = [&](const std::string& why) {
        return input_error(fmt::format("{} {}: {}", flag, path, why));
    };
    if (path.empty()) return refuse("must name a file");
    if (std::filesystem::is_directory(path, error)) return refuse("is a folder");
    std::string tried = path;
    if (!std::filesystem::exists(path, error)) {
        const std::filesystem::path parent = std::filesystem::path(path).parent_path();
        tried = parent.empty() ? "." : parent.string();
    }
    if (access(tried.c_str(), W_OK) == 0) return Status::ok();
    return refuse(std::generic_category().message(errno));
}

Result<Prepared> prepare(const CommonFlags& flags) {
    EngineLog::instance().install(flags.verbose);
    const OutputFile report = {"--report", flags.report, kReportBeginning};
    SHOAL_TRY(check_outputs({&report, 1}));
    Prepared prepared;
    Result<ResolvedConfig> config = resolve_config(flags.config);
    if (!config) return config.status();
    prepared.config = std::move(*config);
    const ModelFlags& given = flags.model;
    const Result<uint32_t> context = checked_number("-c", given.context, 0, kTokensMax);
    const Result<uint32_t> batch = checked_number("-b", given.batch, 1, 1 << 20);
    const Result<uint32_t> micro = checked_number("-ub", given.micro_batch, 1, 1 << 16);
    const Result<uint32_t> threads = checked_number("-t", given.threads, 0, 1024);
    for (const auto* number : {&context, &batch, &micro, &threads}) {
        if (!*number) return number->status();
    }
    Result<ModelFile> model = read_model_file(given.model);
    if (!model) return model.status();
    SHOAL_TRY(check_context(given, *model));
    EngineOptions& engine = prepared.engine;
    engine.model = std::move(*model);
    engine.config = prepared.config.config;
    engine.context_tokens = *context;
    engine.batch = std::max(*batch, *micro);
    engine.micro_batch = *micro;
    engine.threads = static_cast<int>(*threads == 0 ? default_threads() : *threads);
    return prepared;
}

Status refuse_context(const CommonFlags& flags, const char* command) {
    if (flags.model.context == 0) return Status::ok();
    return input_error(fmt::format("-c {}: {} makes the context as long as it needs; leave -c out",
                                   flags.model.context, command));
}

Status check_config(const Prepared& prepared) {
    constexpr uint32_t kAnyContext = 256;
    const Result<MemoryPlan> plan = plan_memory(prepared.config.config, prepared.engine.model,
                                                kAnyContext, prepared.engine.micro_batch);
    return plan ? Status::ok() : plan.status();
}

Result<std::string> read_text_file(const std::string& flag, const std::string& path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        return input_error(fmt::format("{} {}: is a folder, not a text file", flag, path));
    }
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        return Status::error(StatusCode::not_found,
                             fmt::format("{} {}: {}", flag, path,
                                         std::generic_category().message(errno)));
    }
    const auto bytes = static_cast<int64_t>(file.tellg());
    if (bytes < 0 || static_cast<uint64_t>(bytes) > kTextBytesMax) {
        return input_error(
            fmt::format("{} {}: must be a text file of at most 256 MiB", flag, path));
    }
    std::string text(static_cast<size_t>(bytes), '\0');
    file.seekg(0);
    if (!file.read(text.data(), bytes)) {
        return input_error(fmt::format("{} {}: cannot be read", flag, path));
    }
    const size_t bad = first_invalid_utf8(text);
    if (bad != text.size()) {
        return input_error(fmt::format("{} {}: byte {} (0x{:02x}): must be UTF-8 text", flag, path,
                                       bad, static_cast<unsigned char>(text[bad])));
    }
    return text;
}

Result<std::vector<uint32_t>> parse_numbers(const std::string& flag, const std::string& text,
                                            uint32_t low) {
    std::vector<uint32_t> numbers;
    std::istringstream items(text);
    for (std::string item; std::getline(items, item, ',');) {
        uint32_t number = 0;
        const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), number);
        if (error != std::errc() || end != item.data() + item.size() || number < low ||
            number > kTokensMax) {
            return input_error(fmt::format("{} {}: must be whole numbers from {} to {}, with "
                                           "commas between",
                                           flag, text, low, kTokensMax));
        }
        numbers.push_back(number);
    }
    if (numbers.empty()) return input_error(fmt::format("{}: must not be empty", flag));
    return numbers;
}

}  // namespace shoal::tool
