/* What a host program can say to Shoal's ggml device, libggml-shoal.so, besides what llama.cpp
 * says by itself. Nothing here is needed to run: a stock program loads the plugin and decodes.
 *
 * Each function is reached through ggml, under its own name:
 *
 *     ggml_backend_reg_t reg = ggml_backend_load("libggml-shoal.so");
 *     shoal_llama_configure_t configure = (shoal_llama_configure_t)
 *         ggml_backend_reg_get_proc_address(reg, "shoal_llama_configure");
 *     const char* error = configure("[budget]\nrows = 512\n");
 *
 * They are exported under the same names too.
 *
 * "The live session" is that of the llama_context made last among those that still exist and whose
 * KV cache is here. It is made when the context reserves its graphs, that is inside
 * llama_init_from_model.
 *
 * Functions that return `const char*` return NULL when all went well, else one sentence for a
 * person, valid until the next call on the same thread. Thread safety: not while a llama_decode of
 * the context is running.
 */
#ifndef SHOAL_LLAMA_H
#define SHOAL_LLAMA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SHOAL_LLAMA_API
#else
#define SHOAL_LLAMA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function changes its meaning or leaves. */
#define SHOAL_LLAMA_API_VERSION 1

SHOAL_LLAMA_API int shoal_llama_api_version(void);

/* Configuration of contexts created afterwards: TOML or JSON text over the defaults. Replaces what
 * SHOAL_CONFIG named (that file is then not read) and what an earlier call gave. NULL takes both
 * back. */
SHOAL_LLAMA_API const char* shoal_llama_configure(const char* text);

/* Identity of the model that contexts created afterwards run, e.g. "llama 135M Q4_1, 272 tensors".
 * Written into profiles and compared with theirs. NULL or "": unknown, not compared. */
SHOAL_LLAMA_API const char* shoal_llama_set_model(const char* fingerprint);

/* Changes the policy of the live session: TOML or JSON text over its present configuration. Keys
 * that would change what is stored are refused. */
SHOAL_LLAMA_API const char* shoal_llama_reconfigure(const char* text);

/* The configuration of the live session, or without one that of the next context, as TOML. Copies
 * at most size - 1 bytes and a 0 into `buffer`; returns the length of the whole text. */
SHOAL_LLAMA_API size_t shoal_llama_config_toml(char* buffer, size_t size);

/* The configuration that the next context will get, as TOML, copied as above. `length`: of the
 * whole text. Fails where a context would, e.g. when SHOAL_CONFIG names a file that is missing. */
SHOAL_LLAMA_API const char* shoal_llama_next_config_toml(char* buffer, size_t size,
                                                         size_t* length);

/* Counters of the live session as one JSON object (shoal/stats.hpp, and those of noted batches),
 * and the line that was logged at creation. Copied and returned as above; 0 when there is no live
 * session. */
SHOAL_LLAMA_API size_t shoal_llama_stats_json(char* buffer, size_t size);
SHOAL_LLAMA_API size_t shoal_llama_describe(char* buffer, size_t size);
SHOAL_LLAMA_API void shoal_llama_reset_stats(void);

/* Events of the live session's steps, for a picture of single steps: at most `event_capacity` (up
 * to 4,194,304, 24 bytes each) that nobody has read are kept; 0 ends it. Times are nanoseconds of
 * the monotonic clock. read_trace moves at most `capacity` events out, in the order in which they
 * ended, and returns how many; `dropped` counts those that found no room. */
typedef struct shoal_llama_trace_event {
    uint64_t begin_ns;
    uint64_t end_ns;
    uint32_t layer;
    uint32_t stage; /* shoal_llama_trace_stage_name */
} shoal_llama_trace_event;
SHOAL_LLAMA_API const char* shoal_llama_trace(uint32_t event_capacity);
SHOAL_LLAMA_API size_t shoal_llama_read_trace(shoal_llama_trace_event* events, size_t capacity,
                                              uint64_t* dropped);
/* "step", which holds the others; "append", "score", "select", "attend", "exact", "fetch",
 * "ahead". */
SHOAL_LLAMA_API const char* shoal_llama_trace_stage_name(uint32_t stage);

/* Writes the channel statistics of the live session. `source` names the text they were learnt
 * from. */
SHOAL_LLAMA_API const char* shoal_llama_write_profile(const char* path, const char* source);

/* Slots that the last sparse attention of a layer attended for one query and KV head, ascending.
 * Copies at most `capacity` of them; returns how many there are, or -1 (shoal_llama_last_error). */
SHOAL_LLAMA_API int64_t shoal_llama_attended(uint32_t layer, uint32_t query, uint32_t kv_head,
                                             uint32_t* slots, size_t capacity);

/* Tells which tokens the calling thread's next llama_decode brings, in the order of its batch, so
 * that Shoal knows what lies in which slot: llama.cpp does not say. `tokens`: NULL for embeddings;
 * `sequences`: the first sequence of each. Nothing that Shoal computes depends on it. Tokens that
 * were noted and do not come, and those that come without having been noted, are counted
 * (tokens_missing, tokens_unnoted). Refuses negative numbers; shoal_llama_note_batch
 * (shoal_llama_host.h) checks more. */
