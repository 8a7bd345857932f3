// Session::save and Session::load: what was saved comes back, decodes as before, and a file that
// is refused leaves no trace.
#include <gmock/gmock.h>

#include "tests/runtime/saved_support.hpp"
#include "tests/runtime/session_support.hpp"

namespace shoal::testing {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Session> make_session(const ModelShape& shape, const Config& config,
                                      SessionOptions options = {}) {
    if (options.slots_per_store == 0) options.slots_per_store = 4096;
    options.queries_per_step_max = 1024;
    Result<std::unique_ptr<Session>> made = Session::create(config, shape, options);
    if (!made) throw std::runtime_error(made.status().message());
    return std::move(*made);
}

// Writes random rows to some slots of every layer, in this order.
void fill(Session& session, StoreId store, const ModelShape& shape,
          const std::vector<int64_t>& slots, uint64_t seed) {
    RandomRows rows(seed);
    const auto n = static_cast<uint32_t>(slots.size());
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& s = shape.layers[l];
        if (s.kind == LayerKind::none) continue;
        const std::vector<float> k = rows.make(n, s.kv_head_count, s.k_head_dim);
        const std::vector<float> v = rows.make(n, s.kv_head_count, s.v_head_dim);
        const Status put = session.put({l}, store, slots,
                                       tensor_of(k, n, s.kv_head_count, s.k_head_dim),
                                       tensor_of(v, n, s.kv_head_count, s.v_head_dim));
        ASSERT_TRUE(put) << put.message();
    }
}

// All rows of slots [0, slot_end) of every layer.
std::vector<std::byte> rows_of(const Session& session, StoreId store, const ModelShape& shape,
                               uint32_t slot_end) {
    std::vector<int64_t> slots;
    for (uint32_t i = 0; i < slot_end; ++i) slots.push_back(i);
    SavedHeader header;
    header.shape = shape;
    std::vector<std::byte> all;
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        if (shape.layers[l].kind == LayerKind::none) continue;
        for (const auto& [part, kind] : {std::pair{Session::Part::k, SavedKind::k_rows},
                                         std::pair{Session::Part::v, SavedKind::v_rows}}) {
            std::vector<std::byte> rows(size_t{slot_end} * saved_row_bytes(header, l, kind));
            EXPECT_TRUE(session.read({l}, store, slots, part, rows));
            all.insert(all.end(), rows.begin(), rows.end());
        }
    }
    return all;
}

// One decode step in `store` at slot `slot` with random rows and queries: outputs of all layers.
std::vector<float> decode(Session& session, StoreId store, const ModelShape& shape, int64_t slot,
                          std::vector<SlotRange> visible, uint64_t seed) {
    RandomRows rows(seed);
    const uint32_t offsets[2] = {0, 1};
    StepInput input;
    input.stores = {&store, 1};
    input.token_offsets = offsets;
    input.slots = {&slot, 1};
    EXPECT_TRUE(session.begin_step(input));
    const uint32_t range_offsets[2] = {0, static_cast<uint32_t>(visible.size())};
    const Visibility visibility{offsets, range_offsets, visible, 0};
    std::vector<float> all;
    for (uint32_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& s = shape.layers[l];
        if (s.kind == LayerKind::none) continue;
        const std::vector<float> k = rows.make(1, s.kv_head_count, s.k_head_dim);
        const std::vector<float> v = rows.make(1, s.kv_head_count, s.v_head_dim);
        const std::vector<float> q = rows.make(1, shape.q_head_count, s.k_head_dim);
        EXPECT_TRUE(session.append({l}, tensor_of(k, 1, s.kv_head_count, s.k_head_dim),
                                   tensor_of(v, 1, s.kv_head_count, s.v_head_dim)));
        std::vector<float> out(size_t{shape.q_head_count} * s.v_head_dim);
        const Tensor to{out.data(), 1, shape.q_head_count, s.v_head_dim, out.size() * 4,
                        size_t{s.v_head_dim} * 4};
        const Status attended =
            session.attend({l}, tensor_of(q, 1, shape.q_head_count, s.k_head_dim), visibility, to);
        EXPECT_TRUE(attended) << attended.message();
        all.insert(all.end(), out.begin(), out.end());
    }
    EXPECT_TRUE(session.end_step());
    return all;
}

