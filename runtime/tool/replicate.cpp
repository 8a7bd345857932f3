#include "runtime/tool/replicate.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace shoal::tool {
namespace {

// Reads fields from the old state and writes them to the new one.
class Copier {
public:
    Copier(std::span<const uint8_t> from, std::vector<uint8_t>& to) : from_(from), to_(to) {}

    template <typename T>
    T field() {
        T value{};
        const std::span<const uint8_t> bytes = take(sizeof(T));
        if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof(T));
        return value;
    }
    template <typename T>
    void put(T value) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
        to_.insert(to_.end(), bytes, bytes + sizeof(T));
    }
    template <typename T>
    T copy() {
        const T value = field<T>();
        put(value);
        return value;
    }
    // `count` rows of `row_bytes` become `wanted` rows, repeated from the first; in those that were
    // repeated the bits of `flipped` change at random.
    void rows(uint64_t row_bytes, uint32_t count, uint32_t wanted, uint64_t flipped) {
        const std::span<const uint8_t> all = take(row_bytes * count);
        if (all.empty()) return;
        const size_t repeated = to_.size() + all.size();
        for (uint64_t left = row_bytes * wanted; left > 0;) {
            const uint64_t bytes = std::min<uint64_t>(left, all.size());
            to_.insert(to_.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(bytes));
            left -= bytes;
        }
        for (size_t at = repeated; flipped != 0 && at + sizeof(uint64_t) <= to_.size();
             at += sizeof(uint64_t)) {
            uint64_t bits = 0;
            std::memcpy(&bits, to_.data() + at, sizeof(bits));
            bits ^= next_random() & flipped;
            std::memcpy(to_.data() + at, &bits, sizeof(bits));
        }
    }
    bool good() const { return good_; }
    bool at_end() const { return from_.empty(); }

private:
    std::span<const uint8_t> take(uint64_t bytes) {
        if (bytes > from_.size()) good_ = false;
        if (!good_) return {};
        const std::span<const uint8_t> taken = from_.first(bytes);
        from_ = from_.subspan(bytes);
        return taken;
    }

    uint64_t next_random() {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        return random_ ^= random_ << 17;
    }

    std::span<const uint8_t> from_;
    std::vector<uint8_t>& to_;
    uint64_t random_ = 88172645463325252ULL;
    bool good_ = true;
};

// The low bits of the significand, in 8 bytes of numbers of a type: up to a sixteenth of each.
uint64_t low_bits(int32_t type) {
    switch (type) {
        case GGML_TYPE_F16: return 0x003f003f003f003fULL;
        case GGML_TYPE_BF16: return 0x0007000700070007ULL;
        case GGML_TYPE_F32: return 0x0007ffff0007ffffULL;
        default: return 0;
    }
}

Status unknown_layout() {
    return Status::error(StatusCode::unsupported,
                         "the sequence state has a layout that this version does not know");
}

}  // namespace

std::vector<uint8_t> save_state(const Engine& engine) {
    std::vector<uint8_t> state(llama_state_seq_get_size(engine.context(), 0));
    state.resize(llama_state_seq_get_data(engine.context(), state.data(), state.size(), 0));
    return state;
}

Status load_state(Engine& engine, std::span<const uint8_t> state) {
    const size_t taken =
        llama_state_seq_set_data(engine.context(), state.data(), state.size(), 0);
    if (taken == state.size()) return Status::ok();
    return Status::error(StatusCode::internal,
                         fmt::format("{}: the sequence state was not taken",
                                     engine_name(engine.kind())));
}

Result<std::vector<uint8_t>> replicate_state(std::span<const uint8_t> state, uint32_t cell_count) {
    std::vector<uint8_t> out;
    Copier copier(state, out);
    copier.copy<uint32_t>();                                   // magic
    copier.copy<int32_t>();                                    // sequence
    const auto streams = copier.copy<uint32_t>();
    const auto old_count = copier.field<uint32_t>();
    copier.put(cell_count);
    if (streams != 1 || old_count == 0 || old_count > state.size()) return unknown_layout();
    out.reserve(state.size() / old_count * (uint64_t{cell_count} + old_count));
    for (uint32_t i = 0; i < old_count; ++i) {                 // position, one sequence id
        copier.field<int32_t>();
        if (copier.field<uint32_t>() != 1) return unknown_layout();
        copier.field<int32_t>();
    }
    for (uint32_t i = 0; i < cell_count; ++i) {
        copier.put(static_cast<int32_t>(i));
        copier.put(uint32_t{1});
        copier.put(int32_t{0});
    }
    const auto v_transposed = copier.copy<uint32_t>();
    const auto layer_count = copier.copy<uint32_t>();
    if (v_transposed != 0 || layer_count > 4096) return unknown_layout();
    for (uint32_t i = 0; i < 2 * layer_count && copier.good(); ++i) {  // K of all layers, then V
        const auto type = copier.copy<int32_t>();
        const uint64_t flipped = i < layer_count ? low_bits(type) : 0;
        copier.rows(copier.copy<uint64_t>(), old_count, cell_count, flipped);
    }
    if (!copier.good() || !copier.at_end()) return unknown_layout();
    return out;
}

}  // namespace shoal::tool
