#include "runtime/engines/llama_cpp/host/batch.hpp"

#include <map>
#include <string>

#include <fmt/format.h>

namespace shoal::llama_host {
namespace {

Status refuse(std::string text) {
    return Status::error(StatusCode::invalid_argument, std::move(text));
}

class Reader {
public:
    Reader(llama_context* context, const llama_batch& batch)
        : batch_(batch), memory_(llama_get_memory(context)),
          token_count_(llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)))),
          sequence_count_(static_cast<int32_t>(llama_n_seq_max(context))) {}

    Status add(int32_t i, BatchTokens& out) {
        const int32_t token = batch_.token == nullptr ? -1 : batch_.token[i];
        if (batch_.token != nullptr && (token < 0 || token >= token_count_)) {
            return refuse(fmt::format("batch.token[{}] = {}: must be 0 to {}", i, token,
                                      token_count_ - 1));
        }
        const bool has_sequences = batch_.seq_id != nullptr && batch_.n_seq_id != nullptr;
        const int32_t count = has_sequences ? batch_.n_seq_id[i] : 1;
        if (has_sequences && batch_.seq_id[i] == nullptr) {
            return refuse(fmt::format("batch.seq_id[{}]: must not be NULL", i));
        }
        if (count < 1 || count > sequence_count_) {
            return refuse(fmt::format("batch.n_seq_id[{}] = {}: must be 1 to {}", i, count,
                                      sequence_count_));
        }
        const int32_t zero = 0;
        const int32_t* sequences = has_sequences ? batch_.seq_id[i] : &zero;
        for (int32_t s = 0; s < count; ++s) {
            if (sequences[s] >= 0 && sequences[s] < sequence_count_) continue;
            return refuse(fmt::format("batch.seq_id[{}][{}] = {}: must be 0 to {}", i, s,
                                      sequences[s], sequence_count_ - 1));
        }
        // Without positions llama.cpp goes on from the first sequence.
        const int32_t position =
            batch_.pos == nullptr ? last_of(sequences[0]) + 1 : batch_.pos[i];
        for (int32_t s = 0; s < count; ++s) SHOAL_TRY(place(i, sequences[s], position));
        out.tokens.push_back(token);
        out.positions.push_back(position);
        out.sequences.push_back(sequences[0]);
        return Status::ok();
    }

private:
    // The last position of a sequence, in the cache or earlier in the batch; -1: none.
    int32_t& last_of(int32_t sequence) {
        const auto [entry, is_new] = last_.try_emplace(sequence, -1);
        if (is_new) {
            if (memory_ != nullptr) entry->second = llama_memory_seq_pos_max(memory_, sequence);
            in_cache_[sequence] = entry->second;
        }
        return entry->second;
    }

    Status place(int32_t i, int32_t sequence, int32_t position) {
        int32_t& last = last_of(sequence);
        if (position < 0) {
            return refuse(fmt::format("batch.pos[{}] = {}: must be 0 or more", i, position));
        }
        // Two tokens of one batch may share a position; a new sequence may begin anywhere.
        const bool repeats = position == last && last != in_cache_[sequence];
        if (last >= 0 && position != last + 1 && !repeats) {
            return refuse(fmt::format("batch.pos[{}] = {}: sequence {} ends at position {}, so {} "
                                      "must follow", i, position, sequence, last, last + 1));
        }
        last = position;
        return Status::ok();
    }

    const llama_batch& batch_;
    llama_memory_t memory_;
    int32_t token_count_;
    int32_t sequence_count_;
    std::map<int32_t, int32_t> last_;      // by sequence
    std::map<int32_t, int32_t> in_cache_;  // what last_ was before the batch
};

}  // namespace

Result<BatchTokens> read_batch(llama_context* context, const llama_batch& batch) {
    const auto most = static_cast<int32_t>(llama_n_batch(context));
    if (batch.n_tokens < 1 || batch.n_tokens > most) {
        return refuse(fmt::format("batch.n_tokens = {}: must be 1 to {} (n_batch)", batch.n_tokens,
                                  most));
    }
    if (batch.token == nullptr && batch.embd == nullptr) {
        return refuse("batch.token: must not be NULL, unless batch.embd is given");
    }
    BatchTokens out;
    Reader reader(context, batch);
    for (int32_t i = 0; i < batch.n_tokens; ++i) SHOAL_TRY(reader.add(i, out));
    return out;
}

}  // namespace shoal::llama_host
