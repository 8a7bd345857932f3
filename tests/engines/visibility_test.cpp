// Shoal's own attention with several sequences: what a query reads is its own sequence's, whichever
// cache that lies in.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "two_contexts.hpp"

namespace shoal::testing {

namespace {

constexpr uint32_t kRows = 24;
constexpr uint32_t kSinks = 4;
constexpr uint32_t kWindow = 8;

std::string sparse_config(uint32_t sparse_queries_max = 8, uint32_t rows = kRows) {
    return "[host]\ncheck_rows = true\n[budget]\nrows = " + std::to_string(rows) +
           "\nsparse_queries_max = " + std::to_string(sparse_queries_max) +
           "\ndense_below = 1\ndense_layers = []\n[profile]\npath = \"" SHOAL_TEST_PROFILE
           "\"\n[safety]\nsinks = " + std::to_string(kSinks) +
           "\nwindow = " + std::to_string(kWindow) + "\n";
}

std::vector<uint32_t> attended(uint32_t layer, uint32_t query) {
    std::vector<uint32_t> slots(4096);
    const int64_t count = plugin().attended(layer, query, 0, slots.data(), slots.size());
    slots.resize(static_cast<size_t>(std::max<int64_t>(count, 0)));
    return slots;
}

class Visible : public ::testing::Test {
protected:
    ~Visible() override { plugin().configure(nullptr); }

    void configure(const std::string& config) {
        const char* error = plugin().configure(config.c_str());
        ASSERT_EQ(error, nullptr) << error;
    }
    Context make(Engine engine, uint32_t sequences, uint32_t n_ctx,
                 llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED) {
        ContextOptions options;
        options.flash_attn = flash_attn;
        options.n_seq_max = sequences;
        options.n_ctx = n_ctx;
        options.n_ubatch = 128;
        Context context = make_context(engine, options);
        EXPECT_NE(context, nullptr) << plugin().last_error();
        return context;
    }

    const std::vector<llama_token> novel_ = novel_tokens(700, "emma.txt");
};

// A context over one unified cache whose every write is watched, and which sequence holds what.
class WatchedCache {
public:
    explicit WatchedCache(uint32_t sequences)
        : context_(nullptr, &llama_free), novel_(novel_tokens(2000)) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 256 * sequences;
        params.n_batch = params.n_ctx;
        params.n_ubatch = params.n_ctx;
        params.n_seq_max = sequences;
        params.kv_unified = true;
        params.n_threads = params.n_threads_batch = 1;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.cb_eval = watch;
        params.cb_eval_user_data = this;
        context_.reset(llama_init_from_model(model(Engine::shoal), params));
    }

    bool made() const { return context_ != nullptr; }
    llama_memory_t memory() const { return llama_get_memory(context_.get()); }

    // Appends tokens to sequences; checks what each query attended if there are few.
    void decode(const std::vector<std::pair<llama_seq_id, size_t>>& counts) {
        std::vector<Piece> pieces;
        for (const auto& [sequence, count] : counts) {
            const llama_pos first = llama_memory_seq_pos_max(memory(), sequence) + 1;
            pieces.push_back({sequence, first, slice(novel_, next_, next_ + count)});
            next_ += count;
        }
        ASSERT_EQ(decode_pieces(context_.get(), pieces).status, 0) << plugin().last_error();
        record(pieces);
        for (uint32_t i = 0; i < written_.size() && written_.size() <= 8; ++i) check(i);
    }
    void remove(llama_seq_id sequence, llama_pos begin, llama_pos end) {
        ASSERT_TRUE(llama_memory_seq_rm(memory(), sequence, begin, end));
        for (auto& [cell, held] : cells_) {
            if (held.position >= begin && (end < 0 || held.position < end)) {
                held.sequences.erase(sequence);
            }
        }
    }
    void copy(llama_seq_id from, llama_seq_id to) {
        remove(to, 0, -1);
        llama_memory_seq_cp(memory(), from, to, -1, -1);
        for (auto& [cell, held] : cells_) {
            if (held.sequences.count(from) != 0) held.sequences.insert(to);
        }
    }
    void shift(llama_seq_id sequence, llama_pos begin, llama_pos by) {
        llama_memory_seq_add(memory(), sequence, begin, -1, by);
        for (auto& [cell, held] : cells_) {
            if (held.sequences.count(sequence) != 0 && held.position >= begin) held.position += by;
        }
    }
    size_t checked() const { return checked_; }

private:
    struct Cell {
        std::set<llama_seq_id> sequences;
        llama_pos position = 0;
    };

