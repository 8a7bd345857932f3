// shoal_llama_save_sequence and shoal_llama_load_sequence: a context goes on from a file as the one
// that wrote it would, and a refused file leaves a context that works.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "llama_support.hpp"
#include "runtime/engines/llama_cpp/shoal_llama_host.h"

namespace shoal::testing {
namespace {

using ::testing::HasSubstr;

constexpr const char* kSparse =
    "[budget]\nrows = 48\ndense_below = 1\ndense_layers = []\n[profile]\ntokens = 256\n"
    "[safety]\nsinks = 4\nwindow = 16\n";
constexpr size_t kPrompt = 320;

class SavedSequence : public ::testing::Test {
protected:
    void SetUp() override { ASSERT_EQ(plugin().configure(kSparse), nullptr); }
    ~SavedSequence() override {
        plugin().configure(nullptr);
        std::remove(path_.c_str());
    }

    // A context that holds the prompt, saved; `logits_` are those of the next token.
    Context saved_context() {
        Context context = make_context(Engine::shoal, {});
        logits_ = decode(context.get(), prompt_, 0, kPrompt).back();
        EXPECT_EQ(save(context.get(), prompt_.size()), "");
        return context;
    }
    std::string save(llama_context* context, size_t count) {
        const char* error = shoal_llama_save_sequence(context, path_.c_str(), prompt_.data(),
                                                      count, logits_.data());
        return error == nullptr ? "" : error;
    }
    std::string load(llama_context* context, float* logits = nullptr) {
        size_t count = 0;
        tokens_.assign(kPrompt, -1);
        const char* error = shoal_llama_load_sequence(context, path_.c_str(), tokens_.data(),
                                                      tokens_.size(), &count, logits);
        EXPECT_EQ(count, error == nullptr ? kPrompt : 0);
        return error == nullptr ? "" : error;
    }
    void flip_last_page() {
        std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(-4096, std::ios::end);
        file.put('\x55');
    }

    const std::vector<llama_token> all_ = novel_tokens(kPrompt + 40);
    const std::vector<llama_token> prompt_ = slice(all_, 0, kPrompt);
    const std::vector<llama_token> next_ = slice(all_, kPrompt, kPrompt + 40);
    std::string path_ = ::testing::TempDir() + "shoal_sequence_" + std::to_string(getpid());
    std::vector<float> logits_;
    std::vector<llama_token> tokens_;
};

std::vector<uint8_t> state_of(llama_context* context) {
    std::vector<uint8_t> state(llama_state_seq_get_size(context, 0));
    state.resize(llama_state_seq_get_data(context, state.data(), state.size(), 0));
    return state;
}

TEST_F(SavedSequence, GoesOnAsTheContextThatSavedIt) {
    Context first = saved_context();
    const Context second = make_context(Engine::shoal, {.n_ctx = 512, .n_ubatch = 64});
    std::vector<float> logits(logits_.size());
    ASSERT_EQ(load(second.get(), logits.data()), "");
    EXPECT_EQ(tokens_, prompt_);
    EXPECT_EQ(logits, logits_);
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(second.get()), 0),
              static_cast<llama_pos>(kPrompt) - 1);
    // llama.cpp's own state of the two, cells and rows, is the same byte for byte.
    EXPECT_EQ(state_of(second.get()), state_of(first.get()));
    const Logits here = decode_singly(second.get(), next_, kPrompt);
    EXPECT_EQ(count_different(decode_singly(first.get(), next_, kPrompt), here), 0U);
}

TEST_F(SavedSequence, ARefusedFileLeavesAContextThatWorks) {
    Context first = saved_context();
    const Logits want = decode_singly(first.get(), next_, kPrompt);
    first.reset();
    flip_last_page();
    const Context second = make_context(Engine::shoal, {});
    EXPECT_THAT(load(second.get()), HasSubstr("its checksum differs"));
    EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(second.get()), 0), -1);
    decode(second.get(), prompt_, 0, kPrompt);
    EXPECT_EQ(count_different(want, decode_singly(second.get(), next_, kPrompt)), 0U);
}

TEST_F(SavedSequence, WhatDoesNotFitIsRefusedByName) {
    Context first = saved_context();
    EXPECT_THAT(load(first.get()), HasSubstr("holds tokens already"));
    EXPECT_THAT(save(first.get(), kPrompt - 1),
                HasSubstr("token_count = 319: sequence 0 holds positions 0 to 319"));
    first.reset();
    Context other = make_context(Engine::shoal, {.type_k = GGML_TYPE_BF16});
    EXPECT_THAT(load(other.get()), HasSubstr("rows.k = f16: this session has bf16"));
    other = make_context(Engine::shoal, {.n_ctx = 256});
    EXPECT_THAT(load(other.get()),
                HasSubstr("slot_end = 320: this session has slots_per_store = 256"));
    other = make_context(Engine::shoal, {.n_seq_max = 2});
    EXPECT_THAT(load(other.get()), HasSubstr("2 sequences with caches of their own"));
    other = make_context(Engine::shoal, {});
    EXPECT_STREQ(shoal_llama_load_sequence(other.get(), nullptr, nullptr, 0, nullptr, nullptr),
                 "path: must not be NULL");
    ASSERT_EQ(load(other.get()), "");
}

TEST_F(SavedSequence, PositionsThatLlamaCppWouldNotTakeAreRefused) {
    const auto save_rows = reinterpret_cast<shoal_llama_save_rows_t>(
        ggml_backend_reg_get_proc_address(plugin().registry, "shoal_llama_save_rows"));
    Context first = saved_context();
    for (const int32_t bad : {-1, 0, 7, INT32_MAX}) {
        std::vector<int32_t> positions(kPrompt);
        std::iota(positions.begin(), positions.end(), 0);
        positions[5] = bad;
        ASSERT_EQ(save_rows(path_.c_str(), prompt_.data(), positions.data(), kPrompt, nullptr, 0),
                  nullptr);
        const Context second = make_context(Engine::shoal, {});
        EXPECT_THAT(load(second.get()),
                    HasSubstr("positions[5] = " + std::to_string(bad) + ": must be 5"));
        // save_rows() is of the newest context.
        first = saved_context();
    }
}

TEST_F(SavedSequence, LogitsAreOptional) {
    Context first = make_context(Engine::shoal, {});
    decode(first.get(), prompt_, 0, kPrompt);
    ASSERT_EQ(shoal_llama_save_sequence(first.get(), path_.c_str(), prompt_.data(), kPrompt,
                                        nullptr),
              nullptr);
    const Context second = make_context(Engine::shoal, {});
    std::vector<float> logits(
        static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model(Engine::shoal)))));
    EXPECT_THAT(load(second.get(), logits.data()), HasSubstr("logits of 0 tokens"));
    EXPECT_EQ(load(second.get()), "");
}

}  // namespace
}  // namespace shoal::testing
