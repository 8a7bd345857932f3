// Label scan: GB/s and % of the sequential read bandwidth measured in the same rounds.
//
//   scan    scores of one group, combined by maximum, no sums, no candidates
//   fused   softmax-normalised sum, this step's lse, candidates, top-k of 1,024
//   encode  spans of 128 keys to labels, nanoseconds a key and KV head
//
// Many layers are walked in turn, so that labels come from memory as they do in a decode step.
#include <cmath>
#include <random>

#include "bench/support.hpp"
#include "kernels/convert.hpp"

namespace shoal::bench {
namespace {

using kernels::Backend;
using kernels::kSpanSlots;
using kernels::LabelChannel;
using kernels::LabelFormat;
using kernels::LabelQuery;
using kernels::LabelScanInput;
using kernels::LabelScanOutput;

struct Shape {
    const char* name;
    uint32_t kv_heads;
    uint32_t q_per_kv;
    uint32_t dim;
};
constexpr Shape kShapes[] = {{"S", 3, 3, 64}, {"L", 8, 4, 128}};
constexpr uint32_t kTop = 1024;
constexpr uint32_t kPartsMax = 32;

// One bit a dimension: a tenth of the channels with 4 bits, the rest with 2.
LabelFormat mixed_format(uint32_t dim) {
    std::vector<LabelChannel> channels;
    const uint32_t wide = dim / 10;
    for (uint32_t i = 0; i < wide + (dim - 4 * wide) / 2; ++i) {
        channels.push_back({static_cast<uint16_t>(i), static_cast<uint8_t>(i < wide ? 4 : 2)});
    }
    const size_t count = channels.size();
    return make_label_format(std::move(channels), std::vector<float>(count, 0.0F), dim);
}

class Bed {
public:
    Bed(const Shape& shape, uint32_t slots, size_t bytes_wanted)
        : shape_(shape),
          spans_(slots / kSpanSlots),
          formats_(shape.kv_heads, mixed_format(shape.dim)),
          stride_(shape.kv_heads * formats_[0].span_bytes),
          layer_bytes_(stride_ * spans_),
          layers_(static_cast<uint32_t>(std::max<size_t>(1, bytes_wanted / layer_bytes_))),
          labels_(layers_ * layer_bytes_),
          scores_(slots),
          masks_(spans_),
          candidates_(slots + kPartsMax * 64),
          chosen_(kTop) {
        for (uint32_t h = 0; h < shape.kv_heads; ++h)
            offsets_.push_back(h * formats_[0].span_bytes);
        for (kernels::SpanMask& mask : masks_) {
            mask = {{~0ULL, ~0ULL}, {~0ULL, ~0ULL}};
        }
        fill();
        make_queries();
        workspace_.resize(kernels::topk_workspace_bytes(slots));
    }
    uint32_t layers() const { return layers_; }
    size_t layer_bytes() const { return layer_bytes_; }
    const HugeBuffer& labels() const { return labels_; }
    uint32_t candidate_count() const { return candidate_count_; }

