#include "tests/runtime/random_operations.hpp"

namespace shoal::testing {

namespace {

Executor inline_executor() {
    Executor executor;
    executor.run = [](void*, uint32_t count, Executor::Body body, void* context) {
        for (uint32_t i = 0; i < count; ++i) body(context, i, 0);
    };
    executor.thread_count = [](const void*) { return 1U; };
    return executor;
}

}  // namespace

Config RandomOperations::config() {
    Config config = test_config(12);
    config.budget.sparse_queries_max = 3;
    config.safety = {2, 5};
    config.stats.recall_every = 0;
    config.host.check_rows = true;
    return config;
}

ModelShape RandomOperations::shape() {
    return small_model(kLayers, kHeads, kQueryHeads / kHeads, kDim);
}

RandomOperations::RandomOperations(uint64_t seed, const std::string& profile, bool named,
                                   const OperationsPolicy& policy)
    : random_(seed),
      named_(named),
      reuses_(policy.sharing == SharingKind::tidal),
      config_(config()),
      shape_(shape()) {
    config_.profile.path = profile;
    config_.selector.kind = policy.selector;
    if (policy.selector != SelectorKind::labels) config_.selector.page = uint32_t{4} << below(5);
    if (policy.sharing != SharingKind::layer) config_.sharing.kind = policy.sharing;
    config_.sharing.anchors = {0};
    config_.sharing.heads = policy.heads;
    config_.budget.adaptive = policy.adaptive;
    config_.host.rows = policy.rows;
    if (policy.on_disk) config_.disk.dir = ::testing::TempDir();
    randomise_prefetch();
    const DType kept = stored_rows(config_, shape_.rows).k;
    SessionOptions options;
    options.store_count_max = kStores;
    options.slots_per_store = kSlots;
    options.queries_per_step_max = kStores * kSlots;
    options.executor = inline_executor();
    config_ = testing::with_least_memory(config_, shape_, options);
    Result<std::unique_ptr<Session>> made = Session::create(config_, shape_, options);
    if (!made) throw std::runtime_error(made.status().message());
    session_ = std::move(*made);
    for (uint32_t i = 0; i < kStores; ++i) {
        streams_.push_back(
            {{}, false, PlainStore(shape_, kSlots, kept), std::vector<Cell>(kSlots)});
    }
    streams_[0].id = *session_->open();
    streams_[0].open = true;
}

void RandomOperations::add_to(Counts& counts) const {
    counts.steps += counts_.steps;
    counts.forks += counts_.forks;
    counts.copies += counts_.copies;
    counts.shifts += counts_.shifts;
    counts.restores += counts_.restores;
    counts.refused += counts_.refused;
    counts.given_up += counts_.given_up;
    counts.answers += counts_.answers;
    counts.zeros += counts_.zeros;
    const Stats stats = session_->stats();
    counts.stats.queries_sparse += stats.queries_sparse;
    counts.stats.queries_dense += stats.queries_dense;
    counts.stats.queries_exact += stats.queries_exact;
    counts.stats.selections += stats.selections;
    counts.stats.selections_reused += stats.selections_reused;
    counts.stats.prefetch_guesses += stats.prefetch_guesses;
    counts.stats.prefetch_hints += stats.prefetch_hints;
}

void RandomOperations::run(uint32_t operations) {
    for (uint32_t i = 0; i < operations && !::testing::Test::HasFailure(); ++i) {
        SCOPED_TRACE("operation " + std::to_string(i));
        one();
    }
    check_rows();
}

void RandomOperations::one() {
    switch (below(26)) {
        case 0: case 1: case 2: return append(40);
        case 3: case 4: return append(3);
        case 5: return share();
        case 6: case 7: return fork();
        case 8: return copy();
        case 9: return shift();
        case 10: return truncate();
        case 11: return one_in(3) ? reopen() : abandon();
        case 12: return reconfigure();
        case 13: return save();
        case 14: return restore();
        case 15: return restore_stream();
        case 16: case 17: case 18: {
            const uint32_t s = any_sequence();
            if (s == kNone) return;
            const int32_t end = position_end(s);
            // A tail that a draft model guessed wrong, or anything.
            const auto first = one_in(2) ? std::max(0, end - 1 - static_cast<int32_t>(below(4)))
                                         : static_cast<int32_t>(below(static_cast<uint32_t>(end)));
            return forget(s, first, one_in(2) ? end : first + static_cast<int32_t>(below(30)));
        }
        case 19: {
            const uint32_t kept = any_sequence();
            for (uint32_t s = 0; s < kSequences && kept != kNone; ++s) {
                if (s != kept && stream_of(s) == stream_of(kept)) forget(s, 0, INT32_MAX);
            }
            return;
        }
        default: return decode();
    }
}

// --- sequences and cells ----------------------------------------------------------------------

uint32_t RandomOperations::stream_of(uint32_t sequence) const {
    for (uint32_t i = 0; i < kStores; ++i) {
        for (const Cell& cell : streams_[i].cells) {
            if ((cell.sequences >> sequence & 1U) != 0) return i;
        }
    }
    return kNone;
}

uint32_t RandomOperations::any_sequence() {
    const uint32_t first = below(kSequences);
    for (uint32_t i = 0; i < kSequences; ++i) {
        const uint32_t sequence = (first + i) % kSequences;
        if (stream_of(sequence) != kNone) return sequence;
    }
    return kNone;
}

uint32_t RandomOperations::unused_sequence() const {
    for (uint32_t s = 0; s < kSequences; ++s) {
        if (stream_of(s) == kNone) return s;
    }
    return kNone;
}

uint32_t RandomOperations::any_open() {
    uint32_t stream = below(kStores);
    while (!streams_[stream].open) stream = (stream + 1) % kStores;
    return stream;
}

uint32_t RandomOperations::any_closed() const {
    for (uint32_t i = 0; i < kStores; ++i) {
        if (!streams_[i].open) return i;
    }
    return kNone;
}

std::vector<uint32_t> RandomOperations::slots_of(uint32_t sequence) const {
    std::vector<uint32_t> slots;
    const uint32_t stream = stream_of(sequence);
    if (stream == kNone) return slots;
    const std::vector<Cell>& cells = streams_[stream].cells;
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
        if ((cells[slot].sequences >> sequence & 1U) != 0) slots.push_back(slot);
    }
    std::stable_sort(slots.begin(), slots.end(), [&](uint32_t a, uint32_t b) {
        return cells[a].position < cells[b].position;
    });
    return slots;
}