struct RoundTrip {
    ModelShape shape = small_model();
    std::vector<int64_t> slots;
};

std::vector<int64_t> first_slots(uint32_t count) {
    std::vector<int64_t> slots;
    for (uint32_t i = 0; i < count; ++i) slots.push_back(i);
    return slots;
}

std::vector<RoundTrip> round_trips() {
    std::vector<RoundTrip> cases;
    for (const uint32_t tokens : {1U, 3U, 127U, 128U, 129U, 1000U, 3000U}) {
        cases.push_back({small_model(), first_slots(tokens)});
    }
    for (const DType k : {DType::f16, DType::bf16, DType::f32}) {
        for (const DType v : {DType::f16, DType::f32}) {
            ModelShape shape = small_model(2, 2, 4, 48);
            shape.rows = {k, v};
            shape.layers[1].v_head_dim = 80;
            cases.push_back({shape, first_slots(200)});
        }
    }
    // Sliding layers, a layer without KV, one head for all queries, many slots a chunk.
    ModelShape mixed = small_model(4, 2, 2, 64);
    mixed.layers[1].kind = LayerKind::sliding;
    mixed.layers[1].window = 100;
    mixed.layers[2] = {LayerKind::none, 0, 0, 0, 0};
    mixed.layers[3].kv_head_count = 1;
    cases.push_back({mixed, first_slots(300)});
    cases.push_back({small_model(1, 16, 1, 256, DType::f32), first_slots(200)});
    cases.push_back({small_model(2, 3, 2, 80, DType::q8), first_slots(300)});
    // Slots with gaps, in an order of their own: the last are the safety window all the same.
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < 700; ++i) slots.push_back((i * 997) % 1009);
    cases.push_back({small_model(), slots});
    cases.push_back({small_model(), {2000, 5}});
    return cases;
}

class SessionSave : public ::testing::Test {
protected:
    TestFolder folder_;
    std::string path_ = folder_.file("sequence");
};

class SessionSaveRoundTrip : public ::testing::TestWithParam<RoundTrip> {};

TEST_P(SessionSaveRoundTrip, RowsOrderAndNotesComeBack) {
    const RoundTrip& c = GetParam();
    const TestFolder folder;
    const std::string path = folder.file("sequence");
    const auto session = make_session(c.shape, test_config());
    const StoreId store = *session->open();
    fill(*session, store, c.shape, c.slots, 7);
    SequenceNotes notes;
    for (const int64_t slot : c.slots) notes.positions.push_back(static_cast<int32_t>(slot * 3));
    notes.logits = {0.5F, -1.0F};
    const Status saved = session->save(store, path, notes);
    ASSERT_TRUE(saved) << saved.message();

    const auto other = make_session(c.shape, test_config());
    SequenceNotes back;
    const Result<StoreId> loaded = other->load(path, &back);
    ASSERT_TRUE(loaded) << loaded.status().message();
    const auto slot_end =
        static_cast<uint32_t>(*std::max_element(c.slots.begin(), c.slots.end()) + 1);
    EXPECT_EQ(rows_of(*other, *loaded, c.shape, slot_end),
              rows_of(*session, store, c.shape, slot_end));
    EXPECT_EQ(back.positions, notes.positions);
    EXPECT_EQ(back.logits, notes.logits);
    EXPECT_TRUE(back.token_ids.empty());
    std::vector<int64_t> sorted = c.slots;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_TRUE(std::equal(back.slots.begin(), back.slots.end(), sorted.begin(), sorted.end()));

    std::vector<SlotRange> visible;
    for (const int64_t slot : sorted) {
        const auto at = static_cast<uint32_t>(slot);
        if (!visible.empty() && visible.back().end == at) visible.back().end++;
        else visible.push_back({at, at + 1});
    }
    const int64_t next = 3500;
    visible.push_back({3500, 3501});
    for (uint64_t seed = 0; seed < 3; ++seed) {
        EXPECT_EQ(decode(*session, store, c.shape, next, visible, seed),
                  decode(*other, *loaded, c.shape, next, visible, seed));
    }
}

