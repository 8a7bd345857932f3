#include "batch_notes.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "log.hpp"

namespace shoal::llama_cpp {

namespace {

// The batch that was noted and has not come as a whole.
struct PendingBatch {
    std::vector<NotedToken> tokens;
    std::vector<uint8_t> came;
    size_t first = 0;  // those before it came
    size_t left = 0;

    // The next token that has not come; of `sequence`, unless that is -1.
    const NotedToken* next(int32_t sequence) {
        while (first < tokens.size() && came[first] != 0) ++first;
        for (size_t i = first; i < tokens.size(); ++i) {
            if (came[i] != 0 || (sequence >= 0 && tokens[i].sequence != sequence)) continue;
            came[i] = 1;
            --left;
            return &tokens[i];
        }
        return nullptr;
    }
};
thread_local PendingBatch pending;

void count_missing(size_t left, size_t of) {
    if (note_counters().tokens_missing.fetch_add(left) != 0) return;
    log_line(LogLevel::warning,
             fmt::format("{} of {} noted tokens did not come: llama_decode failed or was not "
                         "called, or decoded another batch (said once; tokens_missing counts)",
                         left, of));
}

void count_unnoted(size_t count) {
    if (count == 0 || note_counters().tokens_unnoted.fetch_add(count) != 0) return;
    log_line(LogLevel::warning,
             fmt::format("{} tokens came that were not noted: call shoal_llama_note_batch before "
                         "every llama_decode (said once; tokens_unnoted counts)", count));
}

}  // namespace

NoteCounters& note_counters() {
    static NoteCounters counters;
    return counters;
}

void note_tokens(std::span<const NotedToken> tokens) {
    if (pending.left > 0) count_missing(pending.left, pending.tokens.size());
    pending.tokens.assign(tokens.begin(), tokens.end());
    pending.came.assign(tokens.size(), 0);
    pending.first = 0;
    pending.left = tokens.size();
    note_counters().tokens_noted += tokens.size();
}

void BatchNotes::step(uint32_t stream_first, std::span<const uint32_t> offsets,
                      std::span<const int64_t> slots, uint32_t stream_count,
                      uint32_t slot_count) {
    if (streams_.empty()) {
        if (pending.left == 0) return;
        streams_.assign(stream_count, std::vector<NotedToken>(slot_count));
    }
    size_t unnoted = 0;
    for (uint32_t i = 0; i + 1 < offsets.size(); ++i) {
        const uint32_t stream = stream_first + i;
        const int32_t sequence = stream_count == 1 ? -1 : static_cast<int32_t>(stream);
        for (uint32_t row = offsets[i]; row < offsets[i + 1]; ++row) {
            const NotedToken* token = pending.next(sequence);
            if (token == nullptr) ++unnoted;
            streams_[stream][static_cast<size_t>(slots[row])] =
                token == nullptr ? NotedToken{} : *token;
        }
    }
    count_unnoted(unnoted);
}

void BatchNotes::forget(uint32_t stream, std::span<const int64_t> slots) {
    if (streams_.empty()) return;
    for (const int64_t slot : slots) streams_[stream][static_cast<size_t>(slot)] = {};
}

void BatchNotes::shift(uint32_t stream, std::span<const int64_t> slots,
                       std::span<const int32_t> by) {
    if (streams_.empty()) return;
    for (size_t i = 0; i < slots.size(); ++i) {
        NotedToken& token = streams_[stream][static_cast<size_t>(slots[i])];
        if (token.position >= 0) token.position += by[i];
    }
}

void BatchNotes::copy(uint32_t from_stream, uint32_t to_stream) {
    if (streams_.empty() || from_stream == to_stream) return;
    streams_[to_stream] = streams_[from_stream];
    for (NotedToken& token : streams_[to_stream]) {
        if (token.sequence >= 0) token.sequence = static_cast<int32_t>(to_stream);
    }
}

void BatchNotes::clear() {
    for (std::vector<NotedToken>& stream : streams_) {
        std::fill(stream.begin(), stream.end(), NotedToken{});
    }
}

NotedToken BatchNotes::at(uint32_t stream, uint32_t slot) const {
    if (stream >= streams_.size() || slot >= streams_[stream].size()) return {};
    return streams_[stream][slot];
}

}  // namespace shoal::llama_cpp
