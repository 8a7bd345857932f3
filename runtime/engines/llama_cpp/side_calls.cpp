#include "side_calls.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "batch_notes.hpp"
#include "kv_cache.hpp"
#include "log.hpp"
#include "settings.hpp"
#include "shoal_llama.h"

namespace shoal::llama_cpp {

namespace {

// Null when `status` is ok, else its message, kept for the calling thread.
const char* error_text(const Status& status) {
    thread_local std::string text;
    if (status) return nullptr;
    text = status.message();
    return text.c_str();
}

size_t copy_text(const std::string& text, char* buffer, size_t size) {
    if (buffer != nullptr && size > 0) {
        const size_t count = std::min(text.size(), size - 1);
        std::memcpy(buffer, text.data(), count);
        buffer[count] = '\0';
    }
    return text.size();
}

Status no_live_session() {
    return Status::error(StatusCode::not_found,
                         "no llama_context with its KV cache in Shoal exists");
}

Status reconfigure(const char* text) {
    KvCache* cache = KvCache::newest();
    if (cache == nullptr) return no_live_session();
    Config config = cache->session()->config();
    SHOAL_TRY(config_merge_text(text == nullptr ? "" : text, "configuration", config));
    return cache->session()->reconfigure(config);
}

Status start_trace(uint32_t event_capacity) {
    KvCache* cache = KvCache::newest();
    if (cache == nullptr) return no_live_session();
    return cache->session()->trace(event_capacity);
}

Status write_profile(const char* path, const char* source) {
    KvCache* cache = KvCache::newest();
    if (cache == nullptr) return no_live_session();
    if (path == nullptr || *path == '\0') {
        return Status::error(StatusCode::invalid_argument, "profile path: must not be empty");
    }
    return cache->session()->write_profile(path, source == nullptr ? "" : source);
}

Status note(const int32_t* tokens, const int32_t* positions, const int32_t* sequences,
            size_t count) {
    if (count > 0 && (positions == nullptr || sequences == nullptr)) {
        return Status::error(StatusCode::invalid_argument,
                             "positions and sequences must not be NULL");
    }
    std::vector<NotedToken> noted(count);
    for (size_t i = 0; i < count; ++i) {
        noted[i] = {tokens == nullptr ? -1 : tokens[i], positions[i], sequences[i]};
        for (const auto& [name, value] : {std::pair{"token", tokens == nullptr ? 0 : tokens[i]},
                                          std::pair{"position", positions[i]},
                                          std::pair{"sequence", sequences[i]}}) {
            if (value >= 0) continue;
            return Status::error(StatusCode::invalid_argument,
                                 fmt::format("{}s[{}] = {}: must be 0 or more", name, i, value));
        }
    }
    note_tokens(noted);
    return Status::ok();
}

Status save(const char* path, const int32_t* tokens, const int32_t* positions, size_t token_count,
            const float* logits, size_t logit_count) {
    KvCache* cache = KvCache::newest();
    if (cache == nullptr) return no_live_session();
    if (token_count > 0 && (tokens == nullptr || positions == nullptr)) {
        return Status::error(StatusCode::invalid_argument, "tokens and positions must not be NULL");
    }
    SequenceNotes notes;
    notes.token_ids.assign(tokens, tokens + token_count);
    notes.positions.assign(positions, positions + token_count);
    if (logits != nullptr) notes.logits.assign(logits, logits + logit_count);
    return cache->save(path == nullptr ? "" : path, notes);
}

// What the last load() gave out.
struct LoadedNotes {
    SequenceNotes notes;
    std::vector<shoal_llama_state_tensor> tensors;
};
LoadedNotes& loaded_notes() {
    static LoadedNotes loaded;
    return loaded;
}

Status load(const char* path, shoal_llama_saved* saved) {
    KvCache* cache = KvCache::newest();
    if (cache == nullptr) return no_live_session();
    if (saved == nullptr) {
        return Status::error(StatusCode::invalid_argument, "saved: must not be NULL");
    }
    LoadedNotes& loaded = loaded_notes();
    loaded = {};
    *saved = {};
    SHOAL_TRY(cache->load(path == nullptr ? "" : path, loaded.notes));
    for (const KvTensor* tensor : cache->tensors_in_state_order()) {
        loaded.tensors.push_back({static_cast<int32_t>(tensor->root->type), tensor->row_bytes()});
    }
    const SequenceNotes& notes = loaded.notes;
    saved->token_count = notes.slots.size();
    saved->tokens = notes.token_ids.empty() ? nullptr : notes.token_ids.data();
    saved->positions = notes.positions.data();
    saved->logit_count = notes.logits.size();
    saved->logits = notes.logits.empty() ? nullptr : notes.logits.data();
    saved->tensor_count = loaded.tensors.size();
    saved->tensors = loaded.tensors.data();
    return Status::ok();
}

Status load_done() {
    loaded_notes() = {};
    KvCache* cache = KvCache::newest();
    return cache == nullptr ? no_live_session() : cache->finish_load();
}

// The session's object, with the counters of notes at its end.
std::string stats_text(KvCache& cache) {
    std::string text = stats_to_json(cache.session()->stats());
    const NoteCounters& notes = note_counters();
    text.pop_back();
    return text + fmt::format(",\"tokens_noted\":{},\"tokens_missing\":{},\"tokens_unnoted\":{}}}",
                              notes.tokens_noted.load(), notes.tokens_missing.load(),
                              notes.tokens_unnoted.load());
}

}  // namespace

}  // namespace shoal::llama_cpp

