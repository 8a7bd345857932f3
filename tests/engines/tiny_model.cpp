#include "tiny_model.hpp"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ostream>
#include <random>

#include "gguf.h"

namespace shoal::testing {

namespace {

using Gguf = std::unique_ptr<gguf_context, decltype(&gguf_free)>;
using Ggml = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

class Writer {
public:
    Writer(const TinyShape& shape, uint64_t seed)
        : shape_(shape), random_(seed), gguf_(gguf_init_empty(), &gguf_free),
          tensors_(ggml_init({size_t{64} << 20, nullptr, false}), &ggml_free) {}

    void write(const std::string& path) {
        keys();
        const uint32_t embedding = shape_.q_heads * shape_.head_dim;
        matrix("token_embd", embedding, shape_.vocabulary, 1.0F);
        vector("output_norm.weight", embedding, 1.0F);
        matrix("output", embedding, shape_.vocabulary, 2.0F);
        for (uint32_t l = 0; l < shape_.layers; ++l) layer("blk." + std::to_string(l) + ".");
        EXPECT_TRUE(gguf_write_to_file(gguf_.get(), path.c_str(), false)) << path;
    }

private:
    void keys() {
        const std::string name = shape_.architecture;
        const auto number = [&](const char* key, uint32_t value) {
            gguf_set_val_u32(gguf_.get(), (name + "." + key).c_str(), value);
        };
        gguf_set_val_str(gguf_.get(), "general.architecture", name.c_str());
        gguf_set_val_str(gguf_.get(), "general.name", "tiny");
        gguf_set_val_str(gguf_.get(), "tokenizer.ggml.model", "no_vocab");
        number("vocab_size", shape_.vocabulary);
        number("block_count", shape_.layers);
        number("context_length", 4096);
        number("embedding_length", shape_.q_heads * shape_.head_dim);
        number("feed_forward_length", shape_.ff);
        number("attention.head_count", shape_.q_heads);
        number("attention.head_count_kv", shape_.kv_heads);
        number("attention.key_length", shape_.head_dim);
        number("attention.value_length", shape_.head_dim);
        number("rope.dimension_count", shape_.head_dim);
        if (shape_.window != 0) number("attention.sliding_window", shape_.window);
        gguf_set_val_f32(gguf_.get(), (name + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5F);
    }

    void layer(const std::string& block) {
        const uint32_t q = shape_.q_heads * shape_.head_dim;
        const uint32_t kv = shape_.kv_heads * shape_.head_dim;
        const bool is_gemma = std::strcmp(shape_.architecture, "gemma3") == 0;
        const bool has_norms = is_gemma || std::strcmp(shape_.architecture, "qwen3") == 0;
        vector(block + "attn_norm.weight", q, 1.0F);
        matrix(block + "attn_q", q, q, 2.5F);
        matrix(block + "attn_k", q, kv, 2.5F);
        matrix(block + "attn_v", q, kv, 1.0F);
        matrix(block + "attn_output", q, q, 1.0F);
        if (std::strcmp(shape_.architecture, "qwen2") == 0) {
            vector(block + "attn_q.bias", q, 0.5F);
            vector(block + "attn_k.bias", kv, 0.5F);
            vector(block + "attn_v.bias", kv, 0.5F);
        }
        if (has_norms) {
            vector(block + "attn_q_norm.weight", shape_.head_dim, 2.5F);
            vector(block + "attn_k_norm.weight", shape_.head_dim, 2.5F);
        }
        if (is_gemma) {
            vector(block + "post_attention_norm.weight", q, 1.0F);
            vector(block + "post_ffw_norm.weight", q, 1.0F);
        }
        vector(block + "ffn_norm.weight", q, 1.0F);
        matrix(block + "ffn_gate", q, shape_.ff, 1.0F);
        matrix(block + "ffn_up", q, shape_.ff, 1.0F);
        matrix(block + "ffn_down", shape_.ff, q, 1.0F);
    }

    // Normal numbers; products with a vector of unit variance have variance gain^2.
    void matrix(const std::string& name, uint32_t columns, uint32_t rows, float gain) {
        ggml_tensor* tensor = ggml_new_tensor_2d(tensors_.get(), GGML_TYPE_F32, columns, rows);
        std::normal_distribution<float> normal(0.0F,
                                               gain / std::sqrt(static_cast<float>(columns)));
        fill(tensor, name + ".weight", [&] { return normal(random_); });
    }
    void vector(const std::string& name, uint32_t size, float scale) {
        ggml_tensor* tensor = ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_F32, size);
        std::uniform_real_distribution<float> around(0.8F * scale, 1.2F * scale);
        fill(tensor, name, [&] { return around(random_); });
    }
    template <typename Draw>
    void fill(ggml_tensor* tensor, const std::string& name, Draw draw) {
        ggml_set_name(tensor, name.c_str());
        auto* values = static_cast<float*>(tensor->data);
        for (int64_t i = 0; i < ggml_nelements(tensor); ++i) values[i] = draw();
        gguf_add_tensor(gguf_.get(), tensor);
    }

    TinyShape shape_;
    std::mt19937_64 random_;
    Gguf gguf_;
    Ggml tensors_;
};

}  // namespace

void PrintTo(const TinyShape& shape, std::ostream* out) {
    *out << shape.architecture << ", " << shape.q_heads << " query and " << shape.kv_heads
         << " KV heads x " << shape.head_dim;
}

std::string write_tiny_model(const TinyShape& shape, uint64_t seed) {
    const std::string path = ::testing::TempDir() + "shoal_tiny_" + shape.architecture + "_" +
                             std::to_string(getpid()) + ".gguf";
    Writer(shape, seed).write(path);
    return path;
}

Model load_model(Engine engine, const std::string& path) {
    ggml_backend_dev_t devices[] = {engine == Engine::stock ? nullptr : plugin().device, nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices;
    return {llama_model_load_from_file(path.c_str(), params), &llama_model_free};
}

}  // namespace shoal::testing