    void scan(BenchThreads& threads, uint32_t layer) {
        run(threads, layer, kernels::Combine::max, 0.0F, false);
    }
    void fused(BenchThreads& threads, uint32_t layer) {
        run(threads, layer, kernels::Combine::sum, threshold_, true);
    }
    // Takes lse and threshold from a first scan, as a decode step has them from the last one.
    void settle(BenchThreads& threads) {
        for (float& lse : lse_) lse = 0.0F;
        threshold_ = 0.0F;
        run(threads, 0, kernels::Combine::sum, 0.0F, true);
        for (size_t head = 0; head < lse_.size(); ++head) {
            lse_[head] = static_cast<float>(std::log2(head_sums_[head]));
        }
        run(threads, 0, kernels::Combine::sum, 0.0F, true);
        threshold_ = 0.85F * out_.threshold;
    }

private:
    void fill() {
        std::mt19937_64 random(1);
        std::vector<uint64_t> words(8191);
        for (uint64_t& word : words) word = random();
        size_t next = 0;
        auto* to = reinterpret_cast<uint64_t*>(labels_.data());
        for (size_t i = 0; i < labels_.bytes() / 8; ++i) to[i] = words[next++ % words.size()];
        const LabelFormat& format = formats_[0];
        const size_t parameters = label_parameter_count(format);
        for (size_t span = 0; span < size_t{layers_} * spans_ * shape_.kv_heads; ++span) {
            auto* at = reinterpret_cast<uint16_t*>(labels_.data() + span * format.span_bytes);
            for (size_t i = 0; i < parameters; ++i) {
                at[i] = kernels::f32_to_f16(0.5F);
                at[parameters + i] = 0;
            }
        }
    }
    void make_queries() {
        std::minstd_rand random(2);
        std::normal_distribution<float> normal(0.0F, 2.0F);
        const uint32_t heads = shape_.kv_heads * shape_.q_per_kv;
        const std::vector<float> scale_max(formats_[0].channels.size(), 0.5F);
        const float scale = 1.0F / std::sqrt(static_cast<float>(shape_.dim));
        queries_.resize(heads);
        lse_.resize(heads);
        head_sums_.resize(heads);
        part_sums_.resize(size_t{heads} * kPartsMax);
        for (LabelQuery& query : queries_) {
            std::vector<float> q(shape_.dim);
            for (float& value : q) value = normal(random);
            kernels::cpu_backend().label_query({&formats_[0], q.data(), scale, scale_max.data()},
                                               query);
        }
    }
    void run(BenchThreads& threads, uint32_t layer, kernels::Combine combine, float threshold,
             bool select) {
        const Backend& backend = kernels::cpu_backend();
        const uint32_t heads = shape_.kv_heads * shape_.q_per_kv;
        const uint32_t part_spans = (spans_ + kPartsMax - 1) / kPartsMax;
        const uint32_t part_count = (spans_ + part_spans - 1) / part_spans;
        LabelScanInput in;
        in.formats = formats_.data();
        in.spans = labels_.data() + layer * layer_bytes_;
        in.span_stride_bytes = stride_;
        in.head_offset_bytes = offsets_.data();
        in.kv_head_count = shape_.kv_heads;
        in.q_per_kv = shape_.q_per_kv;
        in.queries = queries_.data();
        in.lse_guess = lse_.data();
        in.masks = masks_.data();
        in.combine = combine;
        in.candidate_threshold = threshold;
        kernels::CandidatePart parts[kPartsMax];
        threads.run_each(part_count, [&](uint32_t part, uint32_t) {
            LabelScanInput mine = in;
            mine.span_begin = part * part_spans;
            mine.span_end = std::min(spans_, mine.span_begin + part_spans);
            LabelScanOutput out;
            out.scores = scores_.data();
            if (select) {
                out.head_sums = part_sums_.data() + part * heads;
                out.candidates = candidates_.data() + part * (part_spans * kSpanSlots + 64);
            }
            backend.label_scan(mine, out);
            parts[part] = {out.candidates, out.candidate_count};
        });
        if (!select) return;
        std::fill(head_sums_.begin(), head_sums_.end(), 0.0);
        candidate_count_ = 0;
        for (uint32_t part = 0; part < part_count; ++part) {
            candidate_count_ += parts[part].count;
            for (uint32_t h = 0; h < heads; ++h) head_sums_[h] += part_sums_[part * heads + h];
        }
        out_.slots = chosen_.data();
        backend.topk({scores_.data(), spans_ * kSpanSlots, kTop, parts, part_count}, out_,
                     workspace_.data());
    }

