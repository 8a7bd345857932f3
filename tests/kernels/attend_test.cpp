// Decode attention against ref: every backend and instruction set, sizes chosen to hurt.
#include <algorithm>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {
namespace {

enum class List { run, random };

struct AttendCase {
    uint32_t count = 128;         // slots in the list
    uint32_t kv_heads = 2;
    uint32_t q_per_kv = 3;
    uint32_t k_dim = 64;
    uint32_t v_dim = 64;
    DType k = DType::f16;
    DType v = DType::f16;
    uint32_t block_log2 = 4;
    List list = List::random;
    uint32_t q_padding = 0;       // floats between query heads
    float q_spread = 1.0F;
    float tolerance = 2e-6F;      // of the largest output of a head
    const char* note = "";
};

std::ostream& operator<<(std::ostream& out, const AttendCase& c) {
    return out << c.count << " slots, " << c.kv_heads << " x " << c.q_per_kv << " heads, "
               << c.k_dim << "/" << c.v_dim << ", " << dtype_name(c.k) << "/" << dtype_name(c.v)
               << ", block 2^" << c.block_log2 << " " << c.note;
}

// Rows of listed slots are filled, every other one is NaN.
struct AttendFixture {
    explicit AttendFixture(const AttendCase& c)
        : rows(make_piece_format(c.kv_heads, c.k_dim, c.v_dim, c.k, c.v), slot_count(c),
               c.block_log2),
          q(random_normal(size_t{c.kv_heads} * c.q_per_kv * (c.k_dim + c.q_padding), 7,
                          c.q_spread)) {
        if (c.list == List::random) {
            slots.resize(slot_count(c));
            for (uint32_t i = 0; i < slots.size(); ++i) slots[i] = i;
            std::shuffle(slots.begin(), slots.end(), std::minstd_rand(11));
            slots.resize(c.count);
            std::sort(slots.begin(), slots.end());
            in.slots.slots = slots.data();
        } else {
            in.slots.first = 5;
        }
        in.slots.count = c.count;
        for (uint32_t i = 0; i < c.count; ++i) rows.fill(in.slots.at(i), 1, 3);
        in.kv = rows.view();
        in.q = q.data();
        in.q_head_stride = c.k_dim + c.q_padding;
        in.q_per_kv = c.q_per_kv;
        in.scale = 1.0F / std::sqrt(static_cast<float>(c.k_dim));
    }
    static uint32_t slot_count(const AttendCase& c) { return c.count * 2 + 40; }
    uint32_t q_head_count() const { return in.kv.format.kv_head_count * in.q_per_kv; }