namespace adapter = shoal::llama_cpp;

int shoal_llama_api_version(void) { return SHOAL_LLAMA_API_VERSION; }

const char* shoal_llama_configure(const char* text) {
    return adapter::error_text(adapter::set_next_config(text));
}

const char* shoal_llama_set_model(const char* fingerprint) {
    adapter::set_next_model(fingerprint);
    return nullptr;
}

const char* shoal_llama_reconfigure(const char* text) {
    return adapter::error_text(adapter::reconfigure(text));
}

size_t shoal_llama_config_toml(char* buffer, size_t size) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    if (cache != nullptr) {
        return adapter::copy_text(config_to_toml(cache->session()->config()), buffer, size);
    }
    const shoal::Result<shoal::Config> config = adapter::next_config();
    return adapter::copy_text(config ? config_to_toml(*config) : "", buffer, size);
}

const char* shoal_llama_next_config_toml(char* buffer, size_t size, size_t* length) {
    const shoal::Result<shoal::Config> config = adapter::next_config();
    const size_t whole = adapter::copy_text(config ? config_to_toml(*config) : "", buffer, size);
    if (length != nullptr) *length = whole;
    return adapter::error_text(config.status());
}

size_t shoal_llama_stats_json(char* buffer, size_t size) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    return adapter::copy_text(cache == nullptr ? "" : adapter::stats_text(*cache), buffer, size);
}

size_t shoal_llama_describe(char* buffer, size_t size) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    return adapter::copy_text(cache == nullptr ? "" : cache->describe(), buffer, size);
}

void shoal_llama_reset_stats(void) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    if (cache != nullptr) cache->session()->reset_stats();
}

const char* shoal_llama_trace(uint32_t event_capacity) {
    return adapter::error_text(adapter::start_trace(event_capacity));
}

size_t shoal_llama_read_trace(shoal_llama_trace_event* events, size_t capacity,
                              uint64_t* dropped) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    if (dropped != nullptr) *dropped = cache == nullptr ? 0 : cache->session()->trace_dropped();
    size_t count = 0;
    shoal::TraceEvent part[64];
    while (cache != nullptr && count < capacity) {
        const size_t room = std::min<size_t>(std::size(part), capacity - count);
        const size_t got = cache->session()->read_trace({part, room});
        for (size_t i = 0; i < got; ++i) {
            events[count++] = {part[i].begin_ns, part[i].end_ns, part[i].layer,
                               static_cast<uint32_t>(part[i].stage)};
        }
        if (got < room) break;
    }
    return count;
}

const char* shoal_llama_trace_stage_name(uint32_t stage) {
    if (stage >= shoal::kTraceStageCount) return "unknown";
    return shoal::trace_stage_name(static_cast<shoal::TraceStage>(stage));
}

const char* shoal_llama_write_profile(const char* path, const char* source) {
    return adapter::error_text(adapter::write_profile(path, source));
}

