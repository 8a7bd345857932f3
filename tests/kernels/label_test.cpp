// Labels: encode, score and combine on every backend against ref, sizes chosen to hurt.
#include "tests/kernels/label_support.hpp"

namespace shoal::kernels::test {
namespace {

// Integer weights cost 1.3 to 1.6 % of the scores' standard deviation (rms); a single slot may be
// off by six times that. exp2 is linear in the mantissa on the fast backends.
constexpr double kWeightErrorRms = 0.0165;
constexpr double kExp2Error = 0.06;

const LabelCase kCases[] = {
    {.note = "one slot", .slots = 1},
    {.note = "three slots, closed", .slots = 3, .open = false},
    {.note = "one short of a span", .slots = 127, .open = false},
    {.note = "one span", .slots = 128, .open = false},
    {.note = "one span and one slot", .slots = 129},
    {.note = "the demo's shape", .slots = 1000, .kv_heads = 3, .q_per_kv = 3,
     .mask = MaskKind::safety_set},
    {.note = "head_dim 128, GQA 4", .slots = 700, .kv_heads = 8, .q_per_kv = 4, .head_dim = 128,
     .mask = MaskKind::safety_set},
    {.note = "GQA 8", .kv_heads = 2, .q_per_kv = 8, .head_dim = 128},
    {.note = "GQA 16", .q_per_kv = 16, .head_dim = 80, .mask = MaskKind::random},
    {.note = "GQA 5: tiles of 3 and 2", .q_per_kv = 5, .head_dim = 96},
    {.note = "head_dim 32", .head_dim = 32},
    {.note = "head_dim 48", .q_per_kv = 2, .head_dim = 48, .mask = MaskKind::random},
    {.note = "head_dim 256", .head_dim = 256, .dtype = DType::bf16},
    {.note = "2 bits", .q_per_kv = 3, .kind = LabelKind::two},
    {.note = "2 bits, 128 channels", .head_dim = 256, .kind = LabelKind::two},
    {.note = "4 bits", .kv_heads = 2, .q_per_kv = 4, .head_dim = 128, .kind = LabelKind::four},
    {.note = "4 bits, 16 ops", .head_dim = 256, .kind = LabelKind::four},
    {.note = "8 bits", .q_per_kv = 3, .head_dim = 128, .kind = LabelKind::eight},
    {.note = "16 bits", .kv_heads = 2, .q_per_kv = 3, .kind = LabelKind::sixteen},
    {.note = "16 bits, closed", .dtype = DType::f32, .kind = LabelKind::sixteen, .open = false},
    {.note = "2, 4 and 8 bits", .kv_heads = 2, .q_per_kv = 2, .dtype = DType::f32,
     .kind = LabelKind::ragged},
    {.note = "q8", .slots = 400, .kv_heads = 3, .q_per_kv = 3, .dtype = DType::q8,
     .mask = MaskKind::safety_set},
    {.note = "q8, head_dim 80, closed", .q_per_kv = 2, .head_dim = 80, .dtype = DType::q8,
     .open = false},
    {.note = "q8, 16 bits", .head_dim = 128, .dtype = DType::q8, .kind = LabelKind::sixteen,
     .open = false},
    {.note = "random masks", .slots = 513, .kv_heads = 3, .q_per_kv = 3, .dtype = DType::bf16,
     .mask = MaskKind::random},
    {.note = "hidden spans", .slots = 900, .kv_heads = 3, .q_per_kv = 3,
     .mask = MaskKind::hidden_spans},
};

class LabelTest : public ::testing::TestWithParam<BackendCase> {
protected:
    TargetScope scope_{GetParam()};
    const Backend& backend_ = *GetParam().backend;
};

bool bit(const uint64_t words[2], uint32_t t) { return ((words[t / 64] >> (t % 64)) & 1U) != 0; }

struct Scan {
    explicit Scan(const TestLabels& labels)
        : scores(labels.span_count() * kSpanSlots), sums(labels.q_head_count()),
          candidates(labels.span_count() * kSpanSlots + 64) {
        out.scores = scores.data();
        out.head_sums = sums.data();
        out.candidates = candidates.data();
    }
    bool intact() const { return scores.intact() && sums.intact() && candidates.intact(); }
    Guarded<float> scores;
    Guarded<double> sums;
    Guarded<uint32_t> candidates;
    LabelScanOutput out;
};

// Largest distance of a decoded value from its key is half a step, of whatever backend.
TEST_P(LabelTest, EncodeKeepsEveryKeyWithinHalfAStep) {
    for (const LabelCase& c : kCases) {
        SCOPED_TRACE(c.note);
        TestLabels labels(c, backend_);
        ASSERT_TRUE(labels.intact());
        TestLabels expected(c, ref_backend());
        for (uint32_t h = 0; h < c.kv_heads; ++h) {
            const LabelFormat& format = labels.format(h);
            EXPECT_EQ(labels.scale_max(h), expected.scale_max(h));
            std::vector<float> values(format.channels.size());
            for (uint32_t slot = 0; slot < labels.span_count() * kSpanSlots; ++slot) {
                const uint32_t s = slot / kSpanSlots;
                const bool written = slot < c.slots;
                if (labels.is_open(s)) {
                    if (!written) continue;
                    label_decode_open(format, labels.open(h), slot % kSpanSlots, values.data());
                } else {
                    label_decode(format, labels.span(s, h), slot % kSpanSlots, values.data());
                }
                for (size_t i = 0; i < values.size() && written; ++i) {
                    const float key = labels.rows().k_at(slot, h, format.channels[i].channel);
                    const float f16_error = std::abs(key - format.mean[i]) * 0x1.0p-10F;
                    const float half_step = format.is_f16() || labels.is_open(s)
                                                ? f16_error
                                                : 0.501F * labels.scale_max(h)[i];
                    ASSERT_NEAR(values[i], key - format.mean[i], half_step + 1e-6F)
                        << "slot " << slot << " channel " << i;
                }
            }
        }
    }
}

// Same ranges bit for bit, same codes but for ties of rounding; zero where nothing is written.
TEST_P(LabelTest, EncodeAgreesWithRef) {
    for (const LabelCase& c : kCases) {
        SCOPED_TRACE(c.note);
        TestLabels labels(c, backend_);
        TestLabels expected(c, ref_backend());
        size_t different = 0;
        for (uint32_t s = 0; s < labels.span_count(); ++s) {
            if (labels.is_open(s)) continue;
            for (uint32_t h = 0; h < c.kv_heads; ++h) {
                const LabelFormat& format = labels.format(h);
                const size_t code_offset = format.is_f16() ? 0 : label_code_offset(format);
                ASSERT_EQ(0, std::memcmp(labels.span(s, h), expected.span(s, h), code_offset));
                for (size_t i = code_offset; i < format.span_bytes; ++i) {
                    different += labels.span(s, h)[i] != expected.span(s, h)[i];
                }
            }
        }
        EXPECT_LE(different, 2U + c.slots * c.kv_heads / 1000U);
    }
}

TEST_P(LabelTest, EncodeRowFitsOrRefuses) {
    for (const LabelCase& c : kCases) {
        if (c.open) continue;
        SCOPED_TRACE(c.note);
        TestLabels labels(c, backend_);
        const LabelFormat& format = labels.format(0);
        const uint32_t last_slot = std::min(c.slots, kSpanSlots) - 1;
        const std::vector<std::byte> before(labels.span(0, 0),
                                            labels.span(0, 0) + format.span_bytes);
        const LabelEncodeInput in = labels.encode_input(0, 0);
        EXPECT_TRUE(backend_.label_encode_row(in, last_slot, labels.span(0, 0)));
        EXPECT_EQ(0, std::memcmp(before.data(), labels.span(0, 0), format.span_bytes));

        // Slot 0 takes the key of the last slot, then a key that nothing can hold.
        std::vector<float> key(c.head_dim);
        for (uint32_t i = 0; i < c.head_dim; ++i) key[i] = labels.rows().k_at(last_slot, 0, i);
        labels.rows().set_k(0, 0, key);
        ASSERT_TRUE(backend_.label_encode_row(in, 0, labels.span(0, 0)));
        std::vector<float> first(format.channels.size());
        std::vector<float> last(format.channels.size());
        label_decode(format, labels.span(0, 0), 0, first.data());
        label_decode(format, labels.span(0, 0), last_slot, last.data());
        EXPECT_EQ(first, last);
        if (format.is_f16()) continue;
        key[format.channels.back().channel] = 1000.0F;
        labels.rows().set_k(0, 0, key);
        EXPECT_FALSE(backend_.label_encode_row(in, 0, labels.span(0, 0)));
        label_decode(format, labels.span(0, 0), 0, first.data());
        EXPECT_EQ(first, last);
        EXPECT_TRUE(labels.intact());
    }
}

TEST_P(LabelTest, EncodeOfConstantAndUnwrittenSpans) {
    TestLabels labels({.slots = 128, .open = false}, backend_);
    const LabelFormat& format = labels.format(0);
    std::vector<float> values(format.channels.size());
    LabelEncodeInput in = labels.encode_input(0, 0);
    for (uint32_t slot = 0; slot < 128; ++slot) {
        for (uint32_t i = 0; i < 64; ++i) store_element(in.kv.k_row(slot, 0), DType::f16, i, 0.75F);
    }
    backend_.label_encode(in, labels.span(0, 0));
    label_decode(format, labels.span(0, 0), 77, values.data());
    for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_NEAR(values[i], 0.75F - format.mean[i], 2e-3F);
    }
    in.written[0] = in.written[1] = 0;
    backend_.label_encode(in, labels.span(0, 0));
    for (size_t i = 0; i < format.span_bytes; ++i) ASSERT_EQ(labels.span(0, 0)[i], std::byte{0});
}

// The slots that may not be picked, and no others, are -inf; candidates follow from the scores.
void expect_consistent(const TestLabels& labels, const LabelScanInput& in, Scan& scan) {
    std::vector<uint32_t> candidates;
    for (uint32_t slot = 0; slot < in.span_end * kSpanSlots; ++slot) {
        const SpanMask& mask = labels.mask(slot / kSpanSlots);
        const bool selectable = bit(mask.selectable, slot % kSpanSlots);
        ASSERT_EQ(std::isfinite(scan.scores[slot]), selectable) << "slot " << slot;
        if (!selectable) {
            ASSERT_EQ(scan.scores[slot], -std::numeric_limits<float>::infinity());
        }
        if (selectable && scan.scores[slot] >= in.candidate_threshold) candidates.push_back(slot);
    }
    ASSERT_EQ(std::vector<uint32_t>(scan.candidates.data(),
                                    scan.candidates.data() + scan.out.candidate_count),
              candidates);
    ASSERT_TRUE(scan.intact());
}

struct Spread {
    double error_rms = 0.0;
    double error_max = 0.0;
    double deviation = 0.0;
};

// Of the finite scores, in log2 units.
Spread compare(Scan& scan, Scan& expected, uint32_t slot_count, Combine combine) {
    const auto log2_units = [&](float score) {
        return combine == Combine::sum ? std::log2(double{score}) : double{score};
    };
    double sum = 0.0;
    double squares = 0.0;
    double errors = 0.0;
    double count = 0.0;
    Spread spread;
    for (uint32_t slot = 0; slot < slot_count; ++slot) {
        if (!std::isfinite(expected.scores[slot])) continue;
        const double score = log2_units(expected.scores[slot]);
        const double error = std::abs(log2_units(scan.scores[slot]) - score);
        spread.error_max = std::max(spread.error_max, error);
        errors += error * error;
        sum += score;
        squares += score * score;
        count += 1.0;
    }
    if (count == 0.0) return spread;
    spread.error_rms = std::sqrt(errors / count);
    spread.deviation = std::sqrt(std::max(0.0, squares / count - sum / count * (sum / count)));
    return spread;
}

TEST_P(LabelTest, ScanAgreesWithRef) {
    for (const LabelCase& c : kCases) {
        for (const Combine combine : {Combine::sum, Combine::max}) {
            SCOPED_TRACE(std::string(c.note) + (combine == Combine::sum ? ", sum" : ", max"));
            TestLabels labels(c, ref_backend());
            Scan scan(labels);
            Scan expected(labels);
            const LabelScanInput in =
                labels.scan_input(combine, combine == Combine::sum ? 1.0F : 0);
            backend_.label_scan(in, scan.out);
            ref_backend().label_scan(in, expected.out);
            expect_consistent(labels, in, scan);
            const Spread spread = compare(scan, expected, in.span_end * kSpanSlots, combine);
            const bool exact = c.kind == LabelKind::sixteen;
            // A few slots have no spread to measure by: one log2 unit stands in for it.
            const double deviation = c.slots < 100 ? 1.0 : spread.deviation;
            const double noise = exact ? 1e-4 : kWeightErrorRms * deviation;
            const double exp2_error = combine == Combine::sum ? kExp2Error : 0.0;
            EXPECT_LE(spread.error_rms, noise + exp2_error / 2);
            EXPECT_LE(spread.error_max, 6 * noise + exp2_error);
            for (uint32_t head = 0; head < labels.q_head_count(); ++head) {
                EXPECT_NEAR(scan.sums[head], expected.sums[head], 0.06 * expected.sums[head]);
            }
        }
    }
}

// A scan in parts gives the scores and candidates of a scan in one piece.
TEST_P(LabelTest, ScanInPartsIsTheSame) {
    const LabelCase c{.slots = 1500, .kv_heads = 3, .q_per_kv = 3, .mask = MaskKind::random};
    TestLabels labels(c, ref_backend());
    Scan whole(labels);
    Scan parts(labels);
    LabelScanInput in = labels.scan_input(Combine::sum, 0.5F);
    backend_.label_scan(in, whole.out);
    uint32_t found = 0;
    for (const auto& [begin, end] : {std::pair{0U, 1U}, {1U, 7U}, {7U, 7U}, {7U, 12U}}) {
        in.span_begin = begin;
        in.span_end = end;
        Guarded<uint32_t> candidates((end - begin) * kSpanSlots + 64);
        parts.out.candidates = candidates.data();
        backend_.label_scan(in, parts.out);
        ASSERT_TRUE(candidates.intact());
        for (uint32_t i = 0; i < parts.out.candidate_count; ++i) {
            ASSERT_EQ(candidates[i], whole.candidates[found++]);
        }
    }
    EXPECT_EQ(found, whole.out.candidate_count);
    EXPECT_EQ(0, std::memcmp(whole.scores.data(), parts.scores.data(), whole.scores.bytes()));
}

// A stale lse makes large or tiny scores, never NaN or infinity; outputs may be left out.
TEST_P(LabelTest, ScanWithAStaleLse) {
    TestLabels labels({.slots = 256, .q_per_kv = 3}, ref_backend());
    for (const float lse : {-1e6F, 1e6F}) {
        Scan scan(labels);
        LabelScanInput in = labels.scan_input(Combine::sum, 0.0F);
        const std::vector<float> stale(3, lse);
        in.lse_guess = stale.data();
        scan.out.candidates = nullptr;
        scan.out.head_sums = nullptr;
        backend_.label_scan(in, scan.out);
        for (uint32_t slot = 0; slot < 256; ++slot) {
            ASSERT_TRUE(std::isfinite(scan.scores[slot]) && scan.scores[slot] >= 0.0F);
        }
        EXPECT_TRUE(scan.intact());
    }
}

TEST(LabelFormatTest, SixtyFourBitsAreTwoPlanes) {
    for (const LabelKind kind : {LabelKind::mixed, LabelKind::two, LabelKind::four,
                                 LabelKind::eight}) {
        const LabelFormat format = make_test_format(kind, 64, 1);
        EXPECT_EQ(format.plane_count, 2U);
        EXPECT_LE(format.ops.size(), 8U);
        EXPECT_LE(format.span_bytes, 1152U);  // 9 B a token
    }
    EXPECT_LE(make_test_format(LabelKind::mixed, 128, 1).span_bytes, 2304U);
}

// No bit of a plane belongs to two channels, every channel has a place.
TEST(LabelFormatTest, ChannelsDoNotOverlap) {
    for (uint32_t wide = 0; wide <= 5; ++wide) {
        for (uint32_t four = 0; four <= 9; ++four) {
            for (uint32_t two = 0; two <= 17; ++two) {
                std::vector<uint16_t> order(64);
                std::iota(order.begin(), order.end(), uint16_t{0});
                std::vector<LabelChannel> channels;
                add_channels(channels, order, two, 2);
                add_channels(channels, order, wide, 8);
                add_channels(channels, order, four, 4);
                const size_t count = channels.size();
                if (count == 0) continue;
                const LabelFormat format =
                    make_label_format(std::move(channels), std::vector<float>(count), 64);
                std::vector<uint32_t> used(format.plane_count, 0);
                std::vector<bool> placed(count, false);
                for (const LabelOp& op : format.ops) {
                    for (uint32_t lane = 0; lane < 4; ++lane) {
                        if (op.code_index[lane] == LabelOp::kNoChannel) continue;
                        const uint32_t place = ((1U << op.bits) - 1U) << (8 * lane + op.shift);
                        ASSERT_EQ(used[op.plane] & place, 0U);
                        used[op.plane] |= place;
                        placed[op.code_index[lane]] = true;
                    }
                }
                ASSERT_EQ(std::count(placed.begin(), placed.end(), true), long(count));
            }
        }
    }
}

TEST(LabelFormatTest, SpanBytesMaxHoldsForEveryMixture) {
    for (const uint32_t row_bits : {32U, 48U, 64U, 80U, 128U, 256U}) {
        size_t largest = 0;
        for (uint32_t four = 0; four <= row_bits / 4; ++four) {
            std::vector<LabelChannel> channels;
            for (uint16_t i = 0; i < four + (row_bits - 4 * four) / 2; ++i) {
                channels.push_back({i, static_cast<uint8_t>(i < four ? 4 : 2)});
            }
            const size_t count = channels.size();
            largest = std::max(largest, make_label_format(std::move(channels),
                                                          std::vector<float>(count), 256)
                                            .span_bytes);
        }
        EXPECT_EQ(label_span_bytes_max(row_bits, 0), largest);
    }
}

TEST(LabelFormatTest, RangeHoldsItsEnds) {
    const std::vector<float> ends = random_normal(4000, 3, 10.0F);
    for (size_t i = 0; i + 1 < ends.size(); i += 2) {
        for (const uint32_t bits : {2U, 4U, 8U}) {
            const float low = std::min(ends[i], ends[i + 1]);
            const float high = std::max(ends[i], ends[i + 1]);
            const LabelRange range = label_range(low, high, bits);
            const float minimum = label_minimum(range, bits);
            const float levels = static_cast<float>((1U << bits) - 1U);
            EXPECT_LE(minimum, low);
            EXPECT_GE(minimum + f16_to_f32(range.scale) * levels, high);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, LabelTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& tested) { return case_name(tested.param); });

}  // namespace
}  // namespace shoal::kernels::test