    TestRows rows;
    std::vector<float> q;
    std::vector<uint32_t> slots;
    AttendInput in;
};

struct AttendResult {
    std::vector<float> out;
    std::vector<float> lse;
};

// Whole attention by parts of `part_rows` and a merge.
AttendResult attend_by_parts(const Backend& backend, const AttendFixture& fixture,
                             uint32_t part_rows) {
    const uint32_t heads = fixture.q_head_count();
    const uint32_t v_dim = fixture.in.kv.format.v_head_dim;
    const uint32_t parts = (fixture.in.slots.count + part_rows - 1) / part_rows;
    const size_t state_floats = attend_partial_floats(heads, v_dim);
    std::vector<float> buffer;
    for (uint32_t part = 0; part < parts; ++part) {
        Guarded<float> state(state_floats);
        const uint32_t begin = part * part_rows;
        backend.attend_part(fixture.in, begin,
                            std::min(begin + part_rows, fixture.in.slots.count),
                            attend_partial_at(state.data(), 0, heads, v_dim));
        EXPECT_TRUE(state.intact());
        buffer.insert(buffer.end(), state.data(), state.data() + state_floats);
    }
    Guarded<float> out(size_t{heads} * v_dim);
    Guarded<float> lse(heads);
    backend.merge({buffer.data(), parts, heads, v_dim}, {out.data(), v_dim, lse.data()});
    EXPECT_TRUE(out.intact());
    EXPECT_TRUE(lse.intact());
    return {{out.data(), out.data() + size_t{heads} * v_dim}, {lse.data(), lse.data() + heads}};
}

void expect_near(const AttendResult& got, const AttendResult& want, float tolerance) {
    const size_t v_dim = want.out.size() / want.lse.size();
    for (size_t head = 0; head < want.lse.size(); ++head) {
        float most = 0.0F;
        float error = 0.0F;
        for (size_t c = head * v_dim; c < (head + 1) * v_dim; ++c) {
            ASSERT_TRUE(std::isfinite(got.out[c])) << "head " << head;
            most = std::max(most, std::abs(want.out[c]));
            error = std::max(error, std::abs(got.out[c] - want.out[c]));
        }
        EXPECT_LE(error, tolerance * most) << "head " << head;
        EXPECT_NEAR(got.lse[head], want.lse[head], tolerance * std::abs(want.lse[head]) + 2e-6F);
    }
}

class AttendTest : public ::testing::TestWithParam<std::tuple<BackendCase, AttendCase>> {};

TEST_P(AttendTest, MatchesRef) {
    const auto& [backend, c] = GetParam();
    const TargetScope scope(backend);
    const AttendFixture fixture(c);
    const AttendResult want = attend_by_parts(ref_backend(), fixture, c.count);
    expect_near(attend_by_parts(*backend.backend, fixture, c.count), want, c.tolerance);
    expect_near(attend_by_parts(*backend.backend, fixture, attend_part_rows(c.count)), want,
                c.tolerance);
}

std::vector<AttendCase> length_cases() {
    std::vector<AttendCase> cases;
    for (uint32_t count : {1, 3, 15, 16, 17, 127, 128, 129, 1093}) {
        cases.push_back({.count = count});
        cases.push_back({.count = count, .kv_heads = 1, .q_per_kv = 4, .k_dim = 128,
                         .v_dim = 128, .k = DType::bf16, .v = DType::bf16, .list = List::run});
        cases.push_back({.count = count, .k = DType::q8, .v = DType::q8});
    }
    return cases;
}

std::vector<AttendCase> shape_cases() {
    std::vector<AttendCase> cases;
    for (uint32_t q_per_kv : {1, 2, 3, 4, 5, 7, 8, 16}) {
        cases.push_back({.count = 45, .q_per_kv = q_per_kv});
    }
    for (uint32_t dim = 32; dim <= 256; dim += 16) {
        cases.push_back({.count = 35, .kv_heads = 1, .q_per_kv = 4, .k_dim = dim, .v_dim = dim});
    }
    cases.push_back({.count = 35, .k_dim = 192, .v_dim = 128, .note = "K and V differ"});
    cases.push_back({.count = 35, .k_dim = 48, .v_dim = 112, .note = "K and V differ"});
    for (DType k : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
        for (DType v : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
            cases.push_back({.count = 50, .k = k, .v = v});
        }
    }
    for (uint32_t dim = 32; dim <= 256; dim += 16) {
        cases.push_back({.count = 35, .kv_heads = 3, .q_per_kv = dim / 16 % 7 + 1, .k_dim = dim,
                         .v_dim = 288 - dim, .k = DType::q8, .v = DType::q8});
    }
    // 64 query heads go through a tile together, 4 at a time.
    cases.push_back({.count = 150, .kv_heads = 9, .q_per_kv = 16, .k = DType::q8, .v = DType::q8,
                     .list = List::run});
    for (uint32_t log2 = 0; log2 <= 5; ++log2) {
        cases.push_back({.count = 70, .block_log2 = log2});
        cases.push_back({.count = 70, .block_log2 = log2, .list = List::run});
    }
    cases.push_back({.count = 70, .q_padding = 16, .note = "strided q"});
    cases.push_back({.count = 70, .q_padding = 3, .note = "q not aligned"});
    cases.push_back({.count = 300, .q_spread = 8e3F, .tolerance = 2e-2F,
                     .note = "scores of +-1e4: weights off by what 1e4 rounds to"});
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Lengths, AttendTest,
                         ::testing::Combine(::testing::ValuesIn(all_backends()),
                                            ::testing::ValuesIn(length_cases())),
                         [](const auto& instance) {
                             return case_name(std::get<0>(instance.param)) + "_" +
                                    std::to_string(instance.index);
                         });
INSTANTIATE_TEST_SUITE_P(Shapes, AttendTest,
                         ::testing::Combine(::testing::ValuesIn(all_backends()),
                                            ::testing::ValuesIn(shape_cases())),
                         [](const auto& instance) {
                             return case_name(std::get<0>(instance.param)) + "_" +
                                    std::to_string(instance.index);
                         });

class AttendBackendTest : public ::testing::TestWithParam<BackendCase> {};

// Invariant 1: a list of everything and a run over everything are the same computation.
TEST_P(AttendBackendTest, ListOfEverythingIsBitIdenticalToRun) {
    const TargetScope scope(GetParam());
    AttendFixture fixture({.count = 300, .list = List::run});
    const AttendResult run = attend_by_parts(*GetParam().backend, fixture, 128);
    for (uint32_t i = 0; i < 300; ++i) fixture.slots.push_back(fixture.in.slots.at(i));
    fixture.in.slots.slots = fixture.slots.data();
    const AttendResult list = attend_by_parts(*GetParam().backend, fixture, 128);
    EXPECT_EQ(run.out, list.out);
    EXPECT_EQ(run.lse, list.lse);
}

// Invariant 2: where rows lie does not matter.
TEST_P(AttendBackendTest, BlockSizeDoesNotChangeABit) {
    const TargetScope scope(GetParam());
    const AttendFixture small({.count = 200, .block_log2 = 0});
    const AttendFixture large({.count = 200, .block_log2 = 5});
    EXPECT_EQ(attend_by_parts(*GetParam().backend, small, 128).out,
              attend_by_parts(*GetParam().backend, large, 128).out);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttendBackendTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& instance) { return case_name(instance.param); });

}  // namespace
}  // namespace shoal::kernels::test
