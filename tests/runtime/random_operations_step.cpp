// The steps of RandomOperations, rows read and put back, and what is checked of them.
#include "tests/runtime/random_operations.hpp"

namespace shoal::testing {

ConstTensor RandomOperations::as_rows(const void* data, DType dtype, size_t n, uint32_t heads) {
    const size_t dim_bytes = kDim * dtype_bytes(dtype);
    return {static_cast<const std::byte*>(data), dtype, static_cast<uint32_t>(n), heads, kDim,
            heads * dim_bytes, dim_bytes};
}

std::vector<float> RandomOperations::random_rows(size_t rows, uint32_t heads, bool twins) {
    std::normal_distribution<float> normal;
    std::vector<float> values(rows * heads * kDim);
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = normal(random_) * (i % kDim % 7 == 0 ? 2.0F : 0.5F);
    }
    const auto half = static_cast<ptrdiff_t>(values.size() / 2);
    if (twins) std::copy_n(values.begin(), half, values.begin() + half);
    return values;
}

// Values that say who wrote them: 1 in a channel of the token's sequence, 0 elsewhere.
std::vector<float> RandomOperations::named_rows(const StepRun& step) {
    std::vector<float> values(step.tokens.size() * kRowFloats);
    for (size_t i = 0; i < step.tokens.size(); ++i) {
        const uint32_t channel = step.tokens[i].sequence * 4 + below(4);
        for (uint32_t head = 0; head < kHeads; ++head) {
            values[i * kRowFloats + head * kDim + channel] = 1.0F;
        }
    }
    return values;
}

// Streams in any order; in each, sequences take turns.
RandomOperations::StepRun RandomOperations::plan_step(std::vector<Token> tokens, bool twins) {
    StepRun step;
    step.twins = twins;
    for (uint32_t i = 0; i < kStores; ++i) step.streams.push_back(i);
    std::shuffle(step.streams.begin(), step.streams.end(), random_);
    if (twins) step.streams = {tokens[0].stream, tokens[1].stream};
    std::erase_if(step.streams, [&](uint32_t stream) {
        return std::none_of(tokens.begin(), tokens.end(),
                            [&](const Token& token) { return token.stream == stream; });
    });
    for (const uint32_t stream : step.streams) {
        const auto first = static_cast<ptrdiff_t>(step.tokens.size());
        std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(step.tokens),
                     [&](const Token& token) { return token.stream == stream; });
        std::stable_sort(step.tokens.begin() + first, step.tokens.end(),
                         [](const Token& a, const Token& b) { return a.position < b.position; });
        step.offsets.push_back(static_cast<uint32_t>(step.tokens.size()));
    }
    for (const Token& token : step.tokens) {
        Stream& stream = streams_[token.stream];
        stream.cells[token.slot] = {1U << token.sequence, token.position};
        stream.plain.stamp(token.slot);
    }
    for (const Token& token : step.tokens) {
        std::vector<uint32_t> seen;
        for (uint32_t slot = 0; slot < kSlots; ++slot) {
            const Cell& cell = streams_[token.stream].cells[slot];
            const bool own = (cell.sequences >> token.sequence & 1U) != 0;
            if (!own || cell.position > token.position) continue;
            if (!seen.empty() && seen.back() + 1 == slot) step.ranges.back().end++;
            else step.ranges.push_back({slot, slot + 1});
            seen.push_back(slot);
        }
        step.range_offsets.push_back(static_cast<uint32_t>(step.ranges.size()));
        step.visible.push_back(std::move(seen));
    }
    return step;
}

void RandomOperations::run_step(std::vector<Token> tokens, bool twins) {
    const StepRun step = plan_step(std::move(tokens), twins);
    std::vector<StoreId> stores;
    std::vector<int64_t> slots;
    for (const uint32_t stream : step.streams) stores.push_back(streams_[stream].id);
    for (const Token& token : step.tokens) slots.push_back(token.slot);
    const Status begun = session_->begin_step({stores, step.offsets, slots, {}, {}});
    ASSERT_TRUE(begun) << begun.message();
    const Visibility visibility{step.offsets, step.range_offsets, step.ranges,
                                one_in(4) ? 0 : ++version_};
    const uint32_t given_up_at = !twins && one_in(15) ? below(kLayers) : kNone;
    for (uint32_t l = 0; l < kLayers; ++l) {
        hint(step, l + 1);
        append_layer(step, l);
        if (one_in(10)) refused_attend(step, l);
        if (l == given_up_at && one_in(2)) return give_up(step);
        attend(step, l, visibility);
        if (::testing::Test::HasFailure()) return;
        if (l == given_up_at) return give_up(step);
    }
    ASSERT_TRUE(session_->end_step());
    ++counts_.steps;
}

