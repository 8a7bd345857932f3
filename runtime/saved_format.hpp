// The form of a saved sequence: what a file says of itself and where its chunks lie. No I/O here:
// everything follows from bytes, which may be anybody's.
//
//   front    4096 B or more: fixed fields, description, a hash per chunk; zeros up to 4096 B
//   chunks   at multiples of 4096 B, at most 1 MiB each, the rest of the last page zeros:
//            slots by stamp | token ids | positions | logits | profile |
//            layer 0: K, V of some tokens; K, V of the next ...; layer 1 ...
//
// Chunks hold whole elements, and where each lies follows from the description: a file names no
// offset that could be wrong. Rows are dense, [tokens, kv_head_count, head_dim], tokens ascending
// by slot; a row of q8 is followed by its scale. Numbers are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal {

inline constexpr uint32_t kSavedVersion = 1;
inline constexpr uint32_t kSavedPageBytes = 4096;
inline constexpr uint32_t kSavedChunkBytesMax = 1U << 20;

// Limits of what a front may claim, held before anything is allocated for it.
inline constexpr uint64_t kSavedFrontBytesMax = uint64_t{64} << 20;
inline constexpr uint32_t kSavedSlotsMax = 1U << 30;
inline constexpr uint32_t kSavedLayersMax = 4096;
inline constexpr uint32_t kSavedNameBytesMax = 4096;
inline constexpr uint32_t kSavedLogitsMax = 1U << 24;
inline constexpr uint64_t kSavedProfileBytesMax = uint64_t{64} << 20;

// What a file holds, and of which model.
struct SavedHeader {
    std::string model;             // SessionOptions::model_fingerprint; "" = not known
    std::string rope;              // SessionOptions::rope_fingerprint; "" = not known
    ModelShape shape;
    uint32_t token_count = 0;      // 1 .. slot_end: slots that hold a token
    uint32_t slot_end = 0;         // one past the highest of them
    bool has_token_ids = false;
    bool has_positions = false;
    uint32_t logit_count = 0;      // 0 = none
    uint64_t profile_bytes = 0;    // 0 = none
};

struct SavedSizes {
    uint64_t chunk_count = 0;
    uint64_t front_bytes = 0;
    uint64_t file_bytes = 0;
};

enum class SavedKind : uint8_t {
    order,      // uint32 slots, first written first
    token_ids,  // int32, by slot
    positions,  // int32, by slot
    logits,     // float32
    profile,    // text
    k_rows,
    v_rows,
};

// One chunk: elements [first, first + count) of its kind and layer.
struct SavedChunk {
    SavedKind kind = SavedKind::order;
    uint32_t layer = 0;
    uint64_t index = 0;          // among all chunks
    uint64_t offset = 0;         // in the file
    uint64_t first = 0;
    uint32_t count = 0;
    uint32_t element_bytes = 0;
    uint32_t bytes() const { return count * element_bytes; }
    uint32_t padded_bytes() const {
        return (bytes() + kSavedPageBytes - 1) / kSavedPageBytes * kSavedPageBytes;
    }
};

struct SavedFront {
    SavedHeader header;
    SavedSizes sizes;
    uint64_t nonce = 0;             // seeds the hashes: a chunk of another file does not pass
    std::vector<uint64_t> hashes;   // [chunk_count]
};

// Bytes of one token's K or V in a layer.
uint32_t saved_row_bytes(const SavedHeader& header, uint32_t layer, SavedKind kind);

// Counts and ranges of every field; `name` begins the message. unsupported: the model is none that
// a session serves, or its rows are larger than a chunk.
Status check_saved_header(const SavedHeader& header, const std::string& name, StatusCode code);

// Sizes of the file of a header that passed; corrupt where they do not fit 64 bits.
Result<SavedSizes> saved_sizes(const SavedHeader& header, const std::string& name);

// Calls visit for every chunk, in the order of the file, until one fails.
Status for_each_saved_chunk(const SavedHeader& header, const SavedSizes& sizes,
                            const std::function<Status(const SavedChunk&)>& visit);

// Hash of a whole front, but for the 8 bytes at kSavedFrontHashOffset, where it lies.
inline constexpr size_t kSavedFrontHashOffset = 56;
uint64_t saved_front_hash(std::span<const std::byte> front);

// Hash of a chunk's padded bytes.
uint64_t saved_chunk_hash(std::span<const std::byte> padded, uint64_t nonce, uint64_t index);

// The front as it lies in the file. The header passed check_saved_header().
std::vector<std::byte> saved_front_bytes(const SavedFront& front);

// How long the front is, from its first kSavedPageBytes: the version that this build reads, sizes
// that can be, and a file of the size it ought to have.
Result<uint64_t> saved_front_length(std::span<const std::byte> beginning, uint64_t file_bytes,
                                    const std::string& name);
// The whole front, verified. `bytes` are as many as saved_front_length() said.
Result<SavedFront> parse_saved_front(std::span<const std::byte> bytes, const std::string& name);

}  // namespace shoal
