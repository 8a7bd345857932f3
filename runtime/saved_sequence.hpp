// Saving a store to a file and reading it back, wherever its rows lie: rows come and go through
// two functions, a chunk of at most 1 MiB at a time.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/saved_format.hpp"
#include "shoal/session.hpp"

namespace shoal {

struct SaveInput {
    SavedHeader header;               // model, rope and shape; the counts are filled in here
    std::span<const uint32_t> order;  // slots that hold a token, first written first
    const SequenceNotes* notes = nullptr;
    std::string profile;              // channel statistics as profile text, or ""
    // As Session::read of the store.
    std::function<Status(LayerId, Session::Part, std::span<const int64_t> slots,
                         std::span<std::byte> out)> read;
    std::function<void()> at_boundary;  // tests: before and after each change of the file system
};
// On failure the file that was there is as it was.
Status save_sequence(const SaveInput& in, const std::string& path);

struct LoadTarget {
    // Whether the session can take a file with this header; before anything else is read.
    std::function<Status(const SavedHeader&)> accept;
    // Rows of some tokens in the stored dtype, [tokens, kv_head_count, head_dim]; slots ascend.
    std::function<Status(LayerId, Session::Part, std::span<const int64_t> slots,
                         const ConstTensor& rows)> write;
};
struct LoadedSequence {
    std::vector<uint32_t> order;
    SequenceNotes notes;
    std::string profile;
};
// Everything was verified once this returns a value; rows that `write` got before it failed are to
// be forgotten.
Result<LoadedSequence> load_sequence(const std::string& path, const LoadTarget& target);

// Whether a file is of this model: invalid_argument names the field and both values.
Status check_saved_model(const SavedHeader& header, const ModelShape& shape,
                         const SessionOptions& options, const std::string& path);

}  // namespace shoal