void RandomOperations::append_layer(const StepRun& step, uint32_t layer) {
    const size_t n = step.tokens.size();
    const std::vector<float> k = random_rows(n, kHeads, step.twins);
    const std::vector<float> v =
        named_ && !step.twins ? named_rows(step) : random_rows(n, kHeads, step.twins);
    const ConstTensor k_rows = as_rows(k.data(), DType::f32, n, kHeads);
    const ConstTensor v_rows = as_rows(v.data(), DType::f32, n, kHeads);
    if (one_in(2)) {
        ASSERT_TRUE(session_->append({layer}, k_rows, v_rows));
    } else {
        ASSERT_TRUE(session_->append({layer}, k_rows, {}));
        ASSERT_TRUE(session_->append({layer}, {}, v_rows));
    }
    for (size_t i = 0; i < n; ++i) {
        PlainStore& plain = streams_[step.tokens[i].stream].plain;
        plain.write(layer, true, step.tokens[i].slot, k.data() + i * kRowFloats);
        plain.write(layer, false, step.tokens[i].slot, v.data() + i * kRowFloats);
    }
}

// Right or wrong, an answer must not depend on it.
void RandomOperations::hint(const StepRun& step, uint32_t layer) {
    if (layer >= kLayers || !session_->wants_hint({layer}) || one_in(4)) return;
    const size_t n = step.tokens.size();
    const std::vector<float> q = random_rows(n, kQueryHeads, false);
    EXPECT_TRUE(session_->hint_query({layer}, as_rows(q.data(), DType::f32, n, kQueryHeads)));
}

// The last query would see a slot that no token has, and the first another view than before, which
// must not be taken over.
void RandomOperations::refused_attend(const StepRun& step, uint32_t layer) {
    const size_t n = step.tokens.size();
    const std::vector<float> q = random_rows(n, kQueryHeads, false);
    std::vector<float> out(q.size());
    const Tensor to{out.data(), static_cast<uint32_t>(n), kQueryHeads, kDim,
                    kQueryHeads * kDim * sizeof(float), kDim * sizeof(float)};
    std::vector<SlotRange> ranges = step.ranges;
    if (ranges.size() > 1 && ranges.front().end - ranges.front().begin > 1) --ranges.front().end;
    ranges.back().end = streams_[step.tokens.back().stream].plain.slot_end() + 1 + below(3);
    const Visibility visibility{step.offsets, step.range_offsets, ranges,
                                one_in(2) ? 0 : ++version_};
    const Status refused = session_->attend({layer}, as_rows(q.data(), DType::f32, n, kQueryHeads),
                                            visibility, to);
    ASSERT_EQ(refused.code(), StatusCode::invalid_argument) << refused.message();
    ++counts_.refused;
}

// The engine ends the step half way, or forgets it. Its cells are free again.
void RandomOperations::give_up(const StepRun& step) {
    for (const Token& token : step.tokens) streams_[token.stream].cells[token.slot] = {};
    if (one_in(2)) {
        ASSERT_TRUE(session_->end_step());
    }
    ++counts_.given_up;
}

void RandomOperations::attend(const StepRun& step, uint32_t layer, const Visibility& visibility) {
    const size_t n = step.tokens.size();
    const std::vector<float> q = random_rows(n, kQueryHeads, step.twins);
    std::vector<float> out(q.size(), NAN);
    const Tensor to{out.data(), static_cast<uint32_t>(n), kQueryHeads, kDim,
                    kQueryHeads * kDim * sizeof(float), kDim * sizeof(float)};
    const Status status = session_->attend({layer}, as_rows(q.data(), DType::f32, n, kQueryHeads),
                                           visibility, to);
    ASSERT_TRUE(status) << status.message();
    for (uint32_t i = 0; i < n; ++i) {
        const size_t row = size_t{i} * kQueryHeads * kDim;
        check_answer(step, layer, i, q.data() + row, out.data() + row);
        if (::testing::Test::HasFailure()) return;
    }
    if (!step.twins) return;
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<ptrdiff_t>(out.size() / 2),
                           out.begin() + static_cast<ptrdiff_t>(out.size() / 2)));
    for (uint32_t head = 0; head < kHeads; ++head) {
        EXPECT_EQ(session_->attended_slots({layer}, 0, head),
                  session_->attended_slots({layer}, 1, head));
    }
}