INSTANTIATE_TEST_SUITE_P(Awkward, SessionSaveRoundTrip, ::testing::ValuesIn(round_trips()));

// Labels come from statistics that the first session learnt: the second has none of its own.
TEST_F(SessionSave, DecodesAsTheSessionThatSavedIt) {
    const ModelShape shape = small_model();
    Driver first(test_config(), shape, 4096);
    first.step(300);
    first.step(500);
    first.step(133);
    ASSERT_TRUE(first.session().has_channel_statistics());
    ASSERT_TRUE(first.session().save(first.store(), path_));

    Driver second(test_config(), shape, 4096);
    ASSERT_TRUE(second.session().close(second.store()));
    const Result<StoreId> loaded = second.session().load(path_);
    ASSERT_TRUE(loaded) << loaded.status().message();
    EXPECT_TRUE(second.session().has_channel_statistics());
    second.continue_from(first, *loaded);
    for (uint32_t i = 0; i < 40; ++i) ASSERT_EQ(first.step(1), second.step(1)) << "step " << i;
    EXPECT_GT(second.session().stats().selections, 0U);
    EXPECT_EQ(first.session().attended_slots({1}, 0, 1),
              second.session().attended_slots({1}, 0, 1));
    ASSERT_EQ(first.step(100), second.step(100));
}

TEST_F(SessionSave, OneFileServesManyConfigurations) {
    const ModelShape shape = small_model();
    Driver first(test_config(), shape, 4096);
    first.step(700);
    ASSERT_TRUE(first.session().save(first.store(), path_));
    for (const SharingKind sharing : {SharingKind::layer, SharingKind::head}) {
        for (const SelectorKind kind : {SelectorKind::page_bounds, SelectorKind::dense}) {
            Config config = test_config(64);
            config.sharing.kind = sharing;
            config.selector.kind = kind;
            Driver second(config, shape, 1024);
            ASSERT_TRUE(second.session().close(second.store()));
            const Result<StoreId> loaded = second.session().load(path_);
            ASSERT_TRUE(loaded) << loaded.status().message();
            second.continue_from(first, *loaded);
            EXPECT_EQ(rows_of(second.session(), *loaded, shape, 700),
                      rows_of(first.session(), first.store(), shape, 700));
            second.step(1);
        }
    }
}

// Rows kept as q8 lie in the file as they are kept: codes and scales, bit for bit.
TEST_F(SessionSave, RowsOfQ8AreSavedAsTheyAreKept) {
    const ModelShape shape = small_model();
    Config q8 = test_config();
    q8.host.rows = HostRows::q8;
    Driver first(q8, shape, 4096);
    first.step(900);
    ASSERT_TRUE(first.session().save(first.store(), path_));
    Driver second(q8, shape, 4096);
    ASSERT_TRUE(second.session().close(second.store()));
    const Result<StoreId> loaded = second.session().load(path_);
    ASSERT_TRUE(loaded) << loaded.status().message();
    second.continue_from(first, *loaded);
    EXPECT_EQ(rows_of(second.session(), *loaded, shape, 900),
              rows_of(first.session(), first.store(), shape, 900));
    const std::string again = folder_.file("again");
    ASSERT_TRUE(second.session().save(*loaded, again));
    // But for the fronts, which have a number of their own.
    EXPECT_EQ(read_file(again).substr(kSavedPageBytes), read_file(path_).substr(kSavedPageBytes));
    for (uint32_t i = 0; i < 10; ++i) ASSERT_EQ(first.step(1), second.step(1)) << "step " << i;

    const std::string f16 = folder_.file("f16");
    Driver other(test_config(), shape, 4096);
    other.step(900);
    ASSERT_TRUE(other.session().save(other.store(), f16));
    EXPECT_LT(read_file(path_).size() * 10, read_file(f16).size() * 6);
    const auto refused = [&](const Config& config, const std::string& path) {
        return make_session(shape, config)->load(path).status().message();
    };
    EXPECT_EQ(refused(test_config(), path_),
              path_ + ": rows.k = q8: this session has f16");
    EXPECT_EQ(refused(q8, f16), f16 + ": rows.k = f16: this session has q8");
}

