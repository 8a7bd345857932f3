/* For programs that embed llama.cpp and keep its KV cache in Shoal: what can be wrong is said in
 * one sentence before the first token, and Shoal learns what llama.cpp does not tell its devices.
 * Library: libshoal_llama_host.so, beside libggml-shoal.so, which it loads. Example:
 * examples/simple.cpp.
 *
 *     ggml_backend_dev_t devices[2] = {NULL, NULL};
 *     const char* error = shoal_llama_load(NULL, &devices[0]);
 *     model_params.devices = devices;
 *     if (!error) error = shoal_llama_preflight(path, &model_params, &context_params);
 *     ... llama_model_load_from_file, llama_init_from_model ...
 *     for (;;) {
 *         error = shoal_llama_note_batch(context, &batch);
 *         ... llama_decode(context, batch) ...
 *     }
 *
 * A program may leave out any of these calls: the device refuses by itself what it cannot serve,
 * with the same reasons but later, as llama_init_from_model or llama_decode fails. Calls for more
 * (configuration, traces, profiles) are in shoal_llama.h.
 *
 * Errors: functions that return `const char*` return NULL when all went well, else one sentence
 * that names the field, its value and what is allowed. It is valid until the next call of this
 * library on the same thread; nothing is to be freed. Arguments are only read, and not kept.
 * Thread safety: any thread; of calls about one llama_context, one at a time, and none while a
 * llama_decode of it is running.
 */
#ifndef SHOAL_LLAMA_HOST_H
#define SHOAL_LLAMA_HOST_H

#include <stddef.h>
#include <stdint.h>

#include <llama.h>

#include "shoal_llama.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Loads Shoal's device into ggml, once, and gives it: for llama_model_params.devices.
 * `plugin_path`: libggml-shoal.so, or NULL for that beside this library. A second copy from another
 * file is refused: two would not know of each other's caches. */
SHOAL_LLAMA_API const char* shoal_llama_load(const char* plugin_path, ggml_backend_dev_t* device);

/* Whether the model, loaded and run with these parameters, will be served: reads the header of the
 * GGUF file, loads nothing, and decides as `shoal run` and `shoal plan` do. Refused are
 *   a file that is missing, cut or no GGUF; an architecture, or a key of the header, that Shoal
 *       does not serve (recurrent and hybrid models, MLA, layers that share a KV cache, ALiBi,
 *       capped logits, attention sinks, ...);
 *   parameters that keep the KV cache out of Shoal or bring it in another form: devices other than
 *       Shoal's alone, n_gpu_layers below all layers, offload_kqv = false, flash attention off,
 *       cache types other than f16, bf16 and f32;
 *   a configuration that the next context would refuse (SHOAL_CONFIG, shoal_llama_configure), and
 *       a profile of another model;
 *   a context that does not fit into memory beside the weights, with the largest that does.
 * n_ctx = 0 is, as in llama.cpp, what the model was trained with. kv_overrides are not looked at.
 */
SHOAL_LLAMA_API const char* shoal_llama_preflight(const char* model_path,
                                                  const struct llama_model_params* model_params,
                                                  const struct llama_context_params*
                                                      context_params);

/* Tells Shoal the tokens, positions and sequences of the batch that the calling thread gives to
 * llama_decode next. Refuses, with the field, what llama_decode would answer with -1: token ids and
 * sequence ids out of range, positions that are negative or do not follow. (Which sequences may
 * share tokens is left to llama_decode.) Fields that are NULL
 * are taken as llama_decode takes them. A batch that llama_decode then refuses (a full cache)
 * is noted again with its next try; tokens that were noted and did not come are counted. */
SHOAL_LLAMA_API const char* shoal_llama_note_batch(struct llama_context* context,
                                                   const struct llama_batch* batch);

/* Saves sequence 0 of a context that holds nothing else: tokens [0, token_count), which are all of
 * its tokens, their positions counting from 0. `logits`: those of the next token,
 * llama_get_logits_ith(context, -1), so that whoever loads the file can go on without decoding
 * anything; or NULL. The file serves every context of the same model and cache types, whatever its
 * length and Shoal's configuration. `path` holds the old file or the whole new one, whatever
 * happens, with mode 0600. The context made last. Models with a sliding window are refused: they
 * have two caches. */
SHOAL_LLAMA_API const char* shoal_llama_save_sequence(struct llama_context* context,
                                                      const char* path, const llama_token* tokens,
                                                      size_t token_count, const float* logits);

/* Makes a saved sequence sequence 0 of a context that holds nothing yet, in Shoal and in llama.cpp:
 * decoding goes on at position *token_count. Its rows take no memory beside Shoal's own. Copies at
 * most `capacity` tokens (NULL: none) and, when `logits` is not NULL, one float per token of the
 * vocabulary; a file without them is refused then. A refused file leaves the context as it was:
 * empty. The context made last. */
SHOAL_LLAMA_API const char* shoal_llama_load_sequence(struct llama_context* context,
                                                      const char* path, llama_token* tokens,
                                                      size_t capacity, size_t* token_count,
                                                      float* logits);

/* What the last sparse attention of a layer read for one query and KV head: slots, ascending, with
 * the position, token and sequence that were noted of each. Copies at most `capacity` rows; returns
 * how many there are, or -1 when no context has its KV cache in Shoal. The context made last. */
SHOAL_LLAMA_API int64_t shoal_llama_rows_read(uint32_t layer, uint32_t query, uint32_t kv_head,
                                              shoal_llama_row* rows, size_t capacity);

/* Counters of the context made last, as one JSON object: those of shoal/stats.hpp, and of the
 * process tokens_noted, tokens_missing (noted, did not come) and tokens_unnoted (came without a
 * note). Copies at most size - 1 bytes and a 0 into `buffer`, which may be NULL; returns the length
 * of the whole text, 0 when no context has its KV cache in Shoal. */
SHOAL_LLAMA_API size_t shoal_llama_stats(char* buffer, size_t size);

#ifdef __cplusplus
}
#endif

#endif /* SHOAL_LLAMA_HOST_H */