void RandomOperations::check_answer(const StepRun& step, uint32_t layer, uint32_t query,
                                    const float* q, const float* out) {
    const Token& token = step.tokens[query];
    const PlainStore& plain = streams_[token.stream].plain;
    const auto at = std::find(step.streams.begin(), step.streams.end(), token.stream);
    const auto index = static_cast<size_t>(at - step.streams.begin());
    const uint32_t together = step.offsets[index + 1] - step.offsets[index];
    const uint32_t head = below(kQueryHeads);
    SCOPED_TRACE("layer " + std::to_string(layer) + ", stream " + std::to_string(token.stream) +
                 ", sequence " + std::to_string(token.sequence) + ", slot " +
                 std::to_string(token.slot) + ", head " + std::to_string(head));
    std::vector<uint32_t> slots = step.visible[query];
    if (together <= config_.budget.sparse_queries_max) {
        slots = session_->attended_slots({layer}, query, head / (kQueryHeads / kHeads));
        check_list(layer, plain, step.visible[query], slots);
        if (reuses_ && layer == 1) {
            const uint32_t kv_head = head / (kQueryHeads / kHeads);
            ASSERT_EQ(slots, session_->attended_slots({0}, query, kv_head)) << "not its anchor's";
        }
        if (::testing::Test::HasFailure()) return;
    } else {
        EXPECT_TRUE(session_->attended_slots({layer}, query, 0).empty()) << "exact: no list";
    }
    std::vector<double> expected;
    plain.attend(layer, head, q + size_t{head} * kDim, slots, expected);
    for (uint32_t c = 0; c < kDim; ++c) {
        ASSERT_NEAR(expected[c], out[head * kDim + c], 3e-5) << "channel " << c;
        if (expected[c] != 0) continue;
        ++counts_.zeros;
        ASSERT_EQ(out[head * kDim + c], 0.0F) << "a row of another sequence, channel " << c;
    }
    ++counts_.answers;
}

void RandomOperations::check_list(uint32_t layer, const PlainStore& plain,
                                  const std::vector<uint32_t>& visible,
                                  const std::vector<uint32_t>& slots) {
    for (size_t i = 1; i < slots.size(); ++i) ASSERT_LT(slots[i - 1], slots[i]);
    ASSERT_TRUE(std::includes(visible.begin(), visible.end(), slots.begin(), slots.end()));
    const std::vector<uint32_t> safety = plain.safety(visible, config_.safety);
    ASSERT_TRUE(std::includes(slots.begin(), slots.end(), safety.begin(), safety.end()));
    const Config::Budget& budget = config_.budget;
    const bool dense = !budget.dense_layers.empty() && budget.dense_layers[0] == layer;
    // Layers learn one after the other; bounds need nothing learnt.
    const bool learns = config_.selector.kind != SelectorKind::page_bounds;
    if (learns && !session_->has_channel_statistics() && slots.size() == visible.size()) return;
    const bool all = visible.size() <= budget.dense_below || dense;
    if (budget.adaptive && !all) {
        ASSERT_GE(slots.size(), std::min(visible.size(), safety.size() + budget.rows / 4));
        ASSERT_LE(slots.size(), safety.size() + 4 * size_t{budget.rows});
        return;
    }
    ASSERT_EQ(slots.size(), all ? visible.size()
                                : std::min<size_t>(visible.size(), safety.size() + budget.rows));
}

RandomOperations::Saved RandomOperations::read_rows(uint32_t stream,
                                                    const std::vector<uint32_t>& slots) {
    Saved saved;
    saved.slots = slots;
    for (const uint32_t slot : slots) saved.cells.push_back(streams_[stream].cells[slot]);
    const std::vector<int64_t> numbers(slots.begin(), slots.end());
    for (uint32_t l = 0; l < kLayers; ++l) {
        for (const bool k : {true, false}) {
            std::vector<std::byte> expected;
            for (const uint32_t slot : slots) {
                streams_[stream].plain.append_bytes(l, k, slot, expected);
            }
            std::vector<std::byte>& bytes = saved.bytes[l][k ? 0 : 1];
            bytes.resize(expected.size());
            EXPECT_TRUE(session_->read({l}, streams_[stream].id, numbers,
                                       k ? Session::Part::k : Session::Part::v, bytes));
            EXPECT_EQ(bytes, expected) << "layer " << l << (k ? ", K" : ", V");
        }
    }
    return saved;
}

