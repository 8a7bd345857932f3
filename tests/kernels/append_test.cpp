// append and the dtype conversions: every backend against ref, bit for bit.
#include <algorithm>
#include <array>

#include "tests/kernels/support.hpp"

namespace shoal::kernels::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kDTypes[] = {DType::f16, DType::bf16, DType::f32, DType::q8};

// Numbers at which a conversion goes wrong first.
std::vector<float> awkward_numbers() {
    std::vector<float> numbers = {
        0.0F, -0.0F, 1.0F, -1.0F, 65504.0F, 65519.9F, 65520.0F, -65520.0F, 65536.0F, 1e30F,
        3.4e38F, 0x1.0p-14F, 0x1.ffcp-15F, 0x1.0p-24F, 0x1.0p-25F, 0x1.000002p-25F, -0x1.8p-24F,
        0x1.0p-126F, 0x1.0p-149F, 1.0F + 0x1.0p-11F, 1.0F + 0x1.8p-10F, 1.0F + 0x1.0p-8F,
        1.0F + 0x1.8p-7F, 2049.0F, 2051.0F, 0.1F, 1.0F / 3.0F};
    for (const float number : random_normal(500, 7, 100.0F)) {
        numbers.push_back(number);
        numbers.push_back(number * 1e-7F);
    }
    return numbers;
}

TEST(ConvertTest, F16RoundTripsEveryPattern) {
    for (uint32_t half = 0; half < 65536; ++half) {
        const float value = f16_to_f32(static_cast<uint16_t>(half));
        const bool is_nan = (half & 0x7fffU) > 0x7c00U;
        EXPECT_EQ(std::isnan(value), is_nan);
        EXPECT_EQ(f32_to_f16(value), is_nan ? half | 0x0200U : half);
    }
}

// Against the definition: the nearest neighbour, ties to the even one.
TEST(ConvertTest, F16RoundsToNearestEven) {
    for (uint32_t half = 0; half < 0x7bffU; ++half) {
        const double low = f16_to_f32(static_cast<uint16_t>(half));
        const double high = f16_to_f32(static_cast<uint16_t>(half + 1));
        const float middle = static_cast<float>((low + high) / 2);
        EXPECT_EQ(f32_to_f16(middle), (half & 1U) == 0 ? half : half + 1);
        EXPECT_EQ(f32_to_f16(std::nextafter(middle, 0.0F)), half);
        EXPECT_EQ(f32_to_f16(std::nextafter(middle, kInfinity)), half + 1);
        EXPECT_EQ(f32_to_f16(-std::nextafter(middle, kInfinity)), (half + 1) | 0x8000U);
    }
    EXPECT_EQ(f32_to_f16(65519.0F), 0x7bffU);
    EXPECT_EQ(f32_to_f16(65520.0F), 0x7c00U);
    EXPECT_EQ(f32_to_f16(-kInfinity), 0xfc00U);
}

TEST(ConvertTest, Bf16RoundsToNearestEven) {
    EXPECT_EQ(f32_to_bf16(1.0F + 0x1.0p-8F), 0x3f80U);
    EXPECT_EQ(f32_to_bf16(1.0F + 0x1.8p-7F), 0x3f82U);
    EXPECT_EQ(f32_to_bf16(1.0F + 0x1.02p-8F), 0x3f81U);
    EXPECT_EQ(f32_to_bf16(3.4e38F), 0x7f80U);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7fffffffU)), 0x7fffU);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7f800001U)), 0x7fc0U);
    EXPECT_EQ(f32_to_bf16(0x1.0p-149F), 0x0000U);
}

struct AppendCase {
    const char* note = "";
    uint32_t kv_heads = 1;
    uint32_t k_head_dim = 64;
    uint32_t v_head_dim = 64;
    std::vector<int64_t> slots;
};

