// Page bounds: encode, extend and scan on every backend against ref, sizes chosen to hurt.
#include "tests/kernels/page_support.hpp"

namespace shoal::kernels::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const PageCase kCases[] = {
    {.note = "one slot", .slots = 1},
    {.note = "three slots", .slots = 3, .dtype = DType::f32},
    {.note = "one short of a page", .slots = 15, .dtype = DType::bf16},
    {.note = "one page", .slots = 16},
    {.note = "one page and one slot", .slots = 17},
    {.note = "pages of 4", .slots = 141, .page_slots = 4, .q_per_kv = 3, .dtype = DType::f32},
    {.note = "pages of 8", .slots = 129, .page_slots = 8, .kv_heads = 2, .dtype = DType::bf16},
    {.note = "pages of 32", .slots = 257, .page_slots = 32, .q_per_kv = 2, .dtype = DType::f32},
    {.note = "pages of 64", .slots = 449, .page_slots = 64, .kv_heads = 2, .q_per_kv = 2},
    {.note = "more than a chunk of pages", .slots = 1063, .q_per_kv = 3},
    {.note = "the demo's shape", .slots = 400, .kv_heads = 3, .q_per_kv = 3,
     .mask = MaskKind::safety_set},
    {.note = "head_dim 128, GQA 4", .slots = 260, .kv_heads = 8, .q_per_kv = 4, .head_dim = 128,
     .dtype = DType::bf16, .mask = MaskKind::safety_set},
    {.note = "GQA 16", .q_per_kv = 16, .head_dim = 80, .mask = MaskKind::random_pages},
    {.note = "GQA 5: tiles of 4 and 1", .q_per_kv = 5, .head_dim = 96, .dtype = DType::f32},
    {.note = "head_dim 32", .head_dim = 32},
    {.note = "head_dim 48", .q_per_kv = 2, .head_dim = 48, .dtype = DType::f32,
     .mask = MaskKind::random_pages},
    {.note = "head_dim 256", .q_per_kv = 2, .head_dim = 256, .dtype = DType::bf16},
    {.note = "q8", .slots = 300, .kv_heads = 3, .q_per_kv = 3, .dtype = DType::q8,
     .mask = MaskKind::safety_set},
    {.note = "random masks", .slots = 513, .kv_heads = 3, .q_per_kv = 3,
     .mask = MaskKind::random_pages},
    {.note = "hidden spans", .slots = 520, .kv_heads = 3, .q_per_kv = 3,
     .mask = MaskKind::hidden_spans},
};

class PageBoundsTest : public ::testing::TestWithParam<BackendCase> {
protected:
    TargetScope scope_{GetParam()};
    const Backend& backend_ = *GetParam().backend;
};

// The definition in the test's own words: no key outside, and no slack beyond the stored dtype.
TEST_P(PageBoundsTest, EncodeHoldsEveryKeyTightly) {
    for (const PageCase& c : kCases) {
        SCOPED_TRACE(c.note);
        TestPages pages(c, backend_);
        ASSERT_TRUE(pages.intact());
        const bool is_rounded = c.dtype == DType::f32 || c.dtype == DType::q8;
        const float slack = is_rounded ? 0x1.0p-7F : 0.0F;
        for (uint32_t slot = 0; slot < c.slots; ++slot) {
            const uint32_t page = slot / c.page_slots;
            for (uint32_t i = 0; i < c.kv_heads * c.head_dim; ++i) {
                const float key = pages.rows().k_at(slot, i / c.head_dim, i % c.head_dim);
                ASSERT_LE(pages.least(page, i / c.head_dim, i % c.head_dim), key);
                ASSERT_GE(pages.largest(page, i / c.head_dim, i % c.head_dim), key);
            }
        }
        for (uint32_t page = 0; page < pages.page_count(); ++page) {
            for (uint32_t i = 0; i < c.head_dim; ++i) {
                float low = kInfinity;
                float high = -kInfinity;
                for (uint32_t slot = page * c.page_slots;
                     slot < std::min(c.slots, (page + 1) * c.page_slots); ++slot) {
                    low = std::min(low, pages.rows().k_at(slot, 0, i));
                    high = std::max(high, pages.rows().k_at(slot, 0, i));
                }
                ASSERT_NEAR(pages.least(page, 0, i), low, slack * std::abs(low));
                ASSERT_NEAR(pages.largest(page, 0, i), high, slack * std::abs(high));
            }
        }
    }
}