    static bool watch(ggml_tensor* tensor, bool ask, void* data) {
        const bool wanted = tensor->op == GGML_OP_SET_ROWS && tensor->view_src != nullptr &&
                            std::string(tensor->view_src->name) == "cache_k_l0";
        if (ask || !wanted) return wanted || !ask;
        auto& written = static_cast<WatchedCache*>(data)->written_;
        written.resize(static_cast<size_t>(tensor->src[1]->ne[0]));
        ggml_backend_tensor_get(tensor->src[1], written.data(), 0,
                                written.size() * sizeof(int64_t));
        return true;
    }
    // The tokens of a batch are written in its order: one of each piece in turn.
    void record(const std::vector<Piece>& pieces) {
        queries_.clear();
        for (size_t t = 0; queries_.size() < written_.size(); ++t) {
            for (const Piece& piece : pieces) {
                if (t >= piece.tokens.size()) continue;
                const llama_pos position = piece.first + static_cast<llama_pos>(t);
                cells_[written_[queries_.size()]] = {{piece.sequence}, position};
                queries_.push_back({piece.sequence, position});
            }
        }
    }
    // Only its own sequence, and no token after its own.
    void check(uint32_t query) {
        const auto [sequence, position] = queries_[query];
        for (const uint32_t layer : {0U, 11U, 29U}) {
            const std::vector<uint32_t> slots = attended(layer, query);
            ASSERT_FALSE(slots.empty());
            EXPECT_LE(slots.size(), kRows + kSinks + kWindow);
            EXPECT_TRUE(std::binary_search(slots.begin(), slots.end(), written_[query]));
            for (const uint32_t slot : slots) {
                ASSERT_EQ(cells_[slot].sequences.count(sequence), 1U)
                    << "layer " << layer << ", sequence " << sequence << " read slot " << slot;
                ASSERT_LE(cells_[slot].position, position) << "layer " << layer;
                ++checked_;
            }
        }
    }

    Context context_;
    std::vector<llama_token> novel_;
    size_t next_ = 0;
    std::vector<int64_t> written_;  // slot of each query of the last batch
    std::vector<std::pair<llama_seq_id, llama_pos>> queries_;
    std::map<int64_t, Cell> cells_;
    size_t checked_ = 0;
};

}  // namespace

TEST_F(Visible, NoQueryReadsAnotherSequence) {
    configure(sparse_config());
    WatchedCache cache(3);
    ASSERT_TRUE(cache.made()) << plugin().last_error();
    const auto decode_all = [&](int times) {
        for (int i = 0; i < times && !HasFailure(); ++i) cache.decode({{0, 1}, {1, 1}, {2, 1}});
    };
    cache.decode({{0, 90}, {1, 60}});
    cache.decode({{2, 70}});
    decode_all(2);
    cache.remove(0, 20, 60);
    cache.decode({{1, 55}});  // into the freed cells
    decode_all(2);
    cache.copy(1, 0);
    cache.decode({{2, 40}});
    decode_all(2);
    cache.remove(2, 4, 34);
    cache.shift(2, 34, -30);
    decode_all(2);
    EXPECT_GT(cache.checked(), 8U * 3 * 3 * kRows / 2);
}

// Speculative decoding: several tokens of a sequence at once, of which the last turn out wrong.
TEST_F(Visible, DraftedTokensSeeNoneAfterThem) {
    configure(sparse_config());
    WatchedCache cache(2);
    ASSERT_TRUE(cache.made()) << plugin().last_error();
    cache.decode({{0, 80}, {1, 50}});
    for (llama_pos end = 80; end < 80 + 6 * 2 && !HasFailure(); end += 2) {
        cache.decode({{0, 5}, {1, 1}});
        cache.remove(0, end + 2, -1);
    }
    EXPECT_GT(cache.checked(), 6U * 6 * 3 * kRows / 2);
}