int32_t RandomOperations::position_end(uint32_t sequence) const {
    const std::vector<uint32_t> slots = slots_of(sequence);
    return slots.empty() ? 0 : streams_[stream_of(sequence)].cells[slots.back()].position + 1;
}

std::vector<uint32_t> RandomOperations::free_slots(uint32_t stream) {
    std::vector<uint32_t> slots;
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
        if (streams_[stream].cells[slot].sequences == 0) slots.push_back(slot);
    }
    if (one_in(3)) std::shuffle(slots.begin(), slots.end(), random_);
    return slots;
}

void RandomOperations::forget(uint32_t sequence, int32_t begin, int32_t end) {
    for (Stream& stream : streams_) {
        for (Cell& cell : stream.cells) {
            if (cell.position >= begin && cell.position < end) cell.sequences &= ~(1U << sequence);
        }
    }
}

void RandomOperations::forget_stream(uint32_t stream) {
    std::fill(streams_[stream].cells.begin(), streams_[stream].cells.end(), Cell{});
}

void RandomOperations::take_cells(uint32_t from, uint32_t to) {
    const std::vector<Cell> cells = streams_[from].cells;
    forget_stream(to);
    for (uint32_t s = 0; s < kSequences; ++s) {
        if (stream_of(s) != from) continue;
        const uint32_t name = unused_sequence();
        for (uint32_t slot = 0; slot < kSlots && name != kNone; ++slot) {
            if ((cells[slot].sequences >> s & 1U) == 0) continue;
            streams_[to].cells[slot].sequences |= 1U << name;
            streams_[to].cells[slot].position = cells[slot].position;
        }
    }
}

// --- operations -------------------------------------------------------------------------------

