// An engine with sequences, cells and streams, as llama.cpp is one, that does things at random to
// a session and checks each answer against a plain model.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "tests/runtime/plain_store.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal::testing {

// A policy that the operations run under, made and changed at random within what it allows.
struct OperationsPolicy {
    const char* name = "labels";
    SelectorKind selector = SelectorKind::labels;
    SharingKind sharing = SharingKind::layer;
    SharingHeads heads = SharingHeads::shared;
    bool adaptive = false;
    HostRows rows = HostRows::engine;
    bool on_disk = false;  // in any case; else as the rerun has it
};

class RandomOperations {
public:
    // What was done, over all runs.
    struct Counts {
        uint64_t steps = 0;
        uint64_t forks = 0;
        uint64_t copies = 0;
        uint64_t shifts = 0;
        uint64_t restores = 0;
        uint64_t refused = 0;   // attends of slots that do not exist
        uint64_t given_up = 0;  // steps, some layers served
        uint64_t answers = 0;  // queries whose answer was compared
        uint64_t zeros = 0;    // channels that no visible row has anything in
        Stats stats;
    };

    // `profile`: a file to take channels from, or empty to learn them. With `named`, values say
    // which sequence they are of, and an answer that holds the least of another's row shows.
    RandomOperations(uint64_t seed, const std::string& profile, bool named,
                     const OperationsPolicy& policy = {});
    // Stops at the first failure.
    void run(uint32_t operations);
    void add_to(Counts& counts) const;
    Session& session() { return *session_; }

    static Config config();
    static ModelShape shape();

private:
    static constexpr uint32_t kLayers = 2;
    static constexpr uint32_t kHeads = 2;
    static constexpr uint32_t kQueryHeads = 4;
    static constexpr uint32_t kDim = 32;
    static constexpr uint32_t kRowFloats = kHeads * kDim;
    static constexpr uint32_t kStores = 3;
    static constexpr uint32_t kSlots = 160;  // a span and a quarter
    static constexpr uint32_t kSequences = 7;
    static constexpr uint32_t kNone = UINT32_MAX;

    struct Cell {
        uint32_t sequences = 0;  // a bit each
        int32_t position = 0;
    };
    struct Stream {
        StoreId id;
        bool open = false;
        PlainStore plain;
        std::vector<Cell> cells;
    };
    struct Token {
        uint32_t stream = 0;
        uint32_t sequence = 0;
        int32_t position = 0;
        uint32_t slot = 0;
    };
    // Rows of some cells, as an engine saves them: bytes in f16, [layer][K, V].
    struct Saved {
        std::vector<Cell> cells;
        std::vector<uint32_t> slots;
        std::vector<std::byte> bytes[2][2];
    };
    // One step on its way: tokens by stream, and what each may see.
    struct StepRun {
        std::vector<uint32_t> streams;
        std::vector<Token> tokens;
        std::vector<uint32_t> offsets{0};  // CSR of tokens by stream
        std::vector<std::vector<uint32_t>> visible;
        std::vector<SlotRange> ranges;
        std::vector<uint32_t> range_offsets{0};
        bool twins = false;  // the second half of the tokens has the rows of the first
    };

    uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
    bool one_in(uint32_t n) { return below(n) == 0; }
    void one();

    // Sequences and cells.
    uint32_t stream_of(uint32_t sequence) const;
    uint32_t any_sequence();               // that holds something, or kNone
    uint32_t unused_sequence() const;      // or kNone
    uint32_t any_open();
    uint32_t any_closed() const;           // or kNone
    int32_t position_end(uint32_t sequence) const;
    std::vector<uint32_t> slots_of(uint32_t sequence) const;  // in order of position
    std::vector<uint32_t> free_slots(uint32_t stream);        // lowest first, or in any order
    void forget(uint32_t sequence, int32_t begin, int32_t end);
    void forget_stream(uint32_t stream);
    // Gives the sequences of `from` new names in `to`, whose cells become those of `from`.
    void take_cells(uint32_t from, uint32_t to);

    // Operations.
    void append(uint32_t most);
    void decode();
    void share();
    void fork();
    void copy();
    void shift();
    void truncate();
    void reopen();
    void abandon();
    void reconfigure();
    void randomise_prefetch();
    void save();
    void restore();
    void restore_stream();
    void check_rows();

    // A step: tokens are added, then it runs.
    bool add_tokens(std::vector<Token>& tokens, uint32_t sequence, uint32_t stream, uint32_t count);
    void run_step(std::vector<Token> tokens, bool twins);
    StepRun plan_step(std::vector<Token> tokens, bool twins);
    void append_layer(const StepRun& step, uint32_t layer);
    void hint(const StepRun& step, uint32_t layer);
    void refused_attend(const StepRun& step, uint32_t layer);
    void give_up(const StepRun& step);
    void attend(const StepRun& step, uint32_t layer, const Visibility& visibility);
    void check_answer(const StepRun& step, uint32_t layer, uint32_t query, const float* q,
                      const float* out);
    void check_list(uint32_t layer, const PlainStore& plain, const std::vector<uint32_t>& visible,
                    const std::vector<uint32_t>& slots);
    std::vector<float> random_rows(size_t rows, uint32_t heads, bool twins);
    std::vector<float> named_rows(const StepRun& step);
    static ConstTensor as_rows(const void* data, DType dtype, size_t n, uint32_t heads);
    Saved read_rows(uint32_t stream, const std::vector<uint32_t>& slots);
    void put_rows(uint32_t stream, const Saved& saved, const std::vector<uint32_t>& slots);

    std::mt19937_64 random_;
    bool named_;
    bool reuses_;  // layer 1 attends what layer 0 selects
    Config config_;
    ModelShape shape_;
    std::unique_ptr<Session> session_;
    std::vector<Stream> streams_;
    std::vector<Saved> saved_;         // one sequence each
    std::vector<Saved> saved_streams_;
    uint64_t version_ = 0;
    Counts counts_;
};

}  // namespace shoal::testing