int64_t shoal_llama_attended(uint32_t layer, uint32_t query, uint32_t kv_head, uint32_t* slots,
                             size_t capacity) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    if (cache == nullptr) return -1;
    const std::vector<uint32_t> attended =
        cache->session()->attended_slots(shoal::LayerId{layer}, query, kv_head);
    const size_t count = slots == nullptr ? 0 : std::min(capacity, attended.size());
    std::copy_n(attended.begin(), count, slots);
    return static_cast<int64_t>(attended.size());
}

const char* shoal_llama_note_tokens(const int32_t* tokens, const int32_t* positions,
                                    const int32_t* sequences, size_t count) {
    return adapter::error_text(adapter::note(tokens, positions, sequences, count));
}

int64_t shoal_llama_attended_rows(uint32_t layer, uint32_t query, uint32_t kv_head,
                                  shoal_llama_row* rows, size_t capacity) {
    adapter::KvCache* cache = adapter::KvCache::newest();
    if (cache == nullptr) return -1;
    const std::vector<uint32_t> slots =
        cache->session()->attended_slots(shoal::LayerId{layer}, query, kv_head);
    const size_t count = rows == nullptr ? 0 : std::min(capacity, slots.size());
    for (size_t i = 0; i < count; ++i) {
        const adapter::NotedToken noted = cache->noted(query, slots[i]);
        rows[i] = {slots[i], noted.token, noted.position, noted.sequence};
    }
    return static_cast<int64_t>(slots.size());
}

const char* shoal_llama_save_rows(const char* path, const int32_t* tokens, const int32_t* positions,
                             size_t token_count, const float* logits, size_t logit_count) {
    return adapter::error_text(
        adapter::save(path, tokens, positions, token_count, logits, logit_count));
}

const char* shoal_llama_load_rows(const char* path, shoal_llama_saved* saved) {
    return adapter::error_text(adapter::load(path, saved));
}

const char* shoal_llama_load_rows_done(void) { return adapter::error_text(adapter::load_done()); }

void shoal_llama_set_delegate(int on) { adapter::set_delegate(on != 0); }

const char* shoal_llama_last_error(void) {
    thread_local std::string text;
    text = adapter::last_failure();
    return text.c_str();
}

namespace shoal::llama_cpp {

void* side_call(const char* name) {
    struct Entry {
        const char* name;
        void* function;
    };
#define SHOAL_LLAMA_ENTRY(function) {#function, reinterpret_cast<void*>(&(function))}
    static const Entry entries[] = {
        SHOAL_LLAMA_ENTRY(shoal_llama_api_version),  SHOAL_LLAMA_ENTRY(shoal_llama_configure),
        SHOAL_LLAMA_ENTRY(shoal_llama_set_model),    SHOAL_LLAMA_ENTRY(shoal_llama_reconfigure),
        SHOAL_LLAMA_ENTRY(shoal_llama_config_toml),  SHOAL_LLAMA_ENTRY(shoal_llama_stats_json),
        SHOAL_LLAMA_ENTRY(shoal_llama_describe),     SHOAL_LLAMA_ENTRY(shoal_llama_reset_stats),
        SHOAL_LLAMA_ENTRY(shoal_llama_trace),        SHOAL_LLAMA_ENTRY(shoal_llama_read_trace),
        SHOAL_LLAMA_ENTRY(shoal_llama_trace_stage_name),
        SHOAL_LLAMA_ENTRY(shoal_llama_write_profile), SHOAL_LLAMA_ENTRY(shoal_llama_attended),
        SHOAL_LLAMA_ENTRY(shoal_llama_next_config_toml),
        SHOAL_LLAMA_ENTRY(shoal_llama_note_tokens),  SHOAL_LLAMA_ENTRY(shoal_llama_attended_rows),
        SHOAL_LLAMA_ENTRY(shoal_llama_save_rows),         SHOAL_LLAMA_ENTRY(shoal_llama_load_rows),
        SHOAL_LLAMA_ENTRY(shoal_llama_load_rows_done),
        SHOAL_LLAMA_ENTRY(shoal_llama_set_delegate), SHOAL_LLAMA_ENTRY(shoal_llama_last_error),
    };
#undef SHOAL_LLAMA_ENTRY
    for (const Entry& entry : entries) {
        if (std::strcmp(entry.name, name) == 0) return entry.function;
    }
    return nullptr;
}

}  // namespace shoal::llama_cpp