TEST_P(PageBoundsTest, ExtendInAnyPiecesIsEncode) {
    for (const PageCase& c : kCases) {
        SCOPED_TRACE(c.note);
        TestPages whole(c, ref_backend());
        TestPages pieces(c, backend_);
        std::mt19937_64 random(c.slots);
        for (uint32_t page = 0; page < pieces.page_count(); ++page) {
            for (uint32_t h = 0; h < c.kv_heads; ++h) {
                std::byte* bounds = pieces.bounds(page, h);
                backend_.page_encode(pieces.encode_input(page, h, 0), bounds);
                for (uint32_t i = 0; i < c.head_dim; ++i) {
                    ASSERT_EQ(pieces.least(page, h, i), kInfinity);
                    ASSERT_EQ(pieces.largest(page, h, i), -kInfinity);
                }
                const uint64_t all = pieces.written(page);
                for (uint64_t left = all; left != 0;) {
                    uint64_t piece = left & random();
                    if (piece == 0) piece = left & -left;
                    backend_.page_extend(pieces.encode_input(page, h, piece), bounds);
                    left &= ~piece;
                }
                for (uint32_t i = 0; i < 2 * c.head_dim; ++i) {
                    ASSERT_EQ(pieces.bound(page, h, i), whole.bound(page, h, i))
                        << "page " << page << " number " << i;
                }
            }
        }
        EXPECT_TRUE(pieces.intact());
    }
}

// A slot overwritten: encoding the page again forgets what the slot held.
TEST_P(PageBoundsTest, EncodeAfterAnOverwriteForgets) {
    const PageCase c{.slots = 32, .dtype = DType::f32};
    TestPages pages(c, backend_);
    const TestPages before(c, backend_);
    std::byte* row = pages.rows().view().k_row(5, 0);
    store_element(row, DType::f32, 7, 1000.0F);
    backend_.page_extend(pages.encode_input(0, 0, uint64_t{1} << 5), pages.bounds(0, 0));
    EXPECT_EQ(pages.largest(0, 0, 7), 1000.0F);
    store_element(row, DType::f32, 7, 0.0F);
    backend_.page_encode(pages.encode_input(0, 0, pages.written(0)), pages.bounds(0, 0));
    EXPECT_LT(pages.largest(0, 0, 7), 100.0F);
    EXPECT_GE(pages.largest(0, 0, 7), 0.0F);
}

// f32 keys at which rounding outwards goes wrong first.
TEST_P(PageBoundsTest, RoundsOutwards) {
    const float keys[] = {0.0F, -0.0F, 1.0F, -1.0F, 1.0F + 0x1.0p-23F, -1.0F - 0x1.0p-23F,
                          1.0F + 0x1.0p-8F, -1.0F - 0x1.8p-7F, 0x1.0p-149F, -0x1.0p-149F,
                          0x1.fffffep-127F, -0x1.fffffep-127F, 0x1.fffffep0F, 3.3e38F, -3.3e38F,
                          0.1F};
    const PageCase c{.slots = 16, .head_dim = 32, .dtype = DType::f32};
    TestPages pages(c, backend_);
    for (const float key : keys) {
        for (uint32_t i = 0; i < 32; ++i) {
            store_element(pages.rows().view().k_row(3, 0), DType::f32, i, key);
        }
        backend_.page_encode(pages.encode_input(0, 0, 8), pages.bounds(0, 0));
        for (uint32_t i = 0; i < 32; ++i) {
            const float low = pages.least(0, 0, i);
            const float high = pages.largest(0, 0, i);
            ASSERT_LE(low, key);
            ASSERT_GE(high, key);
            // The next number inwards is not a bound.
            const uint16_t step = f32_to_bf16(high) - f32_to_bf16(low);
            if (low == high) continue;
            ASSERT_EQ(static_cast<uint16_t>(key > 0.0F ? step : -step), 1U) << key;
        }
    }
    // Too large for bf16: saturates.
    store_element(pages.rows().view().k_row(3, 0), DType::f32, 0,
                  std::numeric_limits<float>::max());
    backend_.page_encode(pages.encode_input(0, 0, 8), pages.bounds(0, 0));
    EXPECT_EQ(pages.largest(0, 0, 0), bf16_to_f32(0x7f7f));
}