// A stream is a store of its own: sparse attention in it is what it would be alone, bit for bit.
TEST_F(Visible, SparseInAStreamIsSparseAlone) {
    configure(sparse_config());
    Context streams = make(Engine::shoal, 2, 1024);
    ASSERT_TRUE(streams);
    Logits together[2];
    const size_t lengths[2] = {300, 110};
    const auto tokens_of = [&](llama_seq_id s, size_t at, size_t count) {
        const size_t begin = static_cast<size_t>(s) * 350 + at;
        return slice(novel_, begin, begin + count);
    };
    const auto piece = [&](llama_seq_id s, size_t at, size_t count, llama_seq_id as) {
        return Piece{as, static_cast<llama_pos>(at), tokens_of(s, at, count)};
    };
    for (llama_seq_id s = 0; s < 2; ++s) decode_pieces(streams.get(), {piece(s, 0, lengths[s], s)});
    for (size_t i = 0; i < 4; ++i) {
        for (llama_seq_id s = 0; s < 2; ++s) {
            const Answer answer =
                decode_pieces(streams.get(), {piece(s, lengths[s] + i, 1, s)});
            ASSERT_EQ(answer.status, 0) << plugin().last_error();
            together[s].push_back(answer.logits.at(0));
        }
    }
    // Both in one batch: one attention op over two stores.
    ASSERT_EQ(decode_pieces(streams.get(), {piece(0, lengths[0] + 4, 1, 0),
                                            piece(1, lengths[1] + 4, 1, 1)}).status, 0);
    for (uint32_t s = 0; s < 2; ++s) {
        const std::vector<uint32_t> slots = attended(7, s);
        ASSERT_EQ(slots.size(), kRows + kSinks + kWindow);
        EXPECT_EQ(slots.front(), 0U);
        EXPECT_EQ(slots.back(), lengths[s] + 4) << "its own token is its stream's last";
    }
    for (llama_seq_id s = 0; s < 2; ++s) {
        Context alone = make(Engine::shoal, 1, 512);
        ASSERT_TRUE(alone);
        decode_pieces(alone.get(), {piece(s, 0, lengths[s], 0)});
        Logits expected;
        for (size_t i = 0; i < 4; ++i) {
            expected.push_back(
                decode_pieces(alone.get(), {piece(s, lengths[s] + i, 1, 0)}).logits.at(0));
        }
        EXPECT_EQ(count_different(together[s], expected), 0U) << "sequence " << s;
    }
}

// More queries in one store than sparse attention serves are attended exactly; a stream of its own
// per sequence has one query each.
TEST_F(Visible, SparseUpToSoManyQueriesOfAStore) {
    configure(sparse_config(2));
    for (const bool unified : {true, false}) {
        ContextOptions options;
        options.n_seq_max = 3;
        options.n_ctx = 3 * 256;
        options.n_ubatch = 128;
        options.kv_unified = unified;
        Context context = make_context(Engine::shoal, options);
        ASSERT_TRUE(context) << plugin().last_error();
        for (llama_seq_id s = 0; s < 3; ++s) {
            decode_pieces(context.get(), {{s, 0, slice(novel_, 0, 60)}});
        }
        const auto decode = [&](llama_seq_id sequences) {
            plugin().reset_stats();
            std::vector<Piece> pieces;
            for (llama_seq_id s = 0; s < sequences; ++s) {
                pieces.push_back({s, s == 2 || sequences == 2 ? 60 : 61, {novel_[60]}});
            }
            EXPECT_EQ(decode_pieces(context.get(), pieces).status, 0);
            std::string text(4096, 0);
            text.resize(plugin().stats_json(text.data(), text.size()));
            return nlohmann::json::parse(text);
        };
        EXPECT_EQ(decode(2)["queries_sparse"], 2 * 30);
        const nlohmann::json three = decode(3);
        EXPECT_EQ(three["queries_exact"], unified ? 3 * 30 : 0);
        EXPECT_EQ(three["queries_sparse"], unified ? 0 : 3 * 30);
    }
}

