// llama.cpp's simple example with its KV cache in Shoal; the calls that this takes begin with
// shoal_llama_.  usage: simple model.gguf [prompt]
#include <cstdio>
#include <string>
#include <vector>

#include "runtime/engines/llama_cpp/shoal_llama_host.h"

static int fail(const char* reason) {
    fprintf(stderr, "simple: %s\n", reason);
    return 1;
}

int main(int argc, char** argv) {
    if (argc < 2) return fail("usage: simple model.gguf [prompt]");
    const std::string prompt = argc > 2 ? argv[2] : "Hello my name is";
    const int new_tokens = 32;
    llama_log_set([](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);

    ggml_backend_dev_t devices[2] = {nullptr, nullptr};
    if (const char* error = shoal_llama_load(nullptr, &devices[0])) return fail(error);
    llama_model_params model_params = llama_model_default_params();
    model_params.devices = devices;
    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = 4096;
    const char* refusal = shoal_llama_preflight(argv[1], &model_params, &context_params);
    if (refusal != nullptr) return fail(refusal);

    llama_model* model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr) return fail("the model cannot be loaded");
    const llama_vocab* vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(prompt.size() + 2);
    const int count = llama_tokenize(vocab, prompt.data(), static_cast<int>(prompt.size()),
                                     tokens.data(), static_cast<int>(tokens.size()), true, true);
    if (count < 1) return fail("the prompt cannot be tokenised");
    llama_context* context = llama_init_from_model(model, context_params);
    if (context == nullptr) return fail("no context");
    llama_sampler* sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(sampler, llama_sampler_init_greedy());

    printf("%s", prompt.c_str());
    llama_token token = 0;
    llama_batch batch = llama_batch_get_one(tokens.data(), count);
    for (int i = 0; i < new_tokens; ++i) {
        if (const char* error = shoal_llama_note_batch(context, &batch)) return fail(error);
        if (llama_decode(context, batch) != 0) return fail("llama_decode failed");
        token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocab, token)) break;
        char piece[128];
        const int length = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, true);
        if (length > 0) printf("%.*s", length, piece);
        batch = llama_batch_get_one(&token, 1);
    }
    std::string stats(shoal_llama_stats(nullptr, 0), '\0');
    shoal_llama_stats(stats.data(), stats.size() + 1);
    printf("\n%s\n", stats.c_str());

    llama_sampler_free(sampler);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