// A q8 row next to the largest f16 is a little larger once its scale is rounded: read back as f16
// it is that number, not Inf.
TEST_F(SessionSave, Q8RowsNextToTheLargestF16AreReadAsNumbers) {
    const ModelShape shape = small_model(1);
    Config q8 = test_config();
    q8.host.rows = HostRows::q8;
    const std::unique_ptr<Session> session = make_session(shape, q8);
    const LayerShape& layer = shape.layers[0];
    const uint32_t dim = layer.k_head_dim;
    const StoreId store = *session->open();
    for (const float most : {65504.0F, -65504.0F, 65400.0F, 65280.0F}) {
        const std::vector<float> row(size_t{layer.kv_head_count} * dim, most);
        const std::vector<int64_t> slots = {0};
        const ConstTensor tensor = testing::tensor_of(row, 1, layer.kv_head_count, dim);
        ASSERT_TRUE(session->put({0}, store, slots, tensor, tensor));
        std::vector<uint16_t> out(row.size());
        ASSERT_TRUE(session->read({0}, store, slots, Session::Part::k,
                                  std::as_writable_bytes(std::span(out))));
        for (const uint16_t bits : out) {
            const float got = kernels::f16_to_f32(bits);
            ASSERT_TRUE(std::isfinite(got)) << most;
            ASSERT_NEAR(got / most, 1.0F, 1.0F / 256.0F);
        }
    }
}

TEST_F(SessionSave, FilesOfOthersAreRefusedByName) {
    const ModelShape shape = small_model();
    SessionOptions options;
    options.model_fingerprint = "llama 135M";
    options.rope_fingerprint = "base 10000";
    const auto session = make_session(shape, test_config(), options);
    const StoreId store = *session->open();
    fill(*session, store, shape, first_slots(600), 1);
    ASSERT_TRUE(session->save(store, path_));
    struct Case {
        std::function<void(ModelShape&, SessionOptions&)> change;
        const char* message;
    };
    const std::vector<Case> cases = {
        {[](ModelShape&, SessionOptions& o) { o.model_fingerprint = "qwen2 7B"; },
         "model = \"llama 135M\": this session has \"qwen2 7B\""},
        {[](ModelShape&, SessionOptions& o) { o.rope_fingerprint = "base 500000"; },
         "rope = \"base 10000\": this session has \"base 500000\""},
        {[](ModelShape& s, SessionOptions&) { s.rows.k = DType::bf16; },
         "rows.k = f16: this session has bf16"},
        {[](ModelShape& s, SessionOptions&) { s.rows.v = DType::f32; },
         "rows.v = f16: this session has f32"},
        {[](ModelShape& s, SessionOptions&) { s.q_head_count = 12; },
         "q_head_count = 9: this session has 12"},
        {[](ModelShape& s, SessionOptions&) { s.layers.pop_back(); },
         "layer count = 3: this session has 2"},
        {[](ModelShape& s, SessionOptions&) { s.layers[2].kind = LayerKind::sliding; },
         "layers[2].kind = 0: this session has 1"},
        {[](ModelShape& s, SessionOptions&) { s.layers[1].kv_head_count = 1; },
         "layers[1].kv_head_count = 3: this session has 1"},
        {[](ModelShape& s, SessionOptions&) { s.layers[1].k_head_dim = 32; },
         "layers[1].k_head_dim = 64: this session has 32"},
        {[](ModelShape& s, SessionOptions&) { s.layers[0].v_head_dim = 128; },
         "layers[0].v_head_dim = 64: this session has 128"},
        {[](ModelShape&, SessionOptions& o) { o.slots_per_store = 599; },
         "slot_end = 600: this session has slots_per_store = 599"},
    };
    for (const Case& c : cases) {
        ModelShape other_shape = shape;
        SessionOptions other_options = options;
        c.change(other_shape, other_options);
        const auto other = make_session(other_shape, test_config(), other_options);
        const Result<StoreId> loaded = other->load(path_);
        ASSERT_FALSE(loaded) << c.message;
        EXPECT_EQ(loaded.status().code(), StatusCode::invalid_argument);
        EXPECT_THAT(loaded.status().message(), HasSubstr(path_ + ": " + c.message));
        EXPECT_EQ(other->stats().slots_used, 0U);
    }
    // What is not known is not compared.
    EXPECT_TRUE(make_session(shape, test_config())->load(path_));
}

