// Decode attention: gathered random rows and everything, as % of the sequential read bandwidth
// measured between the runs of the same round.
//
// `rows` only reads the pieces of a list, the first lines of each prefetched eight pieces early and
// the rest left to the hardware: about what a gather could reach at best.
// Bytes are those of the listed pieces. Several layers are walked in turn, so that rows come from
// memory as they do in a decode step. A gather includes its merge.
#include <random>

#include "bench/support.hpp"
#include "kernels/convert.hpp"

namespace shoal::bench {
namespace {

using kernels::AttendInput;
using kernels::Backend;
using kernels::KvView;
using kernels::PieceFormat;

struct Shape {
    const char* name;
    uint32_t kv_heads;
    uint32_t q_per_kv;
    uint32_t dim;
    DType dtype;
    uint32_t layers;
};

constexpr uint32_t kRows = 1024;
constexpr uint32_t kLists = 256;  // no list is met again while its rows are in the last cache
constexpr uint32_t kListsPerRound = 16;
constexpr uint32_t kBlockLog2 = 4;

class Bed {
public:
    Bed(const Shape& shape, uint32_t slots)
        : shape_(shape), slots_(slots),
          format_(piece_format(shape.kv_heads, shape.dim, shape.dtype)),
          buffer_(size_t{shape.layers} * slots * format_.piece_stride_bytes),
          scales_(size_t{shape.layers} * slots * std::max(format_.scale_bytes(), 1U)) {
        fill();
        std::minstd_rand random(1);
        for (uint32_t list = 0; list < kLists; ++list) {
            std::vector<uint32_t> all(slots);
            for (uint32_t i = 0; i < slots; ++i) all[i] = i;
            std::shuffle(all.begin(), all.end(), random);
            all.resize(kRows);
            std::sort(all.begin(), all.end());
            lists_.push_back(std::move(all));
        }
        const size_t block_bytes = size_t{format_.piece_stride_bytes} << kBlockLog2;
        for (size_t at = 0; at < buffer_.bytes(); at += block_bytes) {
            blocks_.push_back(buffer_.data() + at);
        }
        q_.resize(size_t{q_heads()} * shape.dim);
        for (float& value : q_) value = std::normal_distribution<float>()(random);
        partials_.resize(kernels::kAttendPartsMax *
                         kernels::attend_partial_floats(q_heads(), shape.dim));
        out_.resize(size_t{q_heads()} * shape.dim);
    }

    // Attends `list` of `layer` (or everything when null) and returns the bytes of its pieces.
    size_t attend(const Backend& backend, BenchThreads& threads, uint32_t layer,
                  const std::vector<uint32_t>* list) {
        AttendInput in;
        const uint32_t blocks_per_layer = slots_ >> kBlockLog2;
        in.kv = KvView{format_, blocks_.data() + size_t{layer} * blocks_per_layer, kBlockLog2};
        if (format_.has_scales()) {
            in.kv.scales = reinterpret_cast<uint16_t*>(
                scales_.data() + size_t{layer} * slots_ * format_.scale_bytes());
        }
        in.q = q_.data();
        in.q_head_stride = shape_.dim;
        in.q_per_kv = shape_.q_per_kv;
        in.slots = {list != nullptr ? list->data() : nullptr, 0, list != nullptr ? kRows : slots_};
        in.scale = 0.125F;
        const uint32_t rows = kernels::attend_part_rows(in.slots.count);
        const uint32_t parts = kernels::attend_part_count(in.slots.count);
        threads.run_each(parts, [&](uint32_t part, uint32_t) {
            backend.attend_part(in, part * rows, std::min((part + 1) * rows, in.slots.count),
                                kernels::attend_partial_at(partials_.data(), part, q_heads(),
                                                           shape_.dim));
        });
        backend.merge({partials_.data(), parts, q_heads(), shape_.dim},
                      {out_.data(), shape_.dim, nullptr});
        return size_t{in.slots.count} * format_.token_bytes();
    }

