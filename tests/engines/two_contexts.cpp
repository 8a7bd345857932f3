#include "two_contexts.hpp"

#include <algorithm>

namespace shoal::testing {

namespace {

constexpr size_t kNovelTokens = 4000;

}  // namespace

Answer decode_pieces(llama_context* context, const std::vector<Piece>& pieces) {
    size_t longest = 0;
    size_t total = 0;
    for (const Piece& piece : pieces) {
        longest = std::max(longest, piece.tokens.size());
        total += piece.tokens.size();
    }
    llama_batch batch = llama_batch_init(static_cast<int32_t>(total), 0, 1);
    std::vector<int32_t> last(pieces.size());
    for (size_t t = 0; t < longest; ++t) {
        for (size_t p = 0; p < pieces.size(); ++p) {
            const Piece& piece = pieces[p];
            if (t >= piece.tokens.size()) continue;
            const int32_t i = batch.n_tokens++;
            batch.token[i] = piece.tokens[t];
            batch.pos[i] = piece.first + static_cast<llama_pos>(t);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = piece.sequence;
            batch.logits[i] = t + 1 == piece.tokens.size();
            last[p] = i;
        }
    }
    Answer answer;
    answer.status = llama_decode(context, batch);
    const int32_t vocabulary =
        llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    for (size_t p = 0; answer.status == 0 && p < pieces.size(); ++p) {
        const float* logits = llama_get_logits_ith(context, last[p]);
        answer.logits.emplace_back(logits, logits + vocabulary);
    }
    llama_batch_free(batch);
    return answer;
}

TwoContexts::TwoContexts(const ContextOptions& options)
    : stock_(make_context(Engine::stock, options)),
      shoal_(make_context(Engine::shoal, options)),
      novel_(novel_tokens(kNovelTokens)) {
    EXPECT_NE(stock_, nullptr);
    EXPECT_NE(shoal_, nullptr) << plugin().last_error();
}

Piece TwoContexts::next(llama_seq_id sequence, size_t count) {
    if (next_token_ + count > novel_.size()) next_token_ = 0;
    next_token_ += count;
    return {sequence, end(sequence), slice(novel_, next_token_ - count, next_token_)};
}

int32_t TwoContexts::decode(const std::vector<Piece>& pieces) {
    const Answer expected = decode_pieces(stock(), pieces);
    const Answer answer = decode_pieces(shoal(), pieces);
    EXPECT_EQ(answer.status, expected.status) << plugin().last_error();
    EXPECT_EQ(count_different(answer.logits, expected.logits), 0U);
    return expected.status;
}

std::vector<uint8_t> TwoContexts::save(llama_context* context, llama_seq_id sequence) const {
    std::vector<uint8_t> state(sequence < 0 ? llama_state_get_size(context)
                                            : llama_state_seq_get_size(context, sequence));
    const size_t size =
        sequence < 0 ? llama_state_get_data(context, state.data(), state.size())
                     : llama_state_seq_get_data(context, state.data(), state.size(), sequence);
    state.resize(size);
    return state;
}

bool TwoContexts::load(llama_context* context, const std::vector<uint8_t>& state,
                       llama_seq_id sequence) const {
    return (sequence < 0 ? llama_state_set_data(context, state.data(), state.size())
                         : llama_state_seq_set_data(context, state.data(), state.size(),
                                                    sequence)) != 0;
}

bool TwoContexts::save_and_load(llama_seq_id from, llama_seq_id to) {
    const bool expected = load(stock(), save(stock(), from), to);
    const bool loaded = load(shoal(), save(shoal(), from), to);
    EXPECT_EQ(loaded, expected);
    return expected;
}

}  // namespace shoal::testing