TEST_F(SessionSave, ARefusedFileLeavesNoTrace) {
    const ModelShape shape = small_model();
    SessionOptions options;
    options.store_count_max = 2;
    const auto session = make_session(shape, test_config(), options);
    const auto twin = make_session(shape, test_config(), options);
    Driver saved(test_config(), shape, 4096, 5);
    saved.step(900);
    ASSERT_TRUE(saved.session().save(saved.store(), path_));
    // One byte of the last chunk: every other row has been taken by then.
    std::string bytes = read_file(path_);
    char& byte = bytes[bytes.size() - kSavedPageBytes];
    byte = static_cast<char>(byte ^ 1);
    write_file(path_, bytes);

    const StoreId store = *session->open();
    ASSERT_EQ(store, *twin->open());
    fill(*session, store, shape, first_slots(500), 1);
    fill(*twin, store, shape, first_slots(500), 1);
    const Result<StoreId> loaded = session->load(path_);
    ASSERT_EQ(loaded.status().code(), StatusCode::corrupt) << loaded.status().message();
    EXPECT_THAT(loaded.status().message(), HasSubstr("its checksum differs"));
    const Stats after = session->stats();
    EXPECT_EQ(after.slots_used, twin->stats().slots_used);
    EXPECT_EQ(after.tokens_written, twin->stats().tokens_written);
    EXPECT_FALSE(session->has_channel_statistics());
    for (uint64_t seed = 0; seed < 3; ++seed) {
        ASSERT_EQ(decode(*session, store, shape, 500, {{0, 501}}, seed),
                  decode(*twin, store, shape, 500, {{0, 501}}, seed));
    }
    // The store that was filled in vain is free, empty and has its old number.
    const StoreId next = *session->open();
    EXPECT_EQ(next, *twin->open());
    EXPECT_EQ(rows_of(*session, next, shape, 900), rows_of(*twin, next, shape, 900));
}

TEST_F(SessionSave, MisuseIsRefused) {
    const ModelShape shape = small_model(2);
    const auto session = make_session(shape, test_config());
    const StoreId store = *session->open();
    EXPECT_THAT(session->save(store, path_).message(), HasSubstr("the store is empty"));
    fill(*session, store, shape, first_slots(4), 1);
    SequenceNotes short_of_one;
    short_of_one.token_ids = {1, 2, 3};
    EXPECT_THAT(session->save(store, path_, short_of_one).message(),
                HasSubstr("notes.token_ids: 3 entries: must be one per token of the store = 4"));
    EXPECT_THAT(session->load(path_).status().message(), HasSubstr("all 1 stores are open"));
    const uint32_t offsets[2] = {0, 1};
    StepInput input;
    input.stores = {&store, 1};
    input.token_offsets = offsets;
    ASSERT_TRUE(session->begin_step(input));
    EXPECT_THAT(session->save(store, path_).message(), HasSubstr("a step is open"));
    EXPECT_THAT(session->load(path_).status().message(), HasSubstr("a step is open"));
    ASSERT_TRUE(session->end_step());
    EXPECT_THAT(session->save(store, path_).message(),
                HasSubstr("slot 4 has neither K nor V in layer 0: tokens must be whole"));
    EXPECT_THAT(session->save({1, 0}, path_).message(), HasSubstr("not open"));
    EXPECT_EQ(folder_.file_count(), 0U);
}

}  // namespace
}  // namespace shoal::testing