    // Reads the pieces of `list` and returns their bytes.
    size_t read_rows(BenchThreads& threads, uint32_t layer, const std::vector<uint32_t>& list) {
        constexpr uint32_t kAhead = 8;
        const size_t piece = format_.piece_stride_bytes;
        const std::byte* base = buffer_.data() + size_t{layer} * slots_ * piece;
        threads.run_each(kRows / kernels::kAttendPartRowsMin, [&](uint32_t part, uint32_t) {
            const uint32_t begin = part * kernels::kAttendPartRowsMin;
            const uint32_t end = begin + kernels::kAttendPartRowsMin;
            uint64_t sums[8] = {};
            for (uint32_t i = begin; i < end; ++i) {
                const std::byte* ahead = base + list[std::min(i + kAhead, end - 1)] * piece;
                for (size_t line = 0; line < 3; ++line) __builtin_prefetch(ahead + 64 * line);
                const auto* words = reinterpret_cast<const uint64_t*>(base + list[i] * piece);
                for (size_t w = 0; w < piece / 8; w += 8) {
                    for (size_t j = 0; j < 8; ++j) sums[j] ^= words[w + j];
                }
            }
            for (const uint64_t sum : sums) sink_ += sum;
        });
        return kRows * piece;
    }

    uint32_t q_heads() const { return shape_.kv_heads * shape_.q_per_kv; }
    uint32_t layers() const { return shape_.layers; }
    const HugeBuffer& buffer() const { return buffer_; }
    const std::vector<uint32_t>& list(uint32_t i) const { return lists_[i % kLists]; }
    // FLOP per byte of a piece.
    double flop_per_byte() const {
        return 4.0 * q_heads() * shape_.dim / format_.token_bytes();
    }

private:
    // Normal numbers, repeated every 64 KiB and 62 B: values do not matter, NaN and speed do.
    void fill() {
        std::minstd_rand random(3);
        std::normal_distribution<float> normal;
        std::vector<uint16_t> pattern(32749);
        for (uint16_t& value : pattern) {
            value = shape_.dtype == DType::f16 ? kernels::f32_to_f16(normal(random))
                                               : kernels::f32_to_bf16(normal(random));
        }
        const size_t bytes = pattern.size() * 2;
        for (size_t at = 0; at < buffer_.bytes(); at += bytes) {
            std::memcpy(buffer_.data() + at, pattern.data(),
                        std::min(bytes, buffer_.bytes() - at));
        }
        auto* scales = reinterpret_cast<uint16_t*>(scales_.data());
        std::fill_n(scales, scales_.bytes() / 2, kernels::f32_to_bf16(0.03F));
    }

