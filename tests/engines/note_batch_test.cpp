// shoal_llama_note_batch: bad batches are refused with the field, good ones tell which token,
// position and sequence lies in each slot that attention reads.
#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/engines/llama_cpp/shoal_llama_host.h"
#include "llama_support.hpp"

namespace shoal::testing {

namespace {

using ::testing::HasSubstr;

constexpr const char* kSparse =
    "[budget]\nrows = 48\ndense_below = 1\ndense_layers = []\n[profile]\ntokens = 256\n"
    "[safety]\nsinks = 4\nwindow = 16\n";

// A batch of its own arrays, sequence after sequence.
class Batch {
public:
    explicit Batch(int32_t capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    Batch& add(llama_token token, llama_pos position, llama_seq_id sequence = 0) {
        const int32_t i = batch_.n_tokens++;
        batch_.token[i] = token;
        batch_.pos[i] = position;
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = sequence;
        if (i > 0) batch_.logits[i - 1] = 0;
        batch_.logits[i] = 1;
        return *this;
    }
    Batch& add(const std::vector<llama_token>& tokens, llama_pos first, llama_seq_id sequence = 0) {
        for (const llama_token token : tokens) add(token, first++, sequence);
        return *this;
    }
    llama_batch& operator*() { return batch_; }
    llama_batch* operator->() { return &batch_; }

private:
    llama_batch batch_;
};

uint64_t counter(const char* name) {
    std::string text(shoal_llama_stats(nullptr, 0), '\0');
    shoal_llama_stats(text.data(), text.size() + 1);
    return nlohmann::json::parse(text)[name];
}

std::vector<shoal_llama_row> rows_read(uint32_t layer, uint32_t query = 0) {
    std::vector<shoal_llama_row> rows(2048);
    const int64_t count = shoal_llama_rows_read(layer, query, 0, rows.data(), rows.size());
    EXPECT_GT(count, 0);
    rows.resize(static_cast<size_t>(std::max<int64_t>(count, 0)));
    return rows;
}

class NoteBatch : public ::testing::Test {
protected:
    ~NoteBatch() override { plugin().configure(nullptr); }

    void make(const ContextOptions& options) {
        ASSERT_EQ(plugin().configure(kSparse), nullptr);
        context_ = make_context(Engine::shoal, options);
        ASSERT_TRUE(context_) << plugin().last_error();
    }
    std::string said(const llama_batch& batch) {
        const char* error = shoal_llama_note_batch(context_.get(), &batch);
        return error == nullptr ? "" : error;
    }
    void decode_noted(const llama_batch& batch) {
        ASSERT_EQ(said(batch), "");
        ASSERT_EQ(llama_decode(context_.get(), batch), 0) << plugin().last_error();
    }

