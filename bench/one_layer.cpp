// One layer of decode attention, 32 query / 8 KV heads x 128, bf16, 131,072 tokens: selected rows
// (query to labels, scan, top-k, gathered attention, merge) and every row.
//
// Driven from outside, so that another engine's runs can lie between ours: a line on stdin is one
// request, a line on stdout its answer. bench/torch_compare.py is the driver.
//   sparse N | dense N   N steps, microseconds of the median one
//   read                 GB/s of a sequential read
// Threads end with the request: a thread that spins would take a core from the other engine.
#include <cmath>
#include <iostream>
#include <random>

#include "bench/support.hpp"
#include "kernels/convert.hpp"

namespace shoal::bench {
namespace {

using kernels::kSpanSlots;
using kernels::LabelFormat;

constexpr uint32_t kKvHeads = 8;
constexpr uint32_t kQPerKv = 4;
constexpr uint32_t kQHeads = kKvHeads * kQPerKv;
constexpr uint32_t kDim = 128;
constexpr uint32_t kRows = 1024;
constexpr uint32_t kBlockLog2 = 4;
constexpr uint32_t kParts = 32;
constexpr uint32_t kThreads = 2;
// Walked in turn, so that labels and rows come from memory.
constexpr uint32_t kLabelLayers = 16;
constexpr uint32_t kKvLayers = 2;

// One bit a dimension: a tenth of the channels with 4 bits, the rest with 2.
LabelFormat mixed_format() {
    std::vector<kernels::LabelChannel> channels;
    constexpr uint32_t kWide = kDim / 10;
    for (uint32_t i = 0; i < kWide + (kDim - 4 * kWide) / 2; ++i) {
        channels.push_back({static_cast<uint16_t>(i), static_cast<uint8_t>(i < kWide ? 4 : 2)});
    }
    const size_t count = channels.size();
    return make_label_format(std::move(channels), std::vector<float>(count, 0.0F), kDim);
}

// What a step of one label layer starts from: the last step's normalisers and threshold.
struct LayerState {
    std::vector<float> lse = std::vector<float>(kQHeads, 0.0F);
    float threshold = 0.0F;
};

class Layer {
public:
    explicit Layer(uint32_t slots)
        : slots_(slots), spans_(slots / kSpanSlots), labels_(label_layer_bytes() * kLabelLayers),
          rows_(size_t{kKvLayers} * slots * piece_.piece_stride_bytes), masks_(spans_),
          scores_(slots), candidates_(slots + kParts * 64), chosen_(kRows),
          part_sums_(kParts * kQHeads), queries_(kQHeads), states_(kLabelLayers),
          workspace_(kernels::topk_workspace_bytes(slots)), q_(kQHeads * kDim),
          partials_(kernels::kAttendPartsMax * kernels::attend_partial_floats(kQHeads, kDim)),
          out_(kQHeads * kDim) {
        for (uint32_t h = 0; h < kKvHeads; ++h) offsets_.push_back(h * format_.span_bytes);
        for (kernels::SpanMask& mask : masks_) mask = {{~0ULL, ~0ULL}, {~0ULL, ~0ULL}};
        fill();
        BenchThreads threads(kThreads);
        for (uint32_t layer = 0; layer < kLabelLayers; ++layer) settle(threads, layer);
    }

    void sparse(BenchThreads& threads) {
        const uint32_t layer = next_++ % kLabelLayers;
        const kernels::TopkOutput top = select(threads, layer);
        attend(threads, layer % kKvLayers, top.slots, top.count);
    }
    void dense(BenchThreads& threads) { attend(threads, next_++ % kKvLayers, nullptr, slots_); }
    double read_gb_per_s(BenchThreads& threads) const {
        return static_cast<double>(rows_.bytes()) / time_read(threads, rows_) / 1e9;
    }

private:
    size_t label_layer_bytes() const { return size_t{spans_} * kKvHeads * format_.span_bytes; }

    void fill() {
        std::minstd_rand random(1);
        std::mt19937_64 bits(2);
        std::normal_distribution<float> normal;
        std::vector<uint64_t> words(8191);
        for (uint64_t& word : words) word = bits();
        auto* to = reinterpret_cast<uint64_t*>(labels_.data());
        for (size_t i = 0; i < labels_.bytes() / 8; ++i) to[i] = words[i % words.size()];
        const size_t parameters = label_parameter_count(format_);
        for (size_t i = 0; i < size_t{kLabelLayers} * spans_ * kKvHeads; ++i) {
            auto* at = reinterpret_cast<uint16_t*>(labels_.data() + i * format_.span_bytes);
            std::fill_n(at, parameters, kernels::f32_to_f16(0.5F));
            std::fill_n(at + parameters, parameters, uint16_t{0});
        }
        std::vector<uint16_t> pattern(32749);
        for (uint16_t& value : pattern) value = kernels::f32_to_bf16(normal(random));
        const size_t pattern_bytes = pattern.size() * 2;
        for (size_t at = 0; at < rows_.bytes(); at += pattern_bytes) {
            std::memcpy(rows_.data() + at, pattern.data(),
                        std::min(pattern_bytes, rows_.bytes() - at));
        }
        for (float& value : q_) value = 2.0F * normal(random);
        const size_t block_bytes = size_t{piece_.piece_stride_bytes} << kBlockLog2;
        for (size_t at = 0; at < rows_.bytes(); at += block_bytes) {
            blocks_.push_back(rows_.data() + at);
        }
    }