// Property: no slot of a page scores above the page, in any head.
TEST_P(PageBoundsTest, NoSlotScoresAboveItsPage) {
    for (const PageCase& c : kCases) {
        SCOPED_TRACE(c.note);
        TestPages pages(c, backend_);
        PageScanInput in = pages.scan_input(Combine::max, 0.0F);
        // One query head at a time, as a KV head of its own: the page's score is that head's bound.
        for (uint32_t head = 0; head < pages.q_head_count(); ++head) {
            PageScan scan(pages);
            const PageScanInput all = in;
            in.pages += head / c.q_per_kv * in.head_stride_bytes;
            in.kv_head_count = in.q_per_kv = 1;
            in.q += size_t{head} * in.q_head_stride;
            in.lse_guess += head;
            backend_.page_scan(in, scan.out);
            in = all;
            double sum = 0.0;
            for (uint32_t slot = 0; slot < c.slots; ++slot) {
                const uint32_t page = slot / c.page_slots;
                const uint64_t bit = uint64_t{1} << (slot % c.page_slots);
                const auto [score, magnitude] = pages.exact_score(slot, head);
                if ((page_bits_of(pages, c, page, false) & bit) != 0) sum += std::exp2(score);
                if ((page_bits_of(pages, c, page, true) & bit) == 0) continue;
                ASSERT_GE(double{scan.scores[page]}, score - 4e-6 * magnitude - 4e-6)
                    << "slot " << slot << " head " << head;
            }
            ASSERT_GE(scan.sums[0], sum * (1.0 - 1e-4));
        }
    }
}

// The pages without a selectable slot, and no others, are -inf; candidates follow from the scores.
void expect_consistent(const TestPages& pages, const PageCase& c, float threshold,
                       PageScan& scan) {
    std::vector<uint32_t> candidates;
    for (uint32_t page = 0; page < pages.page_count(); ++page) {
        if (page_bits_of(pages, c, page, true) == 0) {
            ASSERT_EQ(scan.scores[page], -kInfinity) << "page " << page;
            continue;
        }
        ASSERT_TRUE(std::isfinite(scan.scores[page])) << "page " << page;
        if (scan.scores[page] >= threshold) candidates.push_back(page);
    }
    ASSERT_EQ(std::vector<uint32_t>(scan.candidates.data(),
                                    scan.candidates.data() + scan.out.candidate_count),
              candidates);
    ASSERT_TRUE(scan.intact());
}

float median_score(const TestPages& pages, PageScan& scan) {
    std::vector<float> scores(scan.scores.data(), scan.scores.data() + pages.page_count());
    std::erase(scores, -kInfinity);
    if (scores.empty()) return 0.0F;
    std::nth_element(scores.begin(), scores.begin() + long(scores.size() / 2), scores.end());
    return scores[scores.size() / 2];
}

void expect_scan_agrees(const PageCase& c, const Backend& backend, Combine combine) {
    SCOPED_TRACE(std::string(c.note) + (combine == Combine::sum ? ", sum" : ", max"));
    TestPages pages(c, ref_backend());
    PageScan scan(pages);
    PageScan expected(pages);
    PageScanInput in = pages.scan_input(combine, 0.0F);
    backend.page_scan(in, scan.out);
    // Half of the pages become candidates, the one at the threshold itself among them.
    in.candidate_threshold = median_score(pages, scan);
    backend.page_scan(in, scan.out);
    ref_backend().page_scan(in, expected.out);
    expect_consistent(pages, c, in.candidate_threshold, scan);
    for (uint32_t page = 0; page < pages.page_count(); ++page) {
        const float score = expected.scores[page];
        if (score == -kInfinity) continue;
        // Bounds reach about 100 in f32: 1e-5 of a log2 unit and more when weighed.
        const float tolerance = combine == Combine::sum ? 1e-4F * std::abs(score) : 1e-4F;
        ASSERT_NEAR(scan.scores[page], score, tolerance + 1e-30F) << "page " << page;
    }
    for (uint32_t head = 0; head < pages.q_head_count(); ++head) {
        ASSERT_NEAR(scan.sums[head], expected.sums[head], 1e-4 * expected.sums[head]);
    }
}