bool RandomOperations::add_tokens(std::vector<Token>& tokens, uint32_t sequence, uint32_t stream,
                                  uint32_t count) {
    std::vector<uint32_t> free = free_slots(stream);
    std::erase_if(free, [&](uint32_t slot) {
        return std::any_of(tokens.begin(), tokens.end(), [&](const Token& token) {
            return token.stream == stream && token.slot == slot;
        });
    });
    if (free.size() < count) return false;
    const int32_t first = position_end(sequence);
    for (uint32_t i = 0; i < count; ++i) {
        tokens.push_back({stream, sequence, first + static_cast<int32_t>(i), free[i]});
    }
    return true;
}

void RandomOperations::append(uint32_t most) {
    const bool starts = one_in(3) || any_sequence() == kNone;
    const uint32_t sequence = starts ? unused_sequence() : any_sequence();
    if (sequence == kNone) return forget(any_sequence(), 0, INT32_MAX);
    const uint32_t stream = starts ? any_open() : stream_of(sequence);
    std::vector<Token> tokens;
    if (!add_tokens(tokens, sequence, stream, 1 + below(most))) {
        return forget(any_sequence(), 0, INT32_MAX);
    }
    for (uint32_t s = 0; s < kSequences; ++s) {  // the others may decode meanwhile
        if (s != sequence && stream_of(s) != kNone && one_in(3)) {
            add_tokens(tokens, s, stream_of(s), 1);
        }
    }
    run_step(std::move(tokens), false);
}

void RandomOperations::decode() {
    std::vector<Token> tokens;
    const uint32_t always = any_sequence();
    for (uint32_t s = 0; s < kSequences; ++s) {
        if (stream_of(s) == kNone || (s != always && one_in(3))) continue;
        add_tokens(tokens, s, stream_of(s), 1);
    }
    if (!tokens.empty()) run_step(std::move(tokens), false);
}

// Another sequence begins with the same tokens in the same cells.
void RandomOperations::share() {
    const uint32_t from = any_sequence();
    const uint32_t to = unused_sequence();
    if (from == kNone || to == kNone) return;
    const std::vector<uint32_t> slots = slots_of(from);
    const size_t kept = 1 + below(static_cast<uint32_t>(slots.size()));
    Stream& stream = streams_[stream_of(from)];
    for (size_t i = 0; i < kept; ++i) stream.cells[slots[i]].sequences |= 1U << to;
}

void RandomOperations::fork() {
    const uint32_t from = any_open();
    uint32_t to = any_closed();
    if (to == kNone) {
        to = (from + 1) % kStores;
        ASSERT_TRUE(session_->close(streams_[to].id));
        forget_stream(to);
    }
    Result<StoreId> forked = session_->fork(streams_[from].id);
    ASSERT_TRUE(forked) << forked.status().message();
    ++counts_.forks;
    streams_[to].id = *forked;
    streams_[to].open = true;
    streams_[to].plain = streams_[from].plain;
    take_cells(from, to);
    if (one_in(2)) return;
    // The two answer alike, bit for bit.
    std::vector<Token> tokens;
    const std::vector<uint32_t> free = free_slots(from);
    for (uint32_t s = 0; s < kSequences && tokens.empty() && !free.empty(); ++s) {
        if (stream_of(s) == from) tokens.push_back({from, s, position_end(s), free[0]});
    }
    for (uint32_t s = 0; s < kSequences && tokens.size() == 1; ++s) {
        if (stream_of(s) != to || slots_of(s) != slots_of(tokens[0].sequence)) continue;
        tokens.push_back({to, s, tokens[0].position, tokens[0].slot});
    }
    if (tokens.size() == 2) run_step(std::move(tokens), true);
}

void RandomOperations::copy() {
    const uint32_t from = any_open();
    const uint32_t to = any_open();
    if (from == to) return;
    for (const Session::Part part : {Session::Part::k, Session::Part::v}) {
        for (uint32_t l = 0; l < kLayers; ++l) {
            ASSERT_TRUE(session_->copy({l}, part, streams_[from].id, streams_[to].id));
            streams_[to].plain.copy_part(l, part == Session::Part::k, streams_[from].plain);
        }
    }
    ++counts_.copies;
    streams_[to].plain.copy_order(streams_[from].plain);
    take_cells(from, to);
}