const AppendCase kCases[] = {
    {.note = "one token", .slots = {0}},
    {.note = "adjacent, across blocks", .kv_heads = 3, .slots = {13, 14, 15, 16, 17}},
    {.note = "scattered", .kv_heads = 2, .k_head_dim = 48, .v_head_dim = 80,
     .slots = {99, 3, 50, 7}},
    {.note = "overwritten twice", .kv_heads = 8, .k_head_dim = 128, .v_head_dim = 128,
     .slots = {5, 5, 6}},
    {.note = "head_dim 32 and 256", .k_head_dim = 32, .v_head_dim = 256, .slots = {1, 2, 3}},
    {.note = "nothing", .slots = {}},
};

class AppendTest : public ::testing::TestWithParam<BackendCase> {
protected:
    TargetScope scope_{GetParam()};
    const Backend& backend_ = *GetParam().backend;
};

// Engine-side rows [token][head], with one head more than is taken and gaps between rows.
struct Source {
    Source(const AppendCase& c, uint32_t head_dim, DType dtype, const std::vector<float>& numbers)
        : bytes(1 + c.slots.size() * (c.kv_heads + 1) * (head_dim + 16) * 4) {
        tensor = {bytes.data(), dtype, static_cast<uint32_t>(c.slots.size()), c.kv_heads + 1,
                  head_dim, (c.kv_heads + 1) * (head_dim + 16) * size_t{4},
                  (head_dim + 16) * size_t{4}};
        size_t next = 0;
        for (uint32_t i = 0; i < tensor.n; ++i) {
            for (uint32_t h = 0; h < tensor.heads; ++h) {
                std::byte* row =
                    bytes.data() + i * tensor.n_stride_bytes + h * tensor.head_stride_bytes;
                std::vector<float> values(head_dim);
                for (float& value : values) value = numbers[next++ % numbers.size()];
                set_row(row, values);
            }
        }
    }
    // A row of q8 is followed by its scale.
    void set_row(std::byte* row, const std::vector<float>& values) const {
        if (tensor.dtype == DType::q8) {
            const uint16_t scale = q8_store_row(values.data(), tensor.head_dim, row);
            std::memcpy(row + tensor.head_dim, &scale, sizeof(scale));
            return;
        }
        for (uint32_t d = 0; d < tensor.head_dim; ++d) {
            store_element(row, tensor.dtype, d, values[d]);
        }
    }
    std::vector<std::byte> bytes;
    ConstTensor tensor;
};

void expect_same_rows(const TestRows& rows, const TestRows& expected) {
    for (uint32_t slot = 0; slot < rows.slot_count(); ++slot) {
        ASSERT_EQ(0, std::memcmp(rows.view().piece(slot), expected.view().piece(slot),
                                 rows.view().format.piece_stride_bytes))
            << "slot " << slot;
        if (rows.view().scales == nullptr) continue;
        ASSERT_EQ(0, std::memcmp(rows.view().scales_of(slot), expected.view().scales_of(slot),
                                 rows.view().format.scale_bytes()))
            << "slot " << slot;
    }
}

TEST_P(AppendTest, WritesWhatRefWritesAndNothingElse) {
    const std::vector<float> numbers = awkward_numbers();
    for (const AppendCase& c : kCases) {
        for (const DType from : kDTypes) {
            for (const DType to : kDTypes) {
                SCOPED_TRACE(c.note);
                const PieceFormat format =
                    make_piece_format(c.kv_heads, c.k_head_dim, c.v_head_dim, to, to);
                TestRows rows(format, 100);
                TestRows expected(format, 100);
                for (const RowPart part : {RowPart::k, RowPart::v}) {
                    const uint32_t dim = part == RowPart::k ? c.k_head_dim : c.v_head_dim;
                    const Source source(c, dim, from, numbers);
                    AppendInput in{rows.view(), part, source.tensor, 1, c.slots.data()};
                    const AppendResult result = backend_.append(in);
                    in.kv = expected.view();
                    EXPECT_EQ(result.finite, ref_backend().append(in).finite);
                }
                expect_same_rows(rows, expected);
            }
        }
    }
}