    Shape shape_;
    uint32_t spans_;
    std::vector<LabelFormat> formats_;
    size_t stride_;
    size_t layer_bytes_;
    uint32_t layers_;
    HugeBuffer labels_;
    std::vector<float> scores_;
    std::vector<kernels::SpanMask> masks_;
    std::vector<uint32_t> candidates_;
    std::vector<uint32_t> chosen_;
    std::vector<size_t> offsets_;
    std::vector<LabelQuery> queries_;
    std::vector<float> lse_;
    std::vector<double> head_sums_;
    std::vector<double> part_sums_;
    std::vector<std::byte> workspace_;
    kernels::TopkOutput out_;
    uint32_t candidate_count_ = 0;
    float threshold_ = 0.0F;
};

void measure(const BenchArgs& args, const Shape& shape, uint32_t slots, uint32_t thread_count,
             int64_t target, Bed& bed) {
    hwy::SetSupportedTargetsForTest(target);
    BenchThreads threads(thread_count);
    bed.settle(threads);
    const double bytes = static_cast<double>(bed.layers()) * static_cast<double>(bed.layer_bytes());
    std::vector<double> read_gbs, scan_us, scan_share, fused_us, fused_share, ratio;
    for (uint32_t round = 0; round < args.rounds; ++round) {
        const double read = time_read(threads, bed.labels());
        double start = now_s();
        for (uint32_t layer = 0; layer < bed.layers(); ++layer) bed.scan(threads, layer);
        const double scan = now_s() - start;
        start = now_s();
        for (uint32_t layer = 0; layer < bed.layers(); ++layer) bed.fused(threads, layer);
        const double fused = now_s() - start;
        read_gbs.push_back(static_cast<double>(bed.labels().bytes()) / read / 1e9);
        scan_us.push_back(scan / bed.layers() * 1e6);
        fused_us.push_back(fused / bed.layers() * 1e6);
        scan_share.push_back(bytes / scan / 1e7 / read_gbs.back());
        fused_share.push_back(bytes / fused / 1e7 / read_gbs.back());
        ratio.push_back(fused / scan);
    }
    std::printf("%s %8u %7u %-8s %6.1f %9.1f %5.0f %9.1f %5.0f %6.2f %7u\n", shape.name, slots,
                thread_count, kernels::cpu_target_name().c_str(), median(read_gbs),
                median(scan_us), median(scan_share), median(fused_us), median(fused_share),
                median(ratio), bed.candidate_count());
    hwy::SetSupportedTargetsForTest(0);
}

// Keys of one KV head in f16, encoded span by span by one thread.
void measure_encode(const BenchArgs& args, const Shape& shape, int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    constexpr uint32_t kSpans = 64;
    constexpr uint32_t kBlockLog2 = 4;
    kernels::PieceFormat piece;
    piece.kv_head_count = shape.kv_heads;
    piece.k_head_dim = piece.v_head_dim = shape.dim;
    piece.v_offset_bytes = shape.dim * 2;
    piece.row_stride_bytes = shape.dim * 4;
    piece.piece_stride_bytes = shape.kv_heads * piece.row_stride_bytes;
    HugeBuffer rows(size_t{kSpans} * kSpanSlots * piece.piece_stride_bytes);
    std::minstd_rand random(3);
    for (size_t i = 0; i < rows.bytes() / 2; ++i) {
        const float value = static_cast<float>(random() % 2000U) / 1000.0F - 1.0F;
        kernels::store_element(rows.data(), DType::f16, i, value);
    }
    std::vector<std::byte*> blocks;
    for (uint32_t b = 0; b < kSpans * kSpanSlots >> kBlockLog2; ++b) {
        blocks.push_back(rows.data() + size_t{b} * (piece.piece_stride_bytes << kBlockLog2));
    }
    const LabelFormat format = mixed_format(shape.dim);
    std::vector<std::byte> span(format.span_bytes);
    std::vector<float> scale_max(format.channels.size(), 0.0F);
    std::vector<double> ns;
    for (uint32_t round = 0; round < args.rounds; ++round) {
        const double start = now_s();
        for (uint32_t s = 0; s < kSpans; ++s) {
            for (uint32_t h = 0; h < shape.kv_heads; ++h) {
                kernels::cpu_backend().label_encode(
                    {&format, {piece, blocks.data(), kBlockLog2}, h, s, {~0ULL, ~0ULL},
                     scale_max.data()},
                    span.data());
            }
        }
        ns.push_back((now_s() - start) / (kSpans * kSpanSlots * shape.kv_heads) * 1e9);
    }
    std::printf("%s encode %-8s %6.1f ns a key, 1 thread\n", shape.name,
                kernels::cpu_target_name().c_str(), median(ns));
    hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    using namespace shoal::bench;
    const BenchArgs args = parse_args(argc, argv);
    const size_t bytes = args.quick ? size_t{32} << 20 : size_t{1} << 30;
    const std::vector<uint32_t> sizes = args.quick
                                            ? std::vector<uint32_t>{8192}
                                            : std::vector<uint32_t>{8192, 32768, 131072, 262144};
    std::printf(
        "shape  slots threads target  read    scan       %%     fused     %%  fused/ candi-\n");
    std::printf(
        "                              GB/s    us/layer  read  us/layer read   scan   dates\n");
    for (const Shape& shape : kShapes) {
        for (const uint32_t slots : sizes) {
            Bed bed(shape, slots, bytes);
            for (const int64_t target : bench_targets(args.target)) {
                for (const uint32_t threads : args.threads) {
                    measure(args, shape, slots, threads, target, bed);
                }
            }
        }
    }
    for (const Shape& shape : kShapes) {
        for (const int64_t target : bench_targets(args.target)) measure_encode(args, shape, target);
    }
    return 0;
}
