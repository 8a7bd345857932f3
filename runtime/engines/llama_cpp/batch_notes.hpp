// What a host program says of its batches beside llama_decode (shoal_llama_note_tokens): which
// token, at which position of which sequence, each slot holds. llama.cpp tells a device none of
// these. Nothing that Shoal computes depends on them.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace shoal::llama_cpp {

// -1 each: nobody said.
struct NotedToken {
    int32_t token = -1;
    int32_t position = -1;
    int32_t sequence = -1;
};

// Of this process; nothing resets them.
struct NoteCounters {
    std::atomic<uint64_t> tokens_noted = 0;
    std::atomic<uint64_t> tokens_missing = 0;  // noted, but llama_decode did not bring them
    std::atomic<uint64_t> tokens_unnoted = 0;  // brought without a word, in a cache with notes
};
NoteCounters& note_counters();

// The tokens that the calling thread's next llama_decode brings. Those of an earlier note that did
// not come are counted and said.
void note_tokens(std::span<const NotedToken> tokens);

// The slots of one KV cache. 12 bytes a slot from the first noted step on.
class BatchNotes {
public:
    // A step writes these slots: those of stream `stream_first` + i are
    // slots[offsets[i] .. offsets[i + 1]). Takes what the calling thread noted. llama.cpp keeps the
    // order of the tokens of a sequence when it cuts a batch into steps; with one stream, that of
    // all tokens.
    void step(uint32_t stream_first, std::span<const uint32_t> offsets,
              std::span<const int64_t> slots, uint32_t stream_count, uint32_t slot_count);
    // Rows that came from elsewhere, e.g. a restored state.
    void forget(uint32_t stream, std::span<const int64_t> slots);
    void shift(uint32_t stream, std::span<const int64_t> slots, std::span<const int32_t> by);
    void copy(uint32_t from_stream, uint32_t to_stream);
    void clear();

    NotedToken at(uint32_t stream, uint32_t slot) const;

private:
    std::vector<std::vector<NotedToken>> streams_;  // [stream][slot]; empty: nothing noted yet
};

}  // namespace shoal::llama_cpp