    Shape shape_;
    uint32_t slots_;
    PieceFormat format_;
    HugeBuffer buffer_;
    HugeBuffer scales_;  // of q8 rows
    std::vector<std::byte*> blocks_;
    std::vector<std::vector<uint32_t>> lists_;
    std::vector<float> q_;
    std::vector<float> partials_;
    std::vector<float> out_;
    std::atomic<uint64_t> sink_{0};  // keeps reads from being optimised away
};

struct Series {
    std::vector<double> us;
    std::vector<double> percent;
    size_t bytes = 0;
};

void print(const char* op, const Shape& shape, uint32_t threads, const Series& series,
           double flop_per_byte) {
    const double us = median(series.us);
    const double gb_s = static_cast<double>(series.bytes) / us / 1e3;
    std::printf("%-7s %-2s %-5s %-8s %u threads  %10.1f us  %9.3f MB  %6.1f GB/s  %6.1f GFLOP/s"
                "  %5.1f %% of read\n",
                op, shape.name, dtype_name(shape.dtype), kernels::cpu_target_name().c_str(),
                threads, us, static_cast<double>(series.bytes) / 1e6, gb_s, gb_s * flop_per_byte,
                median(series.percent));
}

void measure(const Backend& backend, Bed& bed, const Shape& shape, uint32_t thread_count,
             const BenchArgs& args) {
    BenchThreads threads(thread_count);
    Series rows;
    Series gather;
    Series dense;
    std::vector<double> read_gb_s;
    uint32_t list = 0;
    for (uint32_t round = 0; round < args.rounds; ++round) {
        const double read_s = time_read(threads, bed.buffer());
        const double read = static_cast<double>(bed.buffer().bytes()) / read_s;
        read_gb_s.push_back(read / 1e9);
        const auto add = [&](Series& series, double seconds, size_t bytes) {
            series.us.push_back(seconds * 1e6);
            series.percent.push_back(100.0 * static_cast<double>(bytes) / seconds / read);
            series.bytes = bytes;
        };
        // Lists and layers in turn; one figure per list.
        double start = now_s();
        size_t bytes = 0;
        for (uint32_t i = 0; i < kListsPerRound; ++i, ++list) {
            bytes += bed.read_rows(threads, list % bed.layers(), bed.list(list));
        }
        add(rows, (now_s() - start) / kListsPerRound, bytes / kListsPerRound);
        start = now_s();
        bytes = 0;
        for (uint32_t i = 0; i < kListsPerRound; ++i, ++list) {
            bytes += bed.attend(backend, threads, list % bed.layers(), &bed.list(list));
        }
        add(gather, (now_s() - start) / kListsPerRound, bytes / kListsPerRound);
        start = now_s();
        bytes = bed.attend(backend, threads, round % bed.layers(), nullptr);
        add(dense, now_s() - start, bytes);
    }
    std::printf("%-7s %-2s %-14s %u threads  %64.1f GB/s\n", "read", shape.name, "",
                thread_count, median(read_gb_s));
    print("rows", shape, thread_count, rows, 0.0);
    print("gather", shape, thread_count, gather, bed.flop_per_byte());
    print("dense", shape, thread_count, dense, bed.flop_per_byte());
    std::fflush(stdout);
}

struct Ratios {
    std::vector<double> gather;
    std::vector<double> dense;
};

// Seconds of some gathers and of a dense pass, of one bed.
void time_once(const Backend& backend, BenchThreads& threads, Bed& bed, uint32_t round,
               double& gather_s, double& dense_s) {
    const double start = now_s();
    for (uint32_t i = 0; i < kListsPerRound; ++i) {
        const uint32_t list = round * kListsPerRound + i;
        bed.attend(backend, threads, list % bed.layers(), &bed.list(list));
    }
    const double middle = now_s();
    bed.attend(backend, threads, round % bed.layers(), nullptr);
    gather_s = middle - start;
    dense_s = now_s() - middle;
}

// The same work over f16 and over q8 rows, in turns, first and last changing places.
void compare(const Backend& backend, Bed& f16, Bed& q8, const Shape& shape, uint32_t thread_count,
             const BenchArgs& args) {
    BenchThreads threads(thread_count);
    Ratios ratios;
    Ratios f16_ms;
    for (uint32_t round = 0; round < args.rounds; ++round) {
        double gather[2];
        double dense[2];
        for (uint32_t turn = 0; turn < 2; ++turn) {
            const uint32_t which = (round + turn) % 2;
            time_once(backend, threads, which == 0 ? f16 : q8, round, gather[which], dense[which]);
        }
        f16_ms.gather.push_back(1e3 * gather[0] / kListsPerRound);
        f16_ms.dense.push_back(1e3 * dense[0]);
        ratios.gather.push_back(gather[1] / gather[0]);
        ratios.dense.push_back(dense[1] / dense[0]);
    }
    std::printf("q8/f16  %-2s %-14s %u threads  gather %.3f of %.3f ms  dense %.3f of %.3f ms\n",
                shape.name, kernels::cpu_target_name().c_str(), thread_count,
                median(ratios.gather), median(f16_ms.gather), median(ratios.dense),
                median(f16_ms.dense));
    std::fflush(stdout);
}

void compare_rows(const BenchArgs& args, uint32_t slots) {
    const Shape shapes[] = {{"S", 3, 3, 64, DType::f16, 6}, {"L", 8, 4, 128, DType::f16, 2}};
    for (Shape shape : shapes) {
        Bed f16(shape, slots);
        shape.dtype = DType::q8;
        Bed q8(shape, slots);
        for (int64_t target : bench_targets(args.target)) {
            hwy::SetSupportedTargetsForTest(target);
            for (uint32_t threads : args.threads) {
                compare(kernels::cpu_backend(), f16, q8, shape, threads, args);
            }
        }
        hwy::SetSupportedTargetsForTest(0);
    }
}

void run(const BenchArgs& args) {
    const uint32_t slots = args.quick ? 16384 : 131072;
    const std::vector<Shape> shapes = {
        {"S", 3, 3, 64, DType::f16, 6},
        {"L", 8, 4, 128, DType::bf16, 2},
        {"L", 8, 4, 128, DType::f16, 2},
        {"S", 3, 3, 64, DType::q8, 6},
        {"L", 8, 4, 128, DType::q8, 2},
    };
    std::printf("%u of %u slots gathered, medians of %u rounds\n", kRows, slots, args.rounds);
    for (const Shape& shape : shapes) {
        Bed bed(shape, slots);
        for (int64_t target : bench_targets(args.target)) {
            hwy::SetSupportedTargetsForTest(target);
            for (uint32_t threads : args.threads) {
                measure(kernels::cpu_backend(), bed, shape, threads, args);
            }
        }
        hwy::SetSupportedTargetsForTest(0);
    }
    compare_rows(args, slots);
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    shoal::bench::run(shoal::bench::parse_args(argc, argv));
    return 0;
}
