#include "runtime/tool/f32_weights.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>
#include <llama.h>

namespace shoal::tool {

TemporaryFile::~TemporaryFile() {
    if (path_.empty()) return;
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
}

Result<TemporaryFile> write_f32_weights(const std::string& model_path, int threads) {
    std::error_code error;
    const std::filesystem::path folder = std::filesystem::temp_directory_path(error);
    if (error) {
        return Status::error(StatusCode::not_found,
                             fmt::format("TMPDIR: no folder for temporary files: {}",
                                         error.message()));
    }
    std::string path = (folder / "shoal-f32-XXXXXX.gguf").string();
    const int file = mkstemps(path.data(), 5);
    if (file < 0) {
        return Status::error(StatusCode::unavailable,
                             fmt::format("{}: cannot be created: {}", path, std::strerror(errno)));
    }
    close(file);
    TemporaryFile out(path);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_ALL_F32;
    params.allow_requantize = true;
    params.nthread = threads;
    if (llama_model_quantize(model_path.c_str(), path.c_str(), &params) != 0) {
        return Status::error(
            StatusCode::unavailable,
            fmt::format("{}: its weights could not be written out as F32 to {} (is there room?)",
                        model_path, folder.string()));
    }
    return out;
}

}  // namespace shoal::tool
