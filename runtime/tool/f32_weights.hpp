// The same model with its weights written out as F32, in a temporary file.
//
// llama.cpp rounds activations to 8 bits in front of quantised weights, so that two attention
// kernels which differ in the last bit give visibly different logits. With F32 weights that
// rounding is gone, and what is left between two policies is the policies' doing.
#pragma once

#include <string>

#include "shoal/status.hpp"

namespace shoal::tool {

// Removes its file when it goes. Move-only.
class TemporaryFile {
public:
    explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
    TemporaryFile(TemporaryFile&& other) noexcept : path_(std::move(other.path_)) {
        other.path_.clear();
    }
    TemporaryFile& operator=(TemporaryFile&&) = delete;
    ~TemporaryFile();
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

// Takes up to 8 times the file's size in the folder for temporary files ($TMPDIR).
Result<TemporaryFile> write_f32_weights(const std::string& model_path, int threads);

}  // namespace shoal::tool