TEST_P(AppendTest, FindsEveryNonFiniteNumber) {
    const AppendCase c{.kv_heads = 2, .slots = {4, 5, 6}};
    const float bad[] = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                         -std::numeric_limits<float>::quiet_NaN(),
                         std::bit_cast<float>(0x7fffffffU), std::bit_cast<float>(0xff800001U)};
    for (const DType from : kDTypes) {
        for (const DType to : kDTypes) {
            TestRows rows(make_piece_format(2, 64, 64, to, to), 16);
            Source source(c, 64, from, {1.0F});
            AppendInput in{rows.view(), RowPart::k, source.tensor, 0, c.slots.data()};
            EXPECT_TRUE(backend_.append(in).finite);
            for (const float number : bad) {
                for (const uint32_t at : {0U, 31U, 63U}) {
                    std::byte* row = source.bytes.data() + 2 * source.tensor.n_stride_bytes;
                    std::vector<float> values(64, 1.0F);
                    values[at] = number;
                    source.set_row(row, values);
                    EXPECT_FALSE(backend_.append(in).finite) << number << " at " << at;
                    values[at] = 1.0F;
                    source.set_row(row, values);
                }
            }
        }
    }
}

TEST_P(AppendTest, OverflowOfTheStoredTypeIsNotFinite) {
    const AppendCase c{.slots = {0}};
    TestRows rows(make_piece_format(1, 64, 64, DType::f16, DType::bf16), 1);
    const Source source(c, 64, DType::f32, {70000.0F});
    EXPECT_FALSE(
        backend_.append({rows.view(), RowPart::k, source.tensor, 0, c.slots.data()}).finite);
    EXPECT_TRUE(
        backend_.append({rows.view(), RowPart::v, source.tensor, 0, c.slots.data()}).finite);
}

// The definition in the test's own words, over rows of every magnitude that f32 has.
TEST_P(AppendTest, Q8IsOffByHalfAStepAtMost) {
    const AppendCase c{.kv_heads = 2, .k_head_dim = 96, .v_head_dim = 96, .slots = {0, 1, 2}};
    for (int exponent = -90; exponent <= 120; exponent += 7) {
        const std::vector<float> numbers = random_normal(
            96 * 9, static_cast<uint32_t>(exponent + 100), std::ldexp(1.0F, exponent));
        const Source source(c, 96, DType::f32, numbers);
        TestRows rows(make_piece_format(2, 96, 96, DType::q8, DType::q8), 3);
        ASSERT_TRUE(
            backend_.append({rows.view(), RowPart::k, source.tensor, 1, c.slots.data()}).finite);
        for (uint32_t row = 0; row < 6; ++row) {
            const float* want = numbers.data() + (row / 2 * 3 + 1 + row % 2) * 96;
            const float largest = std::abs(*std::max_element(
                want, want + 96, [](float a, float b) { return std::abs(a) < std::abs(b); }));
            for (uint32_t i = 0; i < 96; ++i) {
                const float got = rows.k_at(row / 2, row % 2, i);
                // The scale is off by 1/256 at most.
                ASSERT_LE(std::abs(got - want[i]), largest / 127.0F * 0.5F * (1.0F + 0x1.1p-8F))
                    << "2^" << exponent << ", row " << row << ", number " << i;
            }
        }
    }
}

