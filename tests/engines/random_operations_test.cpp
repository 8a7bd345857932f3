// Random operations on the memory of two contexts, stock and through the device with attention
// handed to ggml's own kernel: every answer is the same, bit for bit. Seeds are printed.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "two_contexts.hpp"

namespace shoal::testing {

namespace {

constexpr llama_seq_id kSequences = 3;
constexpr llama_pos kSequenceTokensMax = 150;

ContextOptions options_of(bool unified) {
    ContextOptions options;
    options.n_seq_max = kSequences;
    options.n_ctx = 256 * kSequences;
    options.n_ubatch = 32;
    options.kv_unified = unified;
    return options;
}

class Operations {
public:
    Operations(bool unified, uint64_t seed) : two_(options_of(unified)), random_(seed) {}

    void run(int count) {
        ASSERT_TRUE(two_.made());
        for (int i = 0; i < count && !::testing::Test::HasFailure(); ++i) {
            SCOPED_TRACE("operation " + std::to_string(i));
            one();
        }
        for (llama_seq_id s = 0; s < kSequences; ++s) two_.decode({two_.next(s, 1)});
    }

private:
    int below(int count) { return std::uniform_int_distribution<int>(0, count - 1)(random_); }
    llama_seq_id any() { return below(kSequences); }

    void one() {
        switch (below(16)) {
            case 0: return remove_middle();
            case 1: return remove_tail(any());
            case 2: return copy();
            case 3: return shift();
            case 4: return load_from_another();
            case 5: return save_or_load_all();
            case 6: return keep();
            default: return decode();
        }
    }

    void decode() {
        std::vector<Piece> pieces;
        const llama_seq_id always = any();
        for (llama_seq_id s = 0; s < kSequences; ++s) {
            if (s != always && below(2) == 0) continue;
            if (two_.end(s) >= kSequenceTokensMax) remove_tail(s);
            pieces.push_back(two_.next(s, below(4) == 0 ? 1 + static_cast<size_t>(below(40)) : 1));
        }
        two_.decode(pieces);
    }
    void remove_middle() {
        const llama_seq_id s = any();
        const llama_pos begin = below(two_.end(s) + 1);
        const llama_pos end = begin + below(20);
        const bool closes = below(2) == 0;
        two_.memory([&](llama_memory_t memory) {
            llama_memory_seq_rm(memory, s, begin, end);
            if (closes) llama_memory_seq_add(memory, s, end, -1, begin - end);
        });
    }
    void remove_tail(llama_seq_id s) {
        const llama_pos begin = below(two_.end(s) + 1);
        two_.memory([&](llama_memory_t memory) { llama_memory_seq_rm(memory, s, begin, -1); });
    }
    void copy() {
        const llama_seq_id from = any();
        const llama_seq_id to = (from + 1 + below(kSequences - 1)) % kSequences;
        two_.memory([&](llama_memory_t memory) {
            llama_memory_seq_rm(memory, to, -1, -1);
            llama_memory_seq_cp(memory, from, to, -1, -1);
        });
    }
    void shift() {
        const llama_seq_id s = any();
        const llama_pos by = 1 + below(5);
        two_.memory([&](llama_memory_t memory) { llama_memory_seq_add(memory, s, 0, -1, by); });
    }
    void load_from_another() { two_.save_and_load(any(), any()); }
    void save_or_load_all() {
        if (saved_[0].empty() || below(2) == 0) {
            saved_[0] = two_.save(two_.stock(), -1);
            saved_[1] = two_.save(two_.shoal(), -1);
        } else {
            EXPECT_TRUE(two_.load(two_.stock(), saved_[0], -1));
            EXPECT_TRUE(two_.load(two_.shoal(), saved_[1], -1));
        }
    }
    void keep() {
        const llama_seq_id s = any();
        two_.memory([&](llama_memory_t memory) { llama_memory_seq_keep(memory, s); });
    }

    DelegateScope delegate_;
    TwoContexts two_;
    std::mt19937_64 random_;
    std::vector<uint8_t> saved_[2];
};

void run_seeds(uint64_t first, uint64_t count, int operations) {
    for (uint64_t seed = first; seed < first + count && !::testing::Test::HasFailure(); ++seed) {
        for (const bool unified : {true, false}) {
            const std::string trace =
                std::string(unified ? "unified" : "streams") + ", seed " + std::to_string(seed);
            std::printf("%d operations, %s\n", operations, trace.c_str());
            SCOPED_TRACE(trace);
            Operations(unified, seed).run(operations);
        }
    }
}

}  // namespace

TEST(RandomOperations, AnswerAsStock) { run_seeds(1, 1, 36); }

// A seed takes 40 s, in one cache and in streams: SHOAL_TEST_RUNS=6 for more of them.
TEST(LongRandomOperations, AnswerAsStock) {
    const char* runs = std::getenv("SHOAL_TEST_RUNS");
    run_seeds(100, runs != nullptr ? std::strtoull(runs, nullptr, 10) : 1, 200);
}

}  // namespace shoal::testing
