#include "runtime/engines/llama_cpp/host/sequence_file.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "runtime/engines/llama_cpp/host/device.hpp"

namespace shoal::llama_host {
namespace {

Status refuse(std::string text) {
    return Status::error(StatusCode::invalid_argument, std::move(text));
}

Status status_of(const char* error) { return error == nullptr ? Status::ok() : refuse(error); }

// Address space that takes memory only where it is written.
class SparseBytes {
public:
    explicit SparseBytes(size_t bytes)
        : bytes_(bytes),
          data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
    ~SparseBytes() {
        if (is_mapped()) ::munmap(data_, bytes_);
    }
    SparseBytes(const SparseBytes&) = delete;
    SparseBytes& operator=(const SparseBytes&) = delete;
    bool is_mapped() const { return data_ != MAP_FAILED; }
    uint8_t* data() const { return static_cast<uint8_t*>(data_); }
    size_t size() const { return bytes_; }

private:
    size_t bytes_;
    void* data_;
};

// Writes fields one after the other; stretches that are skipped stay untouched.
class StateWriter {
public:
    explicit StateWriter(uint8_t* data) : at_(data) {}
    template <typename T>
    void put(T value) {
        std::memcpy(at_, &value, sizeof(T));
        at_ += sizeof(T);
    }
    void put(std::span<const uint8_t> bytes) {
        std::memcpy(at_, bytes.data(), bytes.size());
        at_ += bytes.size();
    }
    void skip(size_t bytes) { at_ += bytes; }

private:
    uint8_t* at_;
};

// The state of an empty sequence: [magic, sequence, streams = 1, cells = 0].
Result<std::vector<uint8_t>> empty_state(llama_context* context) {
    std::vector<uint8_t> state(llama_state_seq_get_size(context, 0));
    state.resize(llama_state_seq_get_data(context, state.data(), state.size(), 0));
    const uint32_t one_stream_no_cell[2] = {1, 0};
    if (state.size() == 16 && std::memcmp(state.data() + 8, one_stream_no_cell, 8) == 0) {
        return state;
    }
    return Status::error(StatusCode::unsupported,
                         "load: this llama.cpp has states of another layout, or its context is "
                         "not empty");
}

constexpr size_t kCellBytes = 12;    // position, number of sequences = 1, sequence
constexpr size_t kTensorBytes = 12;  // type, bytes of a row

// What llama.cpp would have written for these cells, but for the rows: those are Shoal's already,
// and the device does not read what it is given in their place.
Status restore_cells(llama_context* context, const shoal_llama_saved& saved) {
    const Result<std::vector<uint8_t>> empty = empty_state(context);
    if (!empty) return empty.status();
    size_t bytes = empty->size() + saved.token_count * kCellBytes + 8;
    for (size_t i = 0; i < saved.tensor_count; ++i) {
        bytes += kTensorBytes + saved.token_count * saved.tensors[i].row_bytes;
    }
    const SparseBytes state(bytes);
    if (!state.is_mapped()) {
        return Status::error(StatusCode::out_of_memory,
                             fmt::format("load: no address space for a state of {} bytes: {}",
                                         bytes, std::strerror(errno)));
    }
    StateWriter out(state.data());
    out.put(std::span(*empty).first(empty->size() - 4));
    out.put(static_cast<uint32_t>(saved.token_count));
    for (size_t i = 0; i < saved.token_count; ++i) {
        out.put(saved.positions[i]);
        out.put(uint32_t{1});
        out.put(int32_t{0});
    }
    out.put(uint32_t{0});  // V is not transposed
    out.put(static_cast<uint32_t>(saved.tensor_count / 2));
    for (size_t i = 0; i < saved.tensor_count; ++i) {
        out.put(saved.tensors[i].type);
        out.put(saved.tensors[i].row_bytes);
        out.skip(saved.token_count * saved.tensors[i].row_bytes);
    }
    if (llama_state_seq_set_data(context, state.data(), state.size(), 0) == bytes) {
        return Status::ok();
    }
    return refuse(fmt::format("load: llama.cpp did not take {} cells into its context of {}",
                              saved.token_count, llama_n_ctx(context)));
}

Status copy_notes(llama_context* context, const shoal_llama_saved& saved, const LoadOutput& out,
                  const std::string& path) {
    const auto vocabulary = static_cast<size_t>(
        llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context))));
    if (out.logits != nullptr) {
        if (saved.logit_count != vocabulary) {
            return refuse(fmt::format("{}: logits of {} tokens: the vocabulary has {}", path,
                                      saved.logit_count, vocabulary));
        }
        std::copy_n(saved.logits, vocabulary, out.logits);
    }
    if (out.capacity > 0) {
        if (saved.tokens == nullptr) return refuse(fmt::format("{}: holds no token ids", path));
        std::copy_n(saved.tokens, std::min(out.capacity, saved.token_count), out.tokens);
    }
    *out.token_count = saved.token_count;
    return Status::ok();
}

}  // namespace

Status save_sequence(llama_context* context, const std::string& path,
                     std::span<const llama_token> tokens, const float* logits) {
    const Result<ggml_backend_reg_t> registry = find_device();
    if (!registry) return registry.status();
    const llama_memory_t memory = llama_get_memory(context);
    const int32_t first = llama_memory_seq_pos_min(memory, 0);
    const int32_t last = llama_memory_seq_pos_max(memory, 0);
    if (tokens.empty() || first != 0 || static_cast<size_t>(last) + 1 != tokens.size()) {
        return refuse(fmt::format("token_count = {}: sequence 0 holds positions {} to {}: all of "
                                  "them are saved, from 0", tokens.size(), first, last));
    }
    std::vector<int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0);
    const auto vocabulary = static_cast<size_t>(
        llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context))));
    const auto save = side_call<shoal_llama_save_rows_t>(*registry, "shoal_llama_save_rows");
    return status_of(save(path.c_str(), tokens.data(), positions.data(), tokens.size(), logits,
                          vocabulary));
}

Status load_sequence(llama_context* context, const std::string& path, const LoadOutput& out) {
    const Result<ggml_backend_reg_t> registry = find_device();
    if (!registry) return registry.status();
    const llama_memory_t memory = llama_get_memory(context);
    if (memory == nullptr || llama_memory_seq_pos_max(memory, 0) >= 0) {
        return refuse("load: sequence 0 of the context holds tokens already: clear it first "
                      "(llama_memory_clear)");
    }
    shoal_llama_saved saved = {};
    const auto load = side_call<shoal_llama_load_rows_t>(*registry, "shoal_llama_load_rows");
    const auto finish =
        side_call<shoal_llama_load_rows_done_t>(*registry, "shoal_llama_load_rows_done");
    SHOAL_TRY(status_of(load(path.c_str(), &saved)));
    Status status = copy_notes(context, saved, out, path);
    if (status) status = restore_cells(context, saved);
    const Status done = status_of(finish());
    if (status && done) return Status::ok();
    llama_memory_clear(memory, true);
    *out.token_count = 0;
    return status ? done : status;
}

}  // namespace shoal::llama_host
