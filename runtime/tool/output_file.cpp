#include "runtime/tool/output_file.hpp"

#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "runtime/tool/exit.hpp"
#include "runtime/tool/options.hpp"

namespace shoal::tool {
namespace {

// Devices and pipes hold nothing that could be lost.
bool would_lose_something(const OutputFile& file) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(file.path, ignored) ||
        std::filesystem::file_size(file.path, ignored) == 0) {
        return false;
    }
    std::ifstream stream(file.path, std::ios::binary);
    std::string beginning(file.beginning.size(), '\0');
    stream.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
    return !stream || beginning != file.beginning;
}

bool is_same_file(const std::string& a, const std::string& b) {
    std::error_code error;
    if (std::filesystem::equivalent(a, b, error)) return true;
    return std::filesystem::absolute(a, error).lexically_normal() ==
           std::filesystem::absolute(b, error).lexically_normal();
}

}  // namespace

Status check_outputs(std::span<const OutputFile> files) {
    for (size_t i = 0; i < files.size(); ++i) {
        const OutputFile& file = files[i];
        if (file.path.empty()) continue;
        SHOAL_TRY(check_writable(file.flag, file.path));
        for (const OutputFile& earlier : files.first(i)) {
            if (earlier.path.empty() || !is_same_file(earlier.path, file.path)) continue;
            return input_error(fmt::format("{} {}: is the file of {} too: name another", file.flag,
                                           file.path, earlier.flag));
        }
        if (!would_lose_something(file)) continue;
        return input_error(fmt::format("{} {}: is there and holds something else: name a new file, "
                                       "or one that {} wrote before",
                                       file.flag, file.path, file.flag));
    }
    return Status::ok();
}

}  // namespace shoal::tool