    Context context_{nullptr, &llama_free};
    const std::vector<llama_token> tokens_ = novel_tokens(400, "emma.txt");
};

}  // namespace

TEST_F(NoteBatch, BadBatches) {
    make({.n_ctx = 512, .n_seq_max = 2});
    decode_noted(*Batch(4).add(slice(tokens_, 0, 4), 0));
    Batch one(1);
    one.add(tokens_[4], 4);
    one->pos[0] = -1;
    EXPECT_EQ(said(*one), "batch.pos[0] = -1: must be 0 or more");
    one->pos[0] = 7;
    EXPECT_EQ(said(*one), "batch.pos[0] = 7: sequence 0 ends at position 3, so 4 must follow");
    one->pos[0] = 3;
    EXPECT_EQ(said(*one), "batch.pos[0] = 3: sequence 0 ends at position 3, so 4 must follow");
    one->pos[0] = 4;
    one->seq_id[0][0] = 2;
    EXPECT_EQ(said(*one), "batch.seq_id[0][0] = 2: must be 0 to 1");
    one->seq_id[0][0] = -1;
    EXPECT_EQ(said(*one), "batch.seq_id[0][0] = -1: must be 0 to 1");
    one->seq_id[0][0] = 0;
    one->n_seq_id[0] = 0;
    EXPECT_EQ(said(*one), "batch.n_seq_id[0] = 0: must be 1 to 2");
    one->n_seq_id[0] = 1;
    one->token[0] = 49152;
    EXPECT_EQ(said(*one), "batch.token[0] = 49152: must be 0 to 49151");
    one->token[0] = tokens_[4];
    one->n_tokens = 0;
    EXPECT_EQ(said(*one), "batch.n_tokens = 0: must be 1 to 512 (n_batch)");
    one->n_tokens = 1;
    EXPECT_EQ(said(*Batch(3).add(tokens_[4], 4).add(tokens_[5], 6)),
              "batch.pos[1] = 6: sequence 0 ends at position 4, so 5 must follow");
    llama_batch nothing = *one;
    nothing.token = nullptr;
    EXPECT_THAT(said(nothing), HasSubstr("batch.token: must not be NULL"));
    EXPECT_STREQ(shoal_llama_note_batch(nullptr, &*one), "context: must not be NULL");
    EXPECT_STREQ(shoal_llama_note_batch(context_.get(), nullptr), "batch: must not be NULL");
    // None of them was noted, and the sequence goes on.
    const uint64_t missing = counter("tokens_missing");
    decode_noted(*one);
    EXPECT_EQ(counter("tokens_missing"), missing);
}

// llama.cpp counts sequences by n_seq_max, whether they share a cache or not.
TEST_F(NoteBatch, SequencesAreThoseOfTheContext) {
    for (const bool unified : {false, true}) {
        for (const uint32_t sequences : {1U, 3U}) {
            make({.n_ctx = 512 * sequences, .n_seq_max = sequences, .kv_unified = unified});
            Batch one(1);
            one.add(tokens_[0], 0);
            const auto beyond = static_cast<llama_seq_id>(sequences);
            one->seq_id[0][0] = beyond;
            EXPECT_EQ(said(*one), "batch.seq_id[0][0] = " + std::to_string(beyond) +
                                      ": must be 0 to " + std::to_string(beyond - 1));
            EXPECT_NE(llama_decode(context_.get(), *one), 0);
            one->seq_id[0][0] = beyond - 1;
            EXPECT_EQ(said(*one), "");
            EXPECT_EQ(llama_decode(context_.get(), *one), 0);
        }
    }
}

TEST_F(NoteBatch, WhatIsReadIsKnown) {
    make({.n_ctx = 1024, .n_ubatch = 128});
    decode_noted(*Batch(300).add(slice(tokens_, 0, 300), 0));
    for (int i = 300; i < 304; ++i) {
        llama_token token = tokens_[static_cast<size_t>(i)];
        decode_noted(llama_batch_get_one(&token, 1));
    }
    for (const uint32_t layer : {0U, 29U}) {
        const std::vector<shoal_llama_row> rows = rows_read(layer);
        EXPECT_LE(rows.size(), 48U + 4 + 16);
        EXPECT_EQ(rows.front().position, 0);
        EXPECT_EQ(rows.back().position, 303);
        for (const shoal_llama_row& row : rows) {
            ASSERT_GE(row.position, 0);
            EXPECT_EQ(row.token, tokens_[static_cast<size_t>(row.position)]);
            EXPECT_EQ(row.sequence, 0);
        }
    }
    EXPECT_EQ(shoal_llama_rows_read(99, 0, 0, nullptr, 0), 0);
}

TEST_F(NoteBatch, SequencesInStreamsAndInOneCache) {
    for (const bool unified : {false, true}) {
        SCOPED_TRACE(unified ? "unified" : "streams");
        make({.n_ctx = 1024, .n_ubatch = 64, .n_seq_max = 2, .kv_unified = unified});
        // Of different length, so that llama.cpp cuts them into steps in another order.
        Batch both(300);
        both.add(slice(tokens_, 0, 200), 0, 0).add(slice(tokens_, 200, 300), 0, 1);
        decode_noted(*both);
        for (int i = 0; i < 3; ++i) {
            Batch next(2);
            next.add(tokens_[0], 200 + i, 0).add(tokens_[1], 100 + i, 1);
            decode_noted(*next);
        }
        for (const uint32_t query : {0U, 1U}) {
            for (const shoal_llama_row& row : rows_read(3, query)) {
                ASSERT_EQ(row.sequence, static_cast<int32_t>(query)) << "slot " << row.slot;
                const bool is_prefix = row.position < (query == 0 ? 200 : 100);
                const size_t at = static_cast<size_t>(row.position) + (query == 0 ? 0 : 200);
                EXPECT_EQ(row.token, is_prefix ? tokens_[at] : tokens_[query]);
            }
        }
    }
}

TEST_F(NoteBatch, FollowsShiftsAndForgetsRestoredRows) {
    make({.n_ctx = 512});
    decode_noted(*Batch(300).add(slice(tokens_, 0, 300), 0));
    llama_memory_t memory = llama_get_memory(context_.get());
    ASSERT_TRUE(llama_memory_seq_rm(memory, 0, 4, 104));
    llama_memory_seq_add(memory, 0, 104, -1, -100);
    decode_noted(*Batch(1).add(tokens_[300], 200));
    for (const shoal_llama_row& row : rows_read(5)) {
        const auto position = static_cast<size_t>(row.position);
        EXPECT_EQ(row.token, tokens_[position < 4 ? position : position + 100]);
    }
    std::vector<uint8_t> state(llama_state_get_size(context_.get()));
    state.resize(llama_state_get_data(context_.get(), state.data(), state.size()));
    llama_memory_clear(memory, true);
    ASSERT_GT(llama_state_set_data(context_.get(), state.data(), state.size()), 0U);
    decode_noted(*Batch(1).add(tokens_[301], 201));
    const std::vector<shoal_llama_row> rows = rows_read(5);
    EXPECT_EQ(rows.back().position, 201) << "noted after the restore";
    for (size_t i = 0; i + 1 < rows.size(); ++i) EXPECT_EQ(rows[i].position, -1);
}

TEST_F(NoteBatch, OtherCountsAreCountedAndSaid) {
    make({.n_ctx = 512});
    const uint64_t missing = counter("tokens_missing");
    const uint64_t unnoted = counter("tokens_unnoted");
    const uint64_t noted = counter("tokens_noted");
    take_log();
    decode_noted(*Batch(8).add(slice(tokens_, 0, 8), 0));
    EXPECT_EQ(said(*Batch(3).add(slice(tokens_, 8, 11), 8)), "");
    decode(context_.get(), {tokens_[8]}, 8);
    EXPECT_EQ(said(*Batch(1).add(tokens_[9], 9)), "");
    EXPECT_EQ(counter("tokens_missing"), missing + 2);
    EXPECT_EQ(counter("tokens_noted"), noted + 12);
    decode(context_.get(), slice(tokens_, 9, 13), 9);
    EXPECT_EQ(counter("tokens_unnoted"), unnoted + 3);
    const std::string log = take_log();
    if (missing == 0) {
        EXPECT_THAT(log, HasSubstr("shoal: 2 of 3 noted tokens did not come"));
    }
    if (unnoted == 0) {
        EXPECT_THAT(log, HasSubstr("shoal: 3 tokens came that were not noted"));
    }
}

}  // namespace shoal::testing