// A row that was read back as f16 or f32 and stored again is the same row.
TEST_P(AppendTest, Q8RowsReadBackAndStoredAgainAreTheSame) {
    const AppendCase c{.slots = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
    TestRows rows(make_piece_format(1, 64, 64, DType::q8, DType::q8), 16);
    TestRows again(make_piece_format(1, 64, 64, DType::q8, DType::q8), 16);
    for (uint32_t seed = 0; seed < 200; ++seed) {
        rows.fill_all(seed);
        for (const DType dtype : {DType::f16, DType::f32}) {
            Source source(c, 64, dtype, {0.0F});
            for (uint32_t slot = 0; slot < 16; ++slot) {
                std::vector<float> values(64);
                for (uint32_t i = 0; i < 64; ++i) values[i] = rows.k_at(slot, 0, i);
                source.set_row(source.bytes.data() + slot * source.tensor.n_stride_bytes, values);
                again.set_v(slot, 0, std::vector<float>(64, 0.0F));
                rows.set_v(slot, 0, std::vector<float>(64, 0.0F));
            }
            ASSERT_TRUE(backend_.append({again.view(), RowPart::k, source.tensor, 0,
                                         c.slots.data()}).finite);
            expect_same_rows(again, rows);
        }
    }
}

// Of a hostile file: what no row of numbers becomes.
TEST_P(AppendTest, Q8RowsThatNoNumbersMakeAreNotFinite) {
    const AppendCase c{.slots = {0}};
    const auto finite = [&](uint16_t scale, int8_t code) {
        Source source(c, 64, DType::q8, {1.0F});
        std::memset(source.bytes.data(), 3, 64);
        source.bytes[40] = static_cast<std::byte>(code);
        std::memcpy(source.bytes.data() + 64, &scale, sizeof(scale));
        TestRows rows(make_piece_format(1, 64, 64, DType::q8, DType::q8), 1);
        return backend_
            .append({rows.view(), RowPart::k, source.tensor, 0, c.slots.data()})
            .finite;
    };
    EXPECT_TRUE(finite(f32_to_bf16(0.5F), -127));
    EXPECT_FALSE(finite(f32_to_bf16(0.5F), -128));
    EXPECT_FALSE(finite(kQ8NotFinite, 3));
    EXPECT_TRUE(finite(q8_scale(std::numeric_limits<float>::max()), 127));
    EXPECT_FALSE(finite(f32_to_bf16(3e38F), 3));
}

// The largest numbers there are stay numbers.
TEST_P(AppendTest, Q8RowsOfTheLargestNumbersAreFinite) {
    const AppendCase c{.slots = {0}};
    constexpr float kMost = std::numeric_limits<float>::max();
    for (const float number : {kMost, -kMost, std::nextafter(kMost, 0.0F), 0x1.fcp127F}) {
        TestRows rows(make_piece_format(1, 64, 64, DType::q8, DType::q8), 1);
        const Source source(c, 64, DType::f32, {number});
        EXPECT_TRUE(
            backend_.append({rows.view(), RowPart::k, source.tensor, 0, c.slots.data()}).finite);
        for (uint32_t i = 0; i < 64; ++i) {
            const float got = rows.k_at(0, 0, i);
            EXPECT_TRUE(std::isfinite(got));
            EXPECT_NEAR(got / number, 1.0F, 1.0F / 256.0F);
        }
    }
}

TEST_P(AppendTest, Q8RowsOfNothingAreZeros) {
    const AppendCase c{.slots = {0}};
    for (const float number : {0.0F, -0.0F, 0x1.0p-149F, -0x1.0p-126F, 0x1.0p-101F}) {
        TestRows rows(make_piece_format(1, 64, 64, DType::q8, DType::q8), 1);
        const Source source(c, 64, DType::f32, {number});
        EXPECT_TRUE(
            backend_.append({rows.view(), RowPart::k, source.tensor, 0, c.slots.data()}).finite);
        for (uint32_t i = 0; i < 64; ++i) EXPECT_EQ(rows.k_at(0, 0, i), 0.0F);
    }
}

TEST(SupportTest, RefusesWithFieldValueAndWhatIsAllowed) {
    EXPECT_EQ(unsupported_reason(make_piece_format(8, 128, 128), 4), "");
    EXPECT_EQ(unsupported_reason(make_piece_format(1, 256, 32), 16), "");
    EXPECT_EQ(unsupported_reason(make_piece_format(1, 72, 64), 1),
              "k_head_dim = 72: must be 32 to 256, a multiple of 16");
    EXPECT_EQ(unsupported_reason(make_piece_format(1, 64, 272), 1),
              "v_head_dim = 272: must be 32 to 256, a multiple of 16");
    EXPECT_EQ(unsupported_reason(make_piece_format(1, 64, 64), 17),
              "q_per_kv = 17: must be 1 to 16");
    EXPECT_EQ(unsupported_reason(make_piece_format(0, 64, 64), 1),
              "kv_head_count = 0: must be 1 or more");
}

INSTANTIATE_TEST_SUITE_P(Backends, AppendTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& tested) { return case_name(tested.param); });

}  // namespace
}  // namespace shoal::kernels::test