// Sequences that share a cache share its spans too, so ranges of labels are wider; each query goes
// on from its own history. What that costs is small beside what selecting costs.
TEST_F(Visible, SparseInASharedCacheIsAsCloseToDenseAsAlone) {
    constexpr size_t kDecoded = 24;
    constexpr size_t kFirst[] = {0, 350};
    constexpr size_t kPrompt = 300;
    const auto piece = [&](llama_seq_id s, llama_seq_id as, size_t at, size_t count) {
        const size_t begin = kFirst[s] + at;
        return Piece{as, static_cast<llama_pos>(at), slice(novel_, begin, begin + count)};
    };
    const auto run = [&](std::vector<llama_seq_id> sequences) {
        ContextOptions options;
        options.n_seq_max = static_cast<uint32_t>(sequences.size());
        options.n_ctx = 384 * options.n_seq_max;
        options.n_ubatch = 128;
        options.kv_unified = true;
        Context context = make_context(Engine::shoal, options);
        EXPECT_TRUE(context) << plugin().last_error();
        const auto pieces = [&](size_t at, size_t count) {
            std::vector<Piece> all;
            for (size_t i = 0; i < sequences.size(); ++i) {
                all.push_back(piece(sequences[i], static_cast<llama_seq_id>(i), at, count));
            }
            return all;
        };
        EXPECT_EQ(decode_pieces(context.get(), pieces(0, kPrompt)).status, 0);
        std::vector<Logits> logits(sequences.size());
        for (size_t t = 0; t < kDecoded; ++t) {
            const Answer answer = decode_pieces(context.get(), pieces(kPrompt + t, 1));
            EXPECT_EQ(answer.status, 0) << plugin().last_error();
            for (size_t i = 0; i < logits.size(); ++i) logits[i].push_back(answer.logits.at(i));
        }
        return logits;
    };
    std::vector<Logits> logits[2][2];  // [dense, sparse][shared, alone]
    for (const int sparse : {0, 1}) {
        configure(sparse != 0 ? sparse_config(8, 96) : "[selector]\nkind = \"dense\"\n");
        logits[sparse][0] = run({0, 1});
        for (const llama_seq_id s : {0, 1}) logits[sparse][1].push_back(run({s}).at(0));
    }
    double apart[2] = {};
    for (const int alone : {0, 1}) {
        for (const size_t s : {0, 1}) {
            apart[alone] += kl_mean(logits[0][alone][s], logits[1][alone][s]) / 2;
        }
    }
    printf("KL of sparse from dense: two sequences in one cache %.4f, each alone %.4f\n", apart[0],
           apart[1]);
    EXPECT_GT(apart[1], 1e-3) << "nothing was left out";
    EXPECT_LE(apart[0], 1.25 * apart[1]);
}

// How far stock is from itself when only its kernel changes is what rounding does to the answers of
// this model (activations are quantised to 8 bits): the same in one sequence, attention_test.cpp.
TEST_F(Visible, DenseInStreamsIsAsCloseToStockAsStockToItself) {
    configure("[selector]\nkind = \"dense\"\n");
    Logits logits[3];  // stock, Shoal, stock without flash attention
    for (int i = 0; i < 3; ++i) {
        Context context = make(i == 1 ? Engine::shoal : Engine::stock, 2, 512,
                               i == 2 ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                      : LLAMA_FLASH_ATTN_TYPE_ENABLED);
        ASSERT_TRUE(context);
        decode_pieces(context.get(),
                      {{0, 0, slice(novel_, 0, 120)}, {1, 0, slice(novel_, 300, 350)}});
        for (size_t at = 0; at < 6; ++at) {
            const Answer answer = decode_pieces(
                context.get(), {{0, static_cast<llama_pos>(120 + at), {novel_[120 + at]}},
                                {1, static_cast<llama_pos>(50 + at), {novel_[350 + at]}}});
            ASSERT_EQ(answer.status, 0) << plugin().last_error();
            logits[i].insert(logits[i].end(), answer.logits.begin(), answer.logits.end());
        }
    }
    const double ours = kl_mean(logits[0], logits[1]);
    const double own = kl_mean(logits[0], logits[2]);
    printf("two streams, KL to stock: Shoal dense %.3g, stock without flash attention %.3g\n", ours,
           own);
    EXPECT_LE(ours, std::max(1e-4, 1.5 * own));
}

}  // namespace shoal::testing
