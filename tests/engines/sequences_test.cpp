// Several sequences in one context, in one unified cache and in separate streams: with attention
// handed to ggml's own kernel, every answer is stock llama.cpp's, bit for bit.
#include <string>

#include "two_contexts.hpp"

namespace shoal::testing {

namespace {

struct CacheCase {
    uint32_t sequences;
    bool unified;
    ggml_type type = GGML_TYPE_F16;
};

std::string case_name(const ::testing::TestParamInfo<CacheCase>& given) {
    return std::to_string(given.param.sequences) + (given.param.unified ? "Unified" : "Streams") +
           ggml_type_name(given.param.type);
}

ContextOptions options_of(const CacheCase& given) {
    ContextOptions options;
    options.n_ctx = 256 * given.sequences;
    options.n_ubatch = 32;
    options.n_seq_max = given.sequences;
    options.kv_unified = given.unified;
    options.type_k = options.type_v = given.type;
    return options;
}

class Sequences : public ::testing::TestWithParam<CacheCase> {
protected:
    Sequences() : two_(options_of(GetParam())) {}

    llama_seq_id count() const { return static_cast<llama_seq_id>(GetParam().sequences); }
    llama_seq_id last() const { return count() - 1; }

    // Prompts of different lengths, in pieces that alternate.
    void read_prompts() {
        const size_t lengths[] = {22, 5, 11, 8};
        for (const size_t more : {0U, 3U}) {
            for (llama_seq_id s = 0; s < count(); ++s) {
                two_.decode({two_.next(s, lengths[s] + more)});
            }
        }
    }
    // A token of every sequence in one batch, `times` times.
    void decode_all(int times) {
        for (int i = 0; i < times && !HasFailure(); ++i) {
            std::vector<Piece> pieces;
            for (llama_seq_id s = 0; s < count(); ++s) pieces.push_back(two_.next(s, 1));
            EXPECT_EQ(two_.decode(pieces), 0);
        }
    }
    void copy(llama_seq_id from, llama_seq_id to) {
        two_.memory([&](llama_memory_t memory) {
            llama_memory_seq_rm(memory, to, -1, -1);
            llama_memory_seq_cp(memory, from, to, -1, -1);
        });
    }
    void remove(llama_seq_id sequence, llama_pos begin, llama_pos end) {
        two_.memory([&](llama_memory_t memory) {
            EXPECT_TRUE(llama_memory_seq_rm(memory, sequence, begin, end));
        });
    }
    void shift(llama_seq_id sequence, llama_pos begin, llama_pos by) {
        two_.memory([&](llama_memory_t memory) {
            llama_memory_seq_add(memory, sequence, begin, -1, by);
        });
    }

    DelegateScope delegate_;
    TwoContexts two_;
};

class SavedSequences : public Sequences {};
class ShiftedSequences : public Sequences {};

}  // namespace

TEST_P(Sequences, DecodedRemovedAndCopied) {
    ASSERT_TRUE(two_.made());
    read_prompts();
    decode_all(1);
    {
        SCOPED_TRACE("a prompt goes on while the others decode");
        std::vector<Piece> pieces;
        for (llama_seq_id s = 0; s < count(); ++s) pieces.push_back(two_.next(s, s == 1 ? 40 : 1));
        EXPECT_EQ(two_.decode(pieces), 0);
        decode_all(1);
    }
    {
        SCOPED_TRACE("removed in the middle");
        remove(0, 12, 30);
        decode_all(2);
        EXPECT_EQ(two_.decode({two_.next(0, 25)}), 0);
    }
    {
        SCOPED_TRACE("copied");
        copy(0, last());
        decode_all(2);
        copy(last(), 0);
        copy(0, 1);
        decode_all(1);
    }
    {
        SCOPED_TRACE("all but one removed");
        two_.memory([](llama_memory_t memory) { llama_memory_seq_keep(memory, 1); });
        for (llama_seq_id s = 0; s < count(); ++s) {
            if (s != 1) remove(s, -1, -1);
        }
        EXPECT_EQ(two_.decode({two_.next(1, 1)}), 0);
        EXPECT_EQ(two_.decode({two_.next(0, 9)}), 0);
        decode_all(1);
    }
}

// Speculative decoding: drafts of several tokens, of which the last are cut again.
TEST_P(Sequences, DraftedAndCut) {
    ASSERT_TRUE(two_.made());
    read_prompts();
    for (llama_pos kept = 1; kept <= 4; ++kept) {
        SCOPED_TRACE("of 5 tokens kept: " + std::to_string(kept));
        std::vector<Piece> drafts;
        for (llama_seq_id s = 0; s < count(); ++s) drafts.push_back(two_.next(s, s == 1 ? 1 : 5));
        EXPECT_EQ(two_.decode(drafts), 0);
        for (llama_seq_id s = 0; s < count(); ++s) {
            if (s != 1) remove(s, two_.end(s) - 5 + kept, -1);
        }
        decode_all(1);
    }
}

TEST_P(SavedSequences, SavedAndRestored) {
    ASSERT_TRUE(two_.made());
    read_prompts();
    remove(0, 5, 9);
    decode_all(1);
    EXPECT_EQ(two_.save(two_.stock(), 0), two_.save(two_.shoal(), 0));
    EXPECT_EQ(two_.save(two_.stock(), -1), two_.save(two_.shoal(), -1));
    {
        SCOPED_TRACE("one sequence into another");
        EXPECT_TRUE(two_.save_and_load(0, last()));
        decode_all(2);
    }
    {
        SCOPED_TRACE("everything, after other tokens were decoded");
        const std::vector<uint8_t> saved = two_.save(two_.stock(), -1);
        decode_all(1);
        remove(1, -1, -1);
        EXPECT_EQ(two_.decode({two_.next(1, 12)}), 0);
        EXPECT_TRUE(two_.load(two_.stock(), saved, -1));
        EXPECT_TRUE(two_.load(two_.shoal(), saved, -1));
        decode_all(2);
    }
}

INSTANTIATE_TEST_SUITE_P(Caches, Sequences,
                         ::testing::Values(CacheCase{2, true}, CacheCase{4, true},
                                           CacheCase{2, false}, CacheCase{4, false}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Caches, SavedSequences,
                         ::testing::Values(CacheCase{2, true}, CacheCase{4, false}), case_name);

// Context shift as llama-server does it: tokens behind the first few are removed, the rest moves
// up.
TEST_P(ShiftedSequences, Shifted) {
    ASSERT_TRUE(two_.made());
    read_prompts();
    for (int round = 0; round < 2; ++round) {
        remove(0, 4, 14);
        shift(0, 14, -10);
        decode_all(2);
        EXPECT_EQ(two_.decode({two_.next(0, 6)}), 0);
    }
    {
        SCOPED_TRACE("shifted, and copied before the next step");
        remove(1, 2, 6);
        shift(1, 6, -4);
        copy(1, 0);
        decode_all(2);
    }
    {
        SCOPED_TRACE("shifted up");
        shift(last(), 0, 7);
        decode_all(2);
    }
}

INSTANTIATE_TEST_SUITE_P(Caches, ShiftedSequences,
                         ::testing::Values(CacheCase{2, true}, CacheCase{2, false},
                                           CacheCase{2, true, GGML_TYPE_F32}),
                         case_name);

}  // namespace shoal::testing