    void settle(BenchThreads& threads, uint32_t layer) {
        LayerState& state = states_[layer];
        select(threads, layer);
        for (uint32_t head = 0; head < kQHeads; ++head) {
            double sum = 0.0;
            for (uint32_t part = 0; part < kParts; ++part) {
                sum += part_sums_[part * kQHeads + head];
            }
            state.lse[head] = static_cast<float>(std::log2(sum));
        }
        state.threshold = 0.85F * select(threads, layer).threshold;
    }

    kernels::TopkOutput select(BenchThreads& threads, uint32_t layer) {
        const kernels::Backend& backend = kernels::cpu_backend();
        for (uint32_t head = 0; head < kQHeads; ++head) {
            backend.label_query({&format_, q_.data() + head * kDim, scale_, scale_max_.data()},
                                queries_[head]);
        }
        kernels::LabelScanInput in;
        in.formats = formats_.data();
        in.spans = labels_.data() + layer * label_layer_bytes();
        in.span_stride_bytes = kKvHeads * format_.span_bytes;
        in.head_offset_bytes = offsets_.data();
        in.kv_head_count = kKvHeads;
        in.q_per_kv = kQPerKv;
        in.queries = queries_.data();
        in.lse_guess = states_[layer].lse.data();
        in.masks = masks_.data();
        in.candidate_threshold = states_[layer].threshold;
        const uint32_t part_spans = (spans_ + kParts - 1) / kParts;
        const uint32_t part_count = (spans_ + part_spans - 1) / part_spans;
        kernels::CandidatePart parts[kParts];
        threads.run_each(part_count, [&](uint32_t part, uint32_t) {
            kernels::LabelScanInput mine = in;
            mine.span_begin = part * part_spans;
            mine.span_end = std::min(spans_, mine.span_begin + part_spans);
            kernels::LabelScanOutput out;
            out.scores = scores_.data();
            out.head_sums = part_sums_.data() + part * kQHeads;
            out.candidates = candidates_.data() + part * (part_spans * kSpanSlots + 64);
            backend.label_scan(mine, out);
            parts[part] = {out.candidates, out.candidate_count};
        });
        kernels::TopkOutput top;
        top.slots = chosen_.data();
        backend.topk({scores_.data(), slots_, kRows, parts, part_count}, top, workspace_.data());
        return top;
    }

    void attend(BenchThreads& threads, uint32_t layer, const uint32_t* slots, uint32_t count) {
        const kernels::Backend& backend = kernels::cpu_backend();
        kernels::AttendInput in;
        in.kv = {piece_, blocks_.data() + size_t{layer} * (slots_ >> kBlockLog2), kBlockLog2};
        in.q = q_.data();
        in.q_head_stride = kDim;
        in.q_per_kv = kQPerKv;
        in.slots = {slots, 0, count};
        in.scale = scale_;
        const uint32_t rows = kernels::attend_part_rows(count);
        const uint32_t parts = kernels::attend_part_count(count);
        threads.run_each(parts, [&](uint32_t part, uint32_t) {
            backend.attend_part(
                in, part * rows, std::min((part + 1) * rows, count),
                kernels::attend_partial_at(partials_.data(), part, kQHeads, kDim));
        });
        backend.merge({partials_.data(), parts, kQHeads, kDim}, {out_.data(), kDim, nullptr});
    }

    uint32_t slots_;
    uint32_t spans_;
    LabelFormat format_ = mixed_format();
    std::vector<LabelFormat> formats_{kKvHeads, format_};
    std::vector<float> scale_max_ = std::vector<float>(format_.channels.size(), 0.5F);
    kernels::PieceFormat piece_ = piece_format(kKvHeads, kDim, DType::bf16);
    float scale_ = 1.0F / std::sqrt(static_cast<float>(kDim));
    HugeBuffer labels_;
    HugeBuffer rows_;
    std::vector<size_t> offsets_;
    std::vector<std::byte*> blocks_;
    std::vector<kernels::SpanMask> masks_;
    std::vector<float> scores_;
    std::vector<uint32_t> candidates_;
    std::vector<uint32_t> chosen_;
    std::vector<double> part_sums_;
    std::vector<kernels::LabelQuery> queries_;
    std::vector<LayerState> states_;
    std::vector<std::byte> workspace_;
    std::vector<float> q_;
    std::vector<float> partials_;
    std::vector<float> out_;
    uint32_t next_ = 0;
};

// Microseconds of the median of `count` steps.
template <typename Step>
double median_us(uint32_t count, Step step) {
    std::vector<double> us;
    for (uint32_t i = 0; i < count; ++i) {
        const double start = now_s();
        step();
        us.push_back((now_s() - start) * 1e6);
    }
    return median(us);
}

int serve(uint32_t slots) {
    Layer layer(slots);
    std::string request;
    std::cout << "ready " << kernels::cpu_target_name() << std::endl;
    while (std::cin >> request) {
        BenchThreads threads(kThreads);
        if (request == "read") {
            std::cout << layer.read_gb_per_s(threads) << std::endl;
            continue;
        }
        uint32_t count = 0;
        if ((request != "sparse" && request != "dense") || !(std::cin >> count)) {
            std::cerr << "one_layer: sparse N, dense N or read, not: " << request << '\n';
            return 2;
        }
        const double us = request == "sparse"
                              ? median_us(count, [&] { layer.sparse(threads); })
                              : median_us(count, [&] { layer.dense(threads); });
        std::cout << us << std::endl;
    }
    return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    const int slots = argc == 2 ? std::atoi(argv[1]) : 131072;
    if (argc > 2 || slots <= 0 || slots % 2048 != 0) {
        std::cerr << "usage: " << argv[0] << " [tokens, a multiple of 2048]\n";
        return 2;
    }
    return shoal::bench::serve(static_cast<uint32_t>(slots));
}