TEST_P(PageBoundsTest, ScanAgreesWithRef) {
    for (const PageCase& c : kCases) {
        for (const Combine combine : {Combine::sum, Combine::max}) {
            expect_scan_agrees(c, backend_, combine);
        }
    }
}

TEST_P(PageBoundsTest, EveryHeadDimAndDType) {
    for (uint32_t head_dim = 32; head_dim <= 256; head_dim += 16) {
        for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
            SCOPED_TRACE(std::to_string(head_dim) + " " + dtype_name(dtype));
            const PageCase c{.slots = 37, .kv_heads = 2, .q_per_kv = 3, .head_dim = head_dim,
                             .dtype = dtype};
            expect_scan_agrees(c, backend_, Combine::sum);
            TestPages pages(c, backend_);
            TestPages expected(c, ref_backend());
            for (uint32_t i = 0; i < 2 * head_dim; ++i) {
                ASSERT_EQ(pages.bound(2, 1, i), expected.bound(2, 1, i)) << "number " << i;
            }
        }
    }
}

// A scan in parts gives the scores and candidates of a scan in one piece.
TEST_P(PageBoundsTest, ScanInPartsIsTheSame) {
    const PageCase c{.slots = 1500, .kv_heads = 3, .q_per_kv = 3, .mask = MaskKind::random_pages};
    TestPages pages(c, ref_backend());
    PageScan whole(pages);
    PageScan parts(pages);
    PageScanInput in = pages.scan_input(Combine::sum, 8.0F);
    backend_.page_scan(in, whole.out);
    uint32_t found = 0;
    for (const auto& [begin, end] : {std::pair{0U, 1U}, {1U, 34U}, {34U, 34U}, {34U, 94U}}) {
        in.page_begin = begin;
        in.page_end = end;
        Guarded<uint32_t> candidates(end - begin);
        parts.out.candidates = candidates.data();
        backend_.page_scan(in, parts.out);
        ASSERT_TRUE(candidates.intact());
        for (uint32_t i = 0; i < parts.out.candidate_count; ++i) {
            ASSERT_EQ(candidates[i], whole.candidates[found++]);
        }
    }
    EXPECT_GT(found, 0U);
    EXPECT_EQ(found, whole.out.candidate_count);
    EXPECT_EQ(0, std::memcmp(whole.scores.data(), parts.scores.data(), whole.scores.bytes()));
}

// A stale lse makes large or tiny scores, never NaN or infinity; outputs may be left out.
TEST_P(PageBoundsTest, ScanWithAStaleLse) {
    TestPages pages({.slots = 256, .q_per_kv = 3}, ref_backend());
    for (const float lse : {-1e6F, 1e6F}) {
        PageScan scan(pages);
        PageScanInput in = pages.scan_input(Combine::sum, 0.0F);
        const std::vector<float> stale(3, lse);
        in.lse_guess = stale.data();
        scan.out.candidates = nullptr;
        scan.out.head_sums = nullptr;
        backend_.page_scan(in, scan.out);
        for (uint32_t page = 0; page < pages.page_count(); ++page) {
            ASSERT_TRUE(std::isfinite(scan.scores[page]) && scan.scores[page] >= 0.0F);
        }
        EXPECT_TRUE(scan.intact());
    }
}

TEST(PageFormatTest, UnsupportedPagesAreNamed) {
    for (const uint32_t page_slots : {4U, 8U, 16U, 32U, 64U}) {
        EXPECT_EQ(unsupported_page_reason(page_slots), "");
    }
    for (const uint32_t page_slots : {0U, 2U, 24U, 128U}) {
        EXPECT_EQ(unsupported_page_reason(page_slots),
                  "page_slots = " + std::to_string(page_slots) +
                      ": must be a power of two from 4 to 64");
    }
    EXPECT_EQ(page_bound_bytes(64), 256U);
    EXPECT_EQ(page_bound_dtype(DType::f32), DType::bf16);
    EXPECT_EQ(page_bound_dtype(DType::q8), DType::bf16);
}

INSTANTIATE_TEST_SUITE_P(Backends, PageBoundsTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& tested) { return case_name(tested.param); });

}  // namespace
}  // namespace shoal::kernels::test