// As llama.cpp restores a state: every layer's K, then every layer's V.
void RandomOperations::put_rows(uint32_t stream, const Saved& saved,
                                const std::vector<uint32_t>& slots) {
    Stream& to = streams_[stream];
    const std::vector<int64_t> numbers(slots.begin(), slots.end());
    for (const uint32_t slot : slots) to.plain.stamp(slot);
    std::vector<float> row(kRowFloats);
    for (const bool k : {true, false}) {
        for (uint32_t l = 0; l < kLayers; ++l) {
            const std::vector<std::byte>& bytes = saved.bytes[l][k ? 0 : 1];
            const ConstTensor rows = as_rows(bytes.data(), DType::f16, slots.size(), kHeads);
            const Status status = session_->put({l}, to.id, numbers, k ? rows : ConstTensor{},
                                                k ? ConstTensor{} : rows);
            ASSERT_TRUE(status) << status.message();
            for (size_t i = 0; i < slots.size(); ++i) {
                const auto* halves = reinterpret_cast<const uint16_t*>(bytes.data()) +
                                     i * kRowFloats;
                std::transform(halves, halves + kRowFloats, row.begin(), kernels::f16_to_f32);
                to.plain.write(l, k, slots[i], row.data());
            }
        }
    }
    ++counts_.restores;
}

void RandomOperations::save() {
    if (one_in(2)) {
        const uint32_t which = any_open();
        std::vector<uint32_t> slots;
        for (uint32_t slot = 0; slot < kSlots; ++slot) {
            if (streams_[which].cells[slot].sequences != 0) slots.push_back(slot);
        }
        if (!slots.empty()) saved_streams_.push_back(read_rows(which, slots));
        return;
    }
    const uint32_t sequence = any_sequence();
    if (sequence == kNone) return;
    saved_.push_back(read_rows(stream_of(sequence), slots_of(sequence)));
}

// One sequence, under another name, wherever there is room.
void RandomOperations::restore() {
    const uint32_t sequence = unused_sequence();
    if (saved_.empty() || sequence == kNone) return;
    const Saved& saved = saved_[below(static_cast<uint32_t>(saved_.size()))];
    const uint32_t which = any_open();
    std::vector<uint32_t> slots = free_slots(which);
    if (slots.size() < saved.slots.size()) return;
    slots.resize(saved.slots.size());
    put_rows(which, saved, slots);
    for (size_t i = 0; i < slots.size(); ++i) {
        streams_[which].cells[slots[i]] = {1U << sequence, saved.cells[i].position};
    }
}

// A whole store: cleared, then every cell where it was.
void RandomOperations::restore_stream() {
    if (saved_streams_.empty()) return;
    const Saved& saved = saved_streams_[below(static_cast<uint32_t>(saved_streams_.size()))];
    const uint32_t which = any_open();
    forget_stream(which);
    ASSERT_TRUE(session_->clear(streams_[which].id));
    streams_[which].plain.truncate(0);
    uint32_t elsewhere = 0;
    for (uint32_t s = 0; s < kSequences; ++s) {
        if (stream_of(s) != kNone) elsewhere |= 1U << s;
    }
    put_rows(which, saved, saved.slots);
    for (size_t i = 0; i < saved.slots.size(); ++i) {
        streams_[which].cells[saved.slots[i]] = {saved.cells[i].sequences & ~elsewhere,
                                                 saved.cells[i].position};
    }
}

void RandomOperations::check_rows() {
    for (uint32_t which = 0; which < kStores; ++which) {
        std::vector<uint32_t> slots;
        for (uint32_t slot = 0; slot < kSlots && streams_[which].open; ++slot) {
            if (streams_[which].cells[slot].sequences != 0) slots.push_back(slot);
        }
        if (!slots.empty()) read_rows(which, slots);
    }
}

}  // namespace shoal::testing
