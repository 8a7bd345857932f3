// Prefill attention in GFLOP/s, as % of the FMA peak of the same instruction set measured between
// the runs of the same round; few queries also as % of the sequential read bandwidth, bf16 rows
// also as % of the peak of the bf16 dot product, which prefill does not use
// (runtime/docs/decisions.md).
//
// FLOP counts visible pairs only: 4 * head_dim per (query head, slot).
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/prefill.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <random>

#include "bench/limits.hpp"
#include "bench/support.hpp"
#include "kernels/convert.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// `count` rounds of 12 independent FMAs; returns their FLOP.
double fma_chain(uint64_t count, float* sink) {
    const hn::CappedTag<float, 16> d;
    using V = hn::Vec<decltype(d)>;
    const V m = hn::Set(d, 0.999F);
    // Different starts: equal chains would be computed once.
    const V zero = hn::Set(d, *sink);
    V a0 = hn::Add(zero, hn::Set(d, 0.0F)), a1 = hn::Add(zero, hn::Set(d, 0.1F));
    V a2 = hn::Add(zero, hn::Set(d, 0.2F)), a3 = hn::Add(zero, hn::Set(d, 0.3F));
    V a4 = hn::Add(zero, hn::Set(d, 0.4F)), a5 = hn::Add(zero, hn::Set(d, 0.5F));
    V a6 = hn::Add(zero, hn::Set(d, 0.6F)), a7 = hn::Add(zero, hn::Set(d, 0.7F));
    V a8 = hn::Add(zero, hn::Set(d, 0.8F)), a9 = hn::Add(zero, hn::Set(d, 0.9F));
    V a10 = hn::Add(zero, hn::Set(d, 1.0F)), a11 = hn::Add(zero, hn::Set(d, 1.1F));
    for (uint64_t i = 0; i < count; ++i) {
        a0 = hn::MulAdd(a0, m, m);
        a1 = hn::MulAdd(a1, m, m);
        a2 = hn::MulAdd(a2, m, m);
        a3 = hn::MulAdd(a3, m, m);
        a4 = hn::MulAdd(a4, m, m);
        a5 = hn::MulAdd(a5, m, m);
        a6 = hn::MulAdd(a6, m, m);
        a7 = hn::MulAdd(a7, m, m);
        a8 = hn::MulAdd(a8, m, m);
        a9 = hn::MulAdd(a9, m, m);
        a10 = hn::MulAdd(a10, m, m);
        a11 = hn::MulAdd(a11, m, m);
    }
    const V sum = hn::Add(hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)),
                                  hn::Add(hn::Add(a4, a5), hn::Add(a6, a7))),
                          hn::Add(hn::Add(a8, a9), hn::Add(a10, a11)));
    *sink = hn::GetLane(sum);
    return static_cast<double>(count) * 24.0 * static_cast<double>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace shoal::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::bench {

HWY_EXPORT(fma_chain);

namespace {

using kernels::Backend;
using kernels::KvView;
using kernels::PieceFormat;
using kernels::PrefillInput;

struct Shape {
    const char* name;
    uint32_t kv_heads;
    uint32_t q_per_kv;
    uint32_t dim;
    DType dtype;
};

constexpr uint32_t kBlockLog2 = 4;

// FLOP/s of all threads together, the best of three tries: a limit, so other load only hides it.
// `work(sink)` returns its FLOP.
template <typename F>
double peak(BenchThreads& threads, const F& work) {
    std::vector<double> flop(threads.thread_count());
    std::vector<float> sinks(threads.thread_count());
    double best = 0.0;
    for (int attempt = 0; attempt < 3; ++attempt) {
        const double start = now_s();
        threads.run_each(threads.thread_count(),
                         [&](uint32_t i, uint32_t) { flop[i] = work(sinks[i]); });
        const double seconds = now_s() - start;
        double total = 0.0;
        for (double f : flop) total += f;
        best = std::max(best, total / seconds);
    }
    return best;
}

double fma_peak(BenchThreads& threads) {
    return peak(threads,
                [](float& sink) { return HWY_DYNAMIC_DISPATCH(fma_chain)(400000, &sink); });
}

// 0 where the processor has no such instruction.
double bf16_dot_peak(BenchThreads& threads) {
    if (!detail::has(Fma::bf16_avx512)) return 0.0;
    return peak(threads,
                [](float& sink) { return detail::run_fma(Fma::bf16_avx512, 200000, sink); });
}

// One layer of keys and values, and queries that come last (causal).
class Bed {
public:
    Bed(const Shape& shape, uint32_t slots)
        : shape_(shape), slots_(slots),
          format_(piece_format(shape.kv_heads, shape.dim, shape.dtype)),
          buffer_(size_t{slots} * format_.piece_stride_bytes) {
        std::minstd_rand random(3);
        std::normal_distribution<float> normal;
        std::vector<uint16_t> pattern(32749);
        for (uint16_t& value : pattern) {
            value = shape.dtype == DType::f16 ? kernels::f32_to_f16(normal(random))
                                              : kernels::f32_to_bf16(normal(random));
        }
        const size_t bytes = pattern.size() * 2;
        for (size_t at = 0; at < buffer_.bytes(); at += bytes) {
            std::memcpy(buffer_.data() + at, pattern.data(),
                        std::min(bytes, buffer_.bytes() - at));
        }
        const size_t block_bytes = size_t{format_.piece_stride_bytes} << kBlockLog2;
        for (size_t at = 0; at < buffer_.bytes(); at += block_bytes) {
            blocks_.push_back(buffer_.data() + at);
        }
    }

    // Attends `queries` queries that see the first slots up to their own; returns the FLOP.
    double prefill(const Backend& backend, BenchThreads& threads, uint32_t queries) {
        const uint32_t heads = shape_.kv_heads * shape_.q_per_kv;
        prepare(queries, heads, threads.thread_count());
        PrefillInput in;
        in.kv = KvView{format_, blocks_.data(), kBlockLog2};
        in.q = q_.data();
        in.q_stride = size_t{heads} * shape_.dim;
        in.q_head_stride = shape_.dim;
        in.query_count = queries;
        in.q_per_kv = shape_.q_per_kv;
        in.ranges = ranges_.data();
        in.range_offsets = offsets_.data();
        in.scale = 0.125F;
        backend.prefill(in, {out_.data(), in.q_stride, shape_.dim, nullptr}, workspace_.data(),
                        threads.executor());
        const double seen = 0.5 * (2.0 * slots_ - queries + 1.0) * queries;
        return 4.0 * seen * heads * shape_.dim;
    }
    size_t kv_bytes() const { return size_t{slots_} * shape_.kv_heads * format_.row_stride_bytes; }
    const HugeBuffer& buffer() const { return buffer_; }

    void prepare(uint32_t queries, uint32_t heads, uint32_t threads) {
        if (offsets_.size() == queries + 1 && threads == threads_) return;
        threads_ = threads;
        ranges_.clear();
        offsets_ = {0};
        for (uint32_t i = 0; i < queries; ++i) {
            ranges_.push_back({0, slots_ - queries + i + 1});
            offsets_.push_back(i + 1);
        }
        std::minstd_rand random(5);
        std::normal_distribution<float> normal;
        q_.resize(size_t{queries} * heads * shape_.dim);
        for (float& value : q_) value = normal(random);
        out_.resize(q_.size());
        const size_t bytes =
            kernels::prefill_workspace_bytes(format_, shape_.q_per_kv, queries, threads);
        workspace_.resize(bytes / sizeof(Line) + 1);
    }

private:
    struct alignas(64) Line {
        std::byte bytes[64];
    };

    Shape shape_;
    uint32_t slots_;
    PieceFormat format_;
    HugeBuffer buffer_;
    std::vector<std::byte*> blocks_;
    std::vector<float> q_;
    std::vector<float> out_;
    std::vector<SlotRange> ranges_;
    std::vector<uint32_t> offsets_;
    std::vector<Line> workspace_;
    uint32_t threads_ = 0;
};

void measure(const Backend& backend, Bed& bed, const Shape& shape, uint32_t slots,
             uint32_t queries, uint32_t thread_count, uint32_t rounds) {
    BenchThreads threads(thread_count);
    bed.prepare(queries, shape.kv_heads * shape.q_per_kv, thread_count);
    std::vector<double> seconds;
    std::vector<double> fma_percent;
    std::vector<double> read_percent;
    std::vector<double> dot_percent;
    double flop = 0.0;
    for (uint32_t round = 0; round < rounds; ++round) {
        const double read =
            static_cast<double>(bed.buffer().bytes()) / time_read(threads, bed.buffer());
        const double before = fma_peak(threads);
        const double start = now_s();
        flop = bed.prefill(backend, threads, queries);
        const double s = now_s() - start;
        const double fma = std::max(before, fma_peak(threads));
        seconds.push_back(s);
        fma_percent.push_back(100.0 * flop / s / fma);
        const double dot = shape.dtype == DType::bf16 ? bf16_dot_peak(threads) : 0.0;
        if (dot > 0.0) dot_percent.push_back(100.0 * flop / s / dot);
        read_percent.push_back(100.0 * static_cast<double>(bed.kv_bytes()) / s / read);
    }
    const double s = median(seconds);
    std::printf("prefill %-2s %-5s %-8s %u threads  %4u queries, %6u slots  %9.2f ms"
                "  %7.1f GFLOP/s  %5.1f %% of FMA  %6.1f GB/s  %5.1f %% of read",
                shape.name, dtype_name(shape.dtype), kernels::cpu_target_name().c_str(),
                thread_count, queries, slots, s * 1e3, flop / s / 1e9, median(fma_percent),
                static_cast<double>(bed.kv_bytes()) / s / 1e9, median(read_percent));
    if (!dot_percent.empty()) std::printf("  %5.1f %% of bf16 dot", median(dot_percent));
    std::printf("\n");
    std::fflush(stdout);
}

void run(const BenchArgs& args) {
    const std::vector<Shape> shapes = {
        {"S", 3, 3, 64, DType::f16},
        {"L", 8, 4, 128, DType::bf16},
    };
    struct Size {
        uint32_t queries;
        uint32_t slots;
    };
    const std::vector<Size> sizes =
        args.quick ? std::vector<Size>{{3, 1024}, {128, 1024}}
                   : std::vector<Size>{{1, 8192},  {3, 8192},    {16, 8192},
                                       {64, 8192}, {512, 512},   {512, 4096}, {512, 16384}};
    for (const Shape& shape : shapes) {
        for (const Size& size : sizes) {
            Bed bed(shape, size.slots);
            for (int64_t target : bench_targets(args.target)) {
                hwy::SetSupportedTargetsForTest(target);
                for (uint32_t threads : args.threads) {
                    measure(kernels::cpu_backend(), bed, shape, size.slots, size.queries,
                            threads, args.rounds);
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
#endif
