// Stock llama.cpp and llama.cpp through the device, led through the same operations.
#pragma once

#include <vector>

#include "llama_support.hpp"

namespace shoal::testing {

// Tokens of one sequence within a batch.
struct Piece {
    llama_seq_id sequence = 0;
    llama_pos first = 0;
    std::vector<llama_token> tokens;
};

// What one llama_decode answers, and the logits of the last token of each piece.
struct Answer {
    int32_t status = 0;
    Logits logits;
};
// All pieces in one batch, a token of each in turn: prompts and single tokens mix.
Answer decode_pieces(llama_context* context, const std::vector<Piece>& pieces);

class TwoContexts {
public:
    explicit TwoContexts(const ContextOptions& options);

    bool made() const { return stock_ != nullptr && shoal_ != nullptr; }
    llama_context* stock() const { return stock_.get(); }
    llama_context* shoal() const { return shoal_.get(); }

    // One past the last position of a sequence.
    llama_pos end(llama_seq_id sequence) const {
        return llama_memory_seq_pos_max(llama_get_memory(stock()), sequence) + 1;
    }
    // The next `count` tokens of a novel, different for each call, at the end of a sequence.
    Piece next(llama_seq_id sequence, size_t count);

    // Both must answer the same, bit for bit; returns the status.
    int32_t decode(const std::vector<Piece>& pieces);
    // An operation on the memory of both.
    template <typename Operation>
    void memory(Operation operation) {
        operation(llama_get_memory(stock()));
        operation(llama_get_memory(shoal()));
    }
    // Each saves a sequence (-1: everything), and loads what itself saved into `to`. Returns
    // whether llama.cpp accepted it, which must be the same for both.
    bool save_and_load(llama_seq_id from, llama_seq_id to);
    std::vector<uint8_t> save(llama_context* context, llama_seq_id sequence) const;
    bool load(llama_context* context, const std::vector<uint8_t>& state,
              llama_seq_id sequence) const;

private:
    Context stock_;
    Context shoal_;
    std::vector<llama_token> novel_;
    size_t next_token_ = 0;
};

}  // namespace shoal::testing
