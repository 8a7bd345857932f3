// Page bounds: the scan as % of the sequential read bandwidth measured between the runs of the same
// round.
//
// Bytes are those of the bounds. Layers of 200 MiB and more are walked in turn, so that bounds come
// from memory as they do in a decode step.
#include <random>

#include "bench/support.hpp"
#include "kernels/convert.hpp"

namespace shoal::bench {
namespace {

using kernels::Backend;
using kernels::PageScanInput;
using kernels::SpanMask;

struct Shape {
    const char* name;
    uint32_t kv_heads;
    uint32_t q_per_kv;
    uint32_t dim;
    DType dtype;
    uint32_t layers;
};

// Bounds of several layers, each of `slots` slots.
class Bed {
public:
    Bed(const Shape& shape, uint32_t slots, uint32_t page_slots)
        : shape_(shape), page_slots_(page_slots), page_count_(slots / page_slots),
          buffer_(shape.layers * layer_bytes()), scores_(page_count_),
          candidates_(page_count_), masks_(slots / kernels::kSpanSlots) {
        std::minstd_rand random(3);
        std::normal_distribution<float> normal;
        const size_t half = shape.dim;
        auto* numbers = reinterpret_cast<uint16_t*>(buffer_.data());
        for (size_t i = 0; i < buffer_.bytes() / sizeof(uint16_t); ++i) {
            const float side = i / half % 2 == 0 ? -2.0F : 2.0F;
            const float bound = side + 0.5F * pattern(i, normal, random);
            numbers[i] = shape.dtype == DType::f16 ? kernels::f32_to_f16(bound)
                                                   : kernels::f32_to_bf16(bound);
        }
        for (SpanMask& mask : masks_) {
            for (uint64_t& word : mask.visible) word = ~uint64_t{0};
            for (uint64_t& word : mask.selectable) word = ~uint64_t{0};
        }
        q_.resize(size_t{shape.kv_heads} * shape.q_per_kv * shape.dim);
        for (float& value : q_) value = normal(random);
        // About where the scores lie: candidates are then as rare as they are in use.
        lse_.assign(size_t{shape.kv_heads} * shape.q_per_kv, 40.0F);
    }

    size_t layer_bytes() const {
        return size_t{page_count_} * shape_.kv_heads * kernels::page_bound_bytes(shape_.dim);
    }
    const HugeBuffer& buffer() const { return buffer_; }

    void scan(const Backend& backend, BenchThreads& threads, uint32_t layer) {
        PageScanInput in;
        in.pages = buffer_.data() + layer * layer_bytes();
        in.head_stride_bytes = kernels::page_bound_bytes(shape_.dim);
        in.page_stride_bytes = shape_.kv_heads * in.head_stride_bytes;
        in.bound_dtype = shape_.dtype;
        in.page_slots = page_slots_;
        in.k_head_dim = shape_.dim;
        in.kv_head_count = shape_.kv_heads;
        in.q_per_kv = shape_.q_per_kv;
        in.q = q_.data();
        in.q_head_stride = shape_.dim;
        in.scale = 0.125F;
        in.lse_guess = lse_.data();
        in.masks = masks_.data();
        in.candidate_threshold = 1e30F;
        const uint32_t parts = threads.thread_count();
        const std::vector<double> sums(lse_.size());
        std::vector<std::vector<double>> part_sums(parts, sums);
        threads.run_each(parts, [&](uint32_t part, uint32_t) {
            PageScanInput mine = in;
            mine.page_begin = page_count_ * part / parts;
            mine.page_end = page_count_ * (part + 1) / parts;
            kernels::PageScanOutput out;
            out.scores = scores_.data();
            out.head_sums = part_sums[part].data();
            out.candidates = candidates_.data() + mine.page_begin;
            backend.page_scan(mine, out);
        });
    }

private:
    // A short pattern, repeated: filling is not what is measured.
    static float pattern(size_t i, std::normal_distribution<float>& normal,
                         std::minstd_rand& random) {
        static std::vector<float> values;
        while (values.size() < 32749) values.push_back(normal(random));
        return values[i % values.size()];
    }

    Shape shape_;
    uint32_t page_slots_;
    uint32_t page_count_;
    HugeBuffer buffer_;
    std::vector<float> scores_;
    std::vector<uint32_t> candidates_;
    std::vector<SpanMask> masks_;
    std::vector<float> q_;
    std::vector<float> lse_;
};

void measure(const Backend& backend, Bed& bed, const Shape& shape, uint32_t slots,
             uint32_t page_slots, uint32_t thread_count, uint32_t rounds) {
    BenchThreads threads(thread_count);
    std::vector<double> seconds;
    std::vector<double> percent;
    for (uint32_t round = 0; round < rounds; ++round) {
        const double read =
            static_cast<double>(bed.buffer().bytes()) / time_read(threads, bed.buffer());
        const double start = now_s();
        for (uint32_t layer = 0; layer < shape.layers; ++layer) bed.scan(backend, threads, layer);
        const double s = (now_s() - start) / shape.layers;
        seconds.push_back(s);
        percent.push_back(100.0 * static_cast<double>(bed.layer_bytes()) / s / read);
    }
    const double s = median(seconds);
    std::printf("page scan %s %-5s %-8s %u threads  pages of %2u, %6u slots  %9.1f us a layer"
                "  %5.1f GB/s  %5.1f %% of read\n",
                shape.name, dtype_name(shape.dtype), kernels::cpu_target_name().c_str(),
                thread_count, page_slots, slots, s * 1e6,
                static_cast<double>(bed.layer_bytes()) / s / 1e9, median(percent));
    std::fflush(stdout);
}

void run(const BenchArgs& args) {
    const std::vector<Shape> shapes = {
        {"S", 3, 3, 64, DType::f16, 64},
        {"L", 8, 4, 128, DType::bf16, 12},
    };
    const uint32_t slots = args.quick ? 4096 : 131072;
    for (const Shape& shape : shapes) {
        for (const uint32_t page_slots : {16U, 32U}) {
            Bed bed(shape, slots, page_slots);
            for (const int64_t target : bench_targets(args.target)) {
                hwy::SetSupportedTargetsForTest(target);
                for (const uint32_t threads : args.threads) {
                    measure(kernels::cpu_backend(), bed, shape, slots, page_slots, threads,
                            args.rounds);
                }
            }
            hwy::SetSupportedTargetsForTest(0);
        }
    }
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    shoal::bench::run(shoal::bench::parse_args(argc, argv));
    return 0;
}
