// What the tests of saved sequences share: a folder of their own, and a sequence in plain arrays.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "runtime/saved_sequence.hpp"

namespace shoal::testing {

// A new folder that goes with its contents.
class TestFolder {
public:
    TestFolder() {
        std::string name = ::testing::TempDir() + "shoal_saved_XXXXXX";
        if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        path_ = name;
    }
    ~TestFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TestFolder(const TestFolder&) = delete;
    TestFolder& operator=(const TestFolder&) = delete;
    std::string file(const std::string& name) const { return path_ + "/" + name; }
    const std::string& path() const { return path_; }
    size_t file_count() const {
        return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_),
                                                 std::filesystem::directory_iterator()));
    }

private:
    std::string path_;
};

inline std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
inline void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

// A sequence without a session: rows of layer l are random numbers that `seed` makes.
struct PlainSequence {
    PlainSequence(const ModelShape& shape, uint32_t tokens, uint32_t seed) {
        header.model = "model of the tests";
        header.shape = shape;
        std::mt19937 random(seed);
        for (uint32_t i = 0; i < tokens; ++i) order.push_back(i);
        for (uint32_t i = 0; i < tokens; ++i) {
            notes.token_ids.push_back(static_cast<int32_t>(random() % 1000));
        }
        for (uint32_t l = 0; l < shape.layers.size(); ++l) {
            for (const SavedKind kind : {SavedKind::k_rows, SavedKind::v_rows}) {
                std::vector<std::byte> rows(size_t{tokens} * saved_row_bytes(header, l, kind));
                for (std::byte& byte : rows) byte = static_cast<std::byte>(random() % 64);
                parts.push_back(rows);
            }
        }
    }
    std::vector<std::byte>& part(LayerId layer, Session::Part part) {
        return parts[2 * layer.index + (part == Session::Part::v ? 1 : 0)];
    }

    Status save(const std::string& path, const std::function<void()>& at_boundary = {}) {
        SaveInput in;
        in.header = header;
        in.order = order;
        in.notes = &notes;
        in.profile = profile;
        in.at_boundary = at_boundary;
        in.read = [this](LayerId layer, Session::Part which, std::span<const int64_t> slots,
                         std::span<std::byte> out) {
            const size_t bytes = out.size() / slots.size();
            for (size_t i = 0; i < slots.size(); ++i) {
                std::memcpy(out.data() + i * bytes,
                            part(layer, which).data() + static_cast<size_t>(slots[i]) * bytes,
                            bytes);
            }
            return Status::ok();
        };
        return save_sequence(in, path);
    }

    // What a file holds, of a sequence of this shape.
    static Result<PlainSequence> load(const std::string& path) {
        PlainSequence out({}, 0, 0);
        LoadTarget target;
        target.accept = [&](const SavedHeader& accepted) {
            out.header = accepted;
            out.parts.resize(2 * accepted.shape.layers.size());
            return Status::ok();
        };
        target.write = [&](LayerId layer, Session::Part which, std::span<const int64_t> slots,
                           const ConstTensor& rows) {
            std::vector<std::byte>& to = out.part(layer, which);
            to.resize(size_t{out.header.slot_end} * rows.n_stride_bytes);
            for (size_t i = 0; i < slots.size(); ++i) {
                std::memcpy(to.data() + static_cast<size_t>(slots[i]) * rows.n_stride_bytes,
                            rows.data + i * rows.n_stride_bytes, rows.n_stride_bytes);
            }
            return Status::ok();
        };
        Result<LoadedSequence> loaded = load_sequence(path, target);
        if (!loaded) return loaded.status();
        out.order = loaded->order;
        out.notes = loaded->notes;
        out.profile = loaded->profile;
        return out;
    }
    bool same_as(const PlainSequence& other) const {
        return order == other.order && parts == other.parts && profile == other.profile &&
               notes.token_ids == other.notes.token_ids;
    }

    SavedHeader header;
    std::vector<uint32_t> order;
    SequenceNotes notes;
    std::string profile;
    std::vector<std::vector<std::byte>> parts;  // [layer, K and V], by slot
};

inline ModelShape tiny_shape(uint32_t layers = 1) {
    ModelShape shape;
    for (uint32_t l = 0; l < layers; ++l) {
        shape.layers.push_back({LayerKind::full, 1, 32, 32, 0});
    }
    shape.q_head_count = 1;
    return shape;
}

}  // namespace shoal::testing
