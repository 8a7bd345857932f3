// Fuzz target of the loader of saved sequences: any bytes as a file.
//
// The first byte says how much of the rest is made to fit, so that mutations reach what lies
// behind the checksums: 1 the file's size and the front's hash, 2 also the hashes of the chunks.
// Built with -DSHOAL_FUZZ=ON by clang (cmake --preset fuzz); bench/results says when and how long
// it ran.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/saved_sequence.hpp"

namespace shoal {
namespace {

void put_u64(std::vector<std::byte>& file, size_t at, uint64_t value) {
    std::memcpy(file.data() + at, &value, sizeof(value));
}

// Length of the front if it may be one, else 0.
size_t front_length(const std::vector<std::byte>& file) {
    if (file.size() < kSavedPageBytes) return 0;
    const Result<uint64_t> length =
        saved_front_length(std::span(file).first(kSavedPageBytes), file.size(), "input");
    return length ? *length : 0;
}

void repair_front(std::vector<std::byte>& file) {
    if (file.size() < kSavedPageBytes) return;
    put_u64(file, 24, file.size());
    const size_t front = front_length(file);
    if (front == 0) return;
    put_u64(file, kSavedFrontHashOffset, saved_front_hash(std::span(file).first(front)));
}

void repair_chunks(std::vector<std::byte>& file) {
    const size_t length = front_length(file);
    if (length == 0) return;
    Result<SavedFront> front = parse_saved_front(std::span(file).first(length), "input");
    if (!front) return;
    (void)for_each_saved_chunk(front->header, front->sizes, [&](const SavedChunk& chunk) {
        front->hashes[chunk.index] =
            saved_chunk_hash({file.data() + chunk.offset, chunk.padded_bytes()}, front->nonce,
                             chunk.index);
        return Status::ok();
    });
    const std::vector<std::byte> bytes = saved_front_bytes(*front);
    std::copy(bytes.begin(), bytes.end(), file.begin());
}

const std::string& scratch_file() {
    static const std::string path = [] {
        std::string name = "/dev/shm/shoal_fuzz_XXXXXX";
        const int file = mkstemp(name.data());
        if (file < 0) std::abort();
        close(file);
        std::atexit([] { (void)unlink(scratch_file().c_str()); });
        return name;
    }();
    return path;
}

void write_scratch(const std::vector<std::byte>& file) {
    const int out = open(scratch_file().c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (out < 0 || write(out, file.data(), file.size()) != static_cast<ssize_t>(file.size())) {
        std::abort();
    }
    close(out);
}

// Takes what a file holds and ends the program where it is not what the header promised.
void load_and_check() {
    SavedHeader header;
    uint64_t rows_seen = 0;
    uint64_t rows_promised = 0;
    const auto demand = [](bool holds) {
        if (!holds) std::abort();
    };
    LoadTarget target;
    target.accept = [&](const SavedHeader& accepted) {
        header = accepted;
        for (const LayerShape& layer : header.shape.layers) {
            if (layer.kind != LayerKind::none) rows_promised += 2 * uint64_t{header.token_count};
        }
        return Status::ok();
    };
    target.write = [&](LayerId layer, Session::Part part, std::span<const int64_t> slots,
                       const ConstTensor& rows) {
        const LayerShape& shape = header.shape.layers[layer.index];
        demand(rows.n == slots.size() && rows.n > 0 && rows.heads == shape.kv_head_count);
        demand(rows.head_dim == (part == Session::Part::k ? shape.k_head_dim : shape.v_head_dim));
        demand(slots.front() >= 0 && slots.back() < header.slot_end);
        demand(std::is_sorted(slots.begin(), slots.end()));
        uint64_t sum = 0;  // every byte that is promised can be read
        for (size_t i = 0; i < rows.n * rows.n_stride_bytes; ++i) sum += uint64_t(rows.data[i]);
        demand(sum != UINT64_MAX);
        rows_seen += rows.n;
        return Status::ok();
    };
    const Result<LoadedSequence> loaded = load_sequence(scratch_file(), target);
    if (!loaded) {
        demand(!loaded.status().message().empty());
        return;
    }
    demand(rows_seen == rows_promised);
    demand(loaded->order.size() == header.token_count);
    demand(loaded->notes.token_ids.size() == (header.has_token_ids ? header.token_count : 0));
    demand(loaded->notes.positions.size() == (header.has_positions ? header.token_count : 0));
    demand(loaded->notes.logits.size() == header.logit_count);
    demand(loaded->profile.size() == header.profile_bytes);
}

}  // namespace
}  // namespace shoal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const auto* bytes = reinterpret_cast<const std::byte*>(data + 1);
    std::vector<std::byte> file(bytes, bytes + size - 1);
    if (data[0] % 3 >= 1) shoal::repair_front(file);
    if (data[0] % 3 == 2) shoal::repair_chunks(file);
    shoal::write_scratch(file);
    shoal::load_and_check();
    return 0;
}