SHOAL_LLAMA_API const char* shoal_llama_note_tokens(const int32_t* tokens,
                                                    const int32_t* positions,
                                                    const int32_t* sequences, size_t count);

/* As shoal_llama_attended, with what was noted of each slot; -1 where nothing was, as after the
 * restore of a state. */
typedef struct shoal_llama_row {
    uint32_t slot;
    int32_t token;
    int32_t position; /* follows context shifts */
    int32_t sequence; /* in which it was decoded: copies of a sequence share slots */
} shoal_llama_row;
SHOAL_LLAMA_API int64_t shoal_llama_attended_rows(uint32_t layer, uint32_t query, uint32_t kv_head,
                                                  shoal_llama_row* rows, size_t capacity);

/* Writes what the live session holds to a file that any context of the same model and cache types
 * can load, whatever its length and configuration but for host.rows: for contexts with one
 * sequence, whose tokens these are. `positions`: of each token, 0, 1, 2 and so on. `logits`: of the
 * next token, or NULL. `path` holds the old file or the whole new one, whatever happens.
 * shoal_llama_save_sequence (shoal_llama_host.h) checks more. */
SHOAL_LLAMA_API const char* shoal_llama_save_rows(const char* path, const int32_t* tokens,
                                             const int32_t* positions, size_t token_count,
                                             const float* logits, size_t logit_count);

/* Fills the live session, empty so far, from a file. llama.cpp must be told which of its cells hold
 * tokens: by a state of one sequence with these tokens in its cells, of whose rows nothing is read,
 * then shoal_llama_load_rows_done. shoal_llama_load_sequence (shoal_llama_host.h) does both. A file
 * that is refused leaves everything as it was. The arrays are valid until
 * shoal_llama_load_rows_done. */
typedef struct shoal_llama_state_tensor {
    int32_t type; /* ggml_type */
    uint64_t row_bytes;
} shoal_llama_state_tensor;
typedef struct shoal_llama_saved {
    size_t token_count;
    const int32_t* tokens; /* NULL: not known */
    const int32_t* positions;
    size_t logit_count; /* 0: none */
    const float* logits;
    size_t tensor_count; /* K of all layers, then V of all layers */
    const shoal_llama_state_tensor* tensors;
} shoal_llama_saved;
SHOAL_LLAMA_API const char* shoal_llama_load_rows(const char* path, shoal_llama_saved* saved);
SHOAL_LLAMA_API const char* shoal_llama_load_rows_done(void);

/* For tests only. Not 0: attention of every context is handed to ggml's own CPU kernel, over rows
 * read back out of Shoal. Slow; exists to show that the rows are the ones stock llama.cpp holds. */
SHOAL_LLAMA_API void shoal_llama_set_delegate(int on);

/* Why the device refused or failed last, e.g. after llama_init_from_model returned NULL or
 * llama_decode an error. "" when nothing did. Valid until the next call on the same thread. */
SHOAL_LLAMA_API const char* shoal_llama_last_error(void);

typedef int (*shoal_llama_api_version_t)(void);
typedef const char* (*shoal_llama_configure_t)(const char* text);
typedef const char* (*shoal_llama_set_model_t)(const char* fingerprint);
typedef const char* (*shoal_llama_reconfigure_t)(const char* text);
typedef size_t (*shoal_llama_config_toml_t)(char* buffer, size_t size);
typedef const char* (*shoal_llama_next_config_toml_t)(char* buffer, size_t size, size_t* length);
typedef size_t (*shoal_llama_stats_json_t)(char* buffer, size_t size);
typedef size_t (*shoal_llama_describe_t)(char* buffer, size_t size);
typedef void (*shoal_llama_reset_stats_t)(void);
typedef const char* (*shoal_llama_trace_t)(uint32_t event_capacity);
typedef size_t (*shoal_llama_read_trace_t)(shoal_llama_trace_event* events, size_t capacity,
                                           uint64_t* dropped);
typedef const char* (*shoal_llama_trace_stage_name_t)(uint32_t stage);
typedef const char* (*shoal_llama_write_profile_t)(const char* path, const char* source);
typedef int64_t (*shoal_llama_attended_t)(uint32_t layer, uint32_t query, uint32_t kv_head,
                                          uint32_t* slots, size_t capacity);
typedef const char* (*shoal_llama_note_tokens_t)(const int32_t* tokens, const int32_t* positions,
                                                 const int32_t* sequences, size_t count);
typedef int64_t (*shoal_llama_attended_rows_t)(uint32_t layer, uint32_t query, uint32_t kv_head,
                                               shoal_llama_row* rows, size_t capacity);
typedef const char* (*shoal_llama_save_rows_t)(const char* path, const int32_t* tokens,
                                          const int32_t* positions, size_t token_count,
                                          const float* logits, size_t logit_count);
typedef const char* (*shoal_llama_load_rows_t)(const char* path, shoal_llama_saved* saved);
typedef const char* (*shoal_llama_load_rows_done_t)(void);
typedef void (*shoal_llama_set_delegate_t)(int on);
typedef const char* (*shoal_llama_last_error_t)(void);

#ifdef __cplusplus
}
#endif

#endif /* SHOAL_LLAMA_H */