// Tokens in the middle go, those behind move up: their keys are rotated in place.
void RandomOperations::shift() {
    const uint32_t sequence = any_sequence();
    if (sequence == kNone) return;
    const auto first = static_cast<int32_t>(below(6));
    const auto gone = static_cast<int32_t>(below(12));
    forget(sequence, first, first + gone);
    std::vector<uint32_t> slots = slots_of(sequence);
    if (slots.empty()) return;
    Stream& stream = streams_[stream_of(sequence)];
    std::erase_if(slots, [&](uint32_t slot) { return stream.cells[slot].position < first; });
    if (slots.empty()) return;
    for (const uint32_t slot : slots) stream.cells[slot].position -= gone;
    const std::vector<int64_t> numbers(slots.begin(), slots.end());
    for (uint32_t l = 0; l < kLayers; ++l) {
        const std::vector<float> keys = random_rows(slots.size(), kHeads, false);
        const Status status = session_->replace(
            {l}, stream.id, numbers, as_rows(keys.data(), DType::f32, slots.size(), kHeads),
            {});
        ASSERT_TRUE(status) << status.message();
        for (size_t i = 0; i < slots.size(); ++i) {
            stream.plain.write(l, true, slots[i], keys.data() + i * kRowFloats);
        }
    }
    ++counts_.shifts;
}

void RandomOperations::truncate() {
    Stream& stream = streams_[any_open()];
    uint32_t kept = stream.plain.slot_end();
    kept -= std::min(kept, below(one_in(4) ? kSlots : 12));
    ASSERT_TRUE(session_->truncate(stream.id, kept));
    stream.plain.truncate(kept);
    for (uint32_t slot = kept; slot < kSlots; ++slot) stream.cells[slot] = {};
}

void RandomOperations::reopen() {
    const uint32_t which = any_open();
    Stream& stream = streams_[which];
    ASSERT_TRUE(session_->close(stream.id));
    EXPECT_FALSE(session_->fork(stream.id));
    forget_stream(which);
    stream.plain.truncate(0);
    stream.id = *session_->open();
}

// A step that the engine gave up: its tokens count as written, with rows in one layer or none.
void RandomOperations::abandon() {
    const uint32_t which = any_open();
    std::vector<Token> tokens;
    if (!add_tokens(tokens, 0, which, 1 + below(4))) return;
    std::vector<int64_t> slots;
    for (const Token& token : tokens) slots.push_back(token.slot);
    const uint32_t offsets[2] = {0, static_cast<uint32_t>(slots.size())};
    ASSERT_TRUE(session_->begin_step({{&streams_[which].id, 1}, offsets, slots, {}, {}}));
    for (const Token& token : tokens) streams_[which].plain.stamp(token.slot);
    if (one_in(2)) return;
    const std::vector<float> rows = random_rows(slots.size(), kHeads, false);
    const ConstTensor tensor = as_rows(rows.data(), DType::f32, slots.size(), kHeads);
    ASSERT_TRUE(session_->append({0}, tensor, tensor));
}

void RandomOperations::reconfigure() {
    config_.budget.rows = one_in(4) ? 200 : 4 + below(20);
    // A layer that reuses keeps nothing to select by: it cannot become a dense one.
    config_.budget.dense_layers = !reuses_ && one_in(3) ? std::vector<uint32_t>{1}
                                                        : std::vector<uint32_t>{};
    config_.safety = {below(5), 1 + below(9)};
    if (one_in(2)) randomise_prefetch();
    session_->end_step().is_ok();  // of a step that was given up, if any
    const Status status = session_->reconfigure(config_);
    ASSERT_TRUE(status) << status.message();
}

void RandomOperations::randomise_prefetch() {
    if (config_.disk.dir.empty()) return;
    config_.prefetch.kind = static_cast<PrefetchKind>(below(5));
    config_.prefetch.percent = 100 + below(301);
}

}  // namespace shoal::testing
