// Labels follow every append, gap, overwrite and removal: what they decode to is never further
// from the key than half a range step, whatever the history.
#include "runtime/label_index.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/convert.hpp"
#include "runtime/query_view.hpp"

namespace shoal {
namespace {

using kernels::kSpanSlots;

constexpr uint32_t kDim = 32;
constexpr uint32_t kSlots = 700;
constexpr uint32_t kSpans = (kSlots + kSpanSlots - 1) / kSpanSlots;

class LabelIndexTest : public ::testing::TestWithParam<int> {
protected:
    LabelIndexTest() {
        std::vector<kernels::LabelChannel> channels;
        const auto bits = static_cast<uint8_t>(GetParam());
        for (uint16_t c = 0; c < 8; ++c) channels.push_back({static_cast<uint16_t>(c * 3), bits});
        formats_.push_back(
            kernels::make_label_format(channels, std::vector<float>(8, 0.25F), kDim));
        piece_.kv_head_count = 1;
        piece_.k_head_dim = piece_.v_head_dim = kDim;
        piece_.v_offset_bytes = kDim * 2;
        piece_.row_stride_bytes = piece_.piece_stride_bytes = kDim * 4;
        rows_.resize(size_t{kSlots} * piece_.piece_stride_bytes);
        for (uint32_t s = 0; s < kSlots; ++s) {
            blocks_.push_back(rows_.data() + size_t{s} * piece_.piece_stride_bytes);
        }
        spans_.resize(kSpans * formats_[0].span_bytes + 64);
        open_.resize(kernels::open_span_bytes(formats_[0]) + 64);
        scale_max_.resize(LabelIndex::kChannelsMax);
        index_.start(kernels::cpu_backend(), formats_,
                     {aligned(spans_), aligned(open_), scale_max_.data()});
    }

    static std::byte* aligned(std::vector<std::byte>& bytes) {
        return reinterpret_cast<std::byte*>(
            (reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
    }
    kernels::KvView kv() { return {piece_, blocks_.data(), 0}; }

    void write(uint32_t begin, uint32_t end) {
        std::normal_distribution<float> normal(0.0F, 1.0F + static_cast<float>(random_() % 3));
        for (uint32_t s = begin; s < end; ++s) {
            for (uint32_t c = 0; c < kDim; ++c) {
                const uint16_t half = kernels::f32_to_f16(normal(random_));
                std::memcpy(kv().k_row(s, 0) + c * 2, &half, 2);
            }
            written_[s / kSpanSlots].k[s % kSpanSlots / 64] |= uint64_t{1} << (s % 64);
        }
        index_.on_keys(kv(), {begin, end}, written_, {});
    }

    void truncate(uint32_t begin) {
        for (uint32_t s = begin; s < kSlots; ++s) {
            written_[s / kSpanSlots].k[s % kSpanSlots / 64] &= ~(uint64_t{1} << (s % 64));
        }
        index_.truncate(kv(), begin, written_);
    }

    // Scores with a query that is one channel: the decoded, centred keys themselves.
    std::vector<float> decoded(uint32_t channel) {
        std::vector<float> q(kDim, 0.0F);
        q[channel * 3] = 1.0F;
        kernels::LabelQuery query;
        kernels::LabelQueryInput prepare;
        prepare.format = &formats_[0];
        prepare.q = q.data();
        prepare.scale = 0.6931471805599453F;  // scores are in log2: this undoes it
        prepare.channel_scale_max = index_.channel_scale_max(0);
        kernels::ref_backend().label_query(prepare, query);
        std::vector<kernels::SpanMask> masks(index_.span_count());
        for (uint32_t s = 0; s < masks.size(); ++s) {
            for (uint32_t w = 0; w < 2; ++w) {
                masks[s].visible[w] = masks[s].selectable[w] = written_[s].k[w];
            }
        }
        const float lse = 0.0F;
        double sum = 0;
        std::vector<float> scores(size_t{kSpans} * kSpanSlots, NAN);
        kernels::LabelScanInput scan;
        index_.describe(scan);
        scan.queries = &query;
        scan.lse_guess = &lse;
        scan.masks = masks.data();
        scan.span_end = index_.span_count();
        scan.combine = kernels::Combine::max;
        kernels::LabelScanOutput out;
        out.scores = scores.data();
        out.head_sums = &sum;
        kernels::ref_backend().label_scan(scan, out);
        return scores;
    }

    void check(const std::string& what) {
        for (uint32_t channel = 0; channel < 8; ++channel) {
            const std::vector<float> scores = decoded(channel);
            const float step = index_.channel_scale_max(0)[channel];
            for (uint32_t s = 0; s < kSlots; ++s) {
                if (((written_[s / kSpanSlots].k[s % kSpanSlots / 64] >> (s % 64)) & 1) == 0) {
                    continue;
                }
                uint16_t half = 0;
                std::memcpy(&half, kv().k_row(s, 0) + channel * 6, 2);
                const float key = kernels::f16_to_f32(half) - 0.25F;
                ASSERT_NEAR(scores[s], key, step * 0.51F + 0.004F * std::abs(key) + 0.004F)
                    << what << ": slot " << s << ", channel " << channel;
            }
        }
    }

    std::mt19937_64 random_{11};
    kernels::PieceFormat piece_;
    std::vector<kernels::LabelFormat> formats_;
    std::vector<std::byte> rows_, spans_, open_;
    std::vector<std::byte*> blocks_;
    std::vector<float> scale_max_;
    SpanWritten written_[kSpans];
    LabelIndex index_;
};

TEST_P(LabelIndexTest, AppendInOddPieces) {
    uint32_t end = 0;
    for (const uint32_t n : {1U, 126U, 1U, 1U, 127U, 128U, 200U, 3U}) {
        write(end, end + n);
        end += n;
        check("append of " + std::to_string(n));
    }
    EXPECT_EQ(index_.span_count(), (end + kSpanSlots - 1) / kSpanSlots);
}

TEST_P(LabelIndexTest, GapsOverwritesAndRemovals) {
    for (int round = 0; round < 60; ++round) {
        const auto begin = static_cast<uint32_t>(random_() % (kSlots - 1));
        const auto n = static_cast<uint32_t>(
            1 + random_() % std::min<uint64_t>(kSlots - begin, round % 3 == 0 ? 300 : 9));
        write(begin, begin + n);
        if (round % 7 == 6) truncate(static_cast<uint32_t>(random_() % kSlots));
        check("round " + std::to_string(round));
        if (HasFatalFailure()) return;
    }
    if (GetParam() != 16) {
        EXPECT_GT(index_.counters().spans_ranged_again, 0U);
    }
}

INSTANTIATE_TEST_SUITE_P(Bits, LabelIndexTest, ::testing::Values(2, 4, 8, 16));

}  // namespace
}  // namespace shoal
