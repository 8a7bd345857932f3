// Pieces of pinned host memory gathered by SMs: bandwidth by piece size, blocks, order and way of
// loading; and what a running gather costs a neighbour, and the neighbour it.
#include "bench/gpu/gather.cuh"

#include <algorithm>

#include "bench/gpu/gemm.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

enum class Way : uint8_t { plain, bulk };

const char* way_name(Way way) { return way == Way::plain ? "loads" : "bulk copies"; }

void enqueue_gather(Way way, const GatherArgs& args, uint32_t blocks, cudaStream_t stream) {
    if (way == Way::plain) {
        gather_plain<kGatherThreads><<<blocks, kGatherThreads, 0, stream>>>(args);
    } else {
        gather_bulk<kBulkStages><<<blocks, 32, kBulkSharedBytes, stream>>>(args);
    }
    SHOAL_LAUNCHED();
}

uint32_t log2_of(uint64_t value) {
    uint32_t log2 = 0;
    while ((value >>= 1) != 0) ++log2;
    return log2;
}

// A list of pieces on the device and on the host.
struct Pieces {
    Pieces(uint32_t piece_bytes, uint32_t count, uint64_t region_bytes, Order order, uint32_t seed)
        : piece_log2(log2_of(piece_bytes)),
          host(make_indices(count, log2_of(region_bytes / piece_bytes), order, seed)),
          index(host), count_on_device(std::vector<uint32_t>{count}) {}
    GatherArgs args(const std::byte* from, std::byte* to) const {
        GatherArgs args;
        args.from = from;
        args.to = to;
        args.from_index = index.data();
        args.count = count_on_device.data();
        args.piece_log2 = piece_log2;
        return args;
    }
    double bytes() const { return static_cast<double>(host.size() << piece_log2); }

    uint32_t piece_log2;
    std::vector<uint32_t> host;
    DeviceArray<uint32_t> index;
    DeviceArray<uint32_t> count_on_device;
};

struct Gatherer {
    explicit Gatherer(Context& c)
        : context(c), region(make_pinned_rows(c, stream)),
          from(reinterpret_cast<const std::byte*>(region.device_data())),
          to(c.plan.gather_sample_bytes) {
        SHOAL_CUDA(cudaFuncSetAttribute(gather_bulk<kBulkStages>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBulkSharedBytes)));
        const uint64_t bytes = std::min(c.plan.dma_bytes_max, c.plan.gather_sample_bytes);
        dma = measure_bulk_h2d(c, region.data(), to.data(), bytes, stream);
        c.add(make_row("dma h2d in bulk", {{"piece", bytes_text(bytes)}}, dma, "GB/s"));
    }
    uint32_t count_for(uint32_t piece_bytes) const {
        return static_cast<uint32_t>(std::min(context.plan.gather_sample_bytes,
                                              context.plan.pinned_bytes) / piece_bytes);
    }

    Context& context;
    Stream stream;
    PinnedArray<uint4> region;
    const std::byte* from;
    DeviceArray<std::byte> to;
    Summary dma;
};

void check_gather(Gatherer& g, Way way, const Pieces& pieces, uint32_t blocks) {
    g.to.fill_bytes(0xee);
    enqueue_gather(way, pieces.args(g.from, g.to.data()), blocks, g.stream);
    g.stream.wait_idle();
    const std::vector<std::byte> got = g.to.download();
    const size_t piece = size_t{1} << pieces.piece_log2;
    size_t wrong = 0;
    for (size_t i = 0; i < pieces.host.size(); ++i) {
        const std::byte* wanted =
            reinterpret_cast<const std::byte*>(g.region.data()) + pieces.host[i] * piece;
        if (std::memcmp(&got[i * piece], wanted, piece) != 0) ++wrong;
    }
    g.context.report.check(std::string("gather by ") + way_name(way) + ", " + bytes_text(piece) +
                               ", " + std::to_string(blocks) + " blocks",
                           wrong == 0, std::to_string(wrong) + " pieces differ");
}

void time_gather(Gatherer& g, Way way, uint32_t piece_bytes, Order order) {
    const Pieces pieces(piece_bytes, g.count_for(piece_bytes), g.context.plan.pinned_bytes, order,
                        7);
    if (order == Order::random) {
        check_gather(g, way, pieces, 1);
        check_gather(g, way, pieces, 16);
    }
    for (const uint32_t blocks : g.context.plan.ctas) {
        const GatherArgs args = pieces.args(g.from, g.to.data());
        const Summary us = time_stream(g.context, g.stream, [&](cudaStream_t s) {
            enqueue_gather(way, args, blocks, s);
        });
        Row row = make_row(std::string("gather by ") + way_name(way),
                           {{"piece", bytes_text(piece_bytes)},
                            {"ctas", std::to_string(blocks)},
                            {"order", order == Order::sorted ? "sorted" : "random"}},
                           gb_per_s(us, pieces.bytes()), "GB/s");
        g.context.add(with_percent(std::move(row), g.dma.median, "bulk DMA"));
    }
}

// --- neighbours -------------------------------------------------------------------------------

// Something that runs for long enough, on a stream of its own.
struct Work {
    std::string name;
    Enqueue enqueue;
};

// Microseconds of `front` alone and while `back` runs from before it until after it.
struct Together {
    Summary alone;
    Summary together;
    uint32_t uncovered = 0;  // samples in which `back` ended first
};

Together time_together(const Context& context, const Stream& front_stream,
                       const Stream& back_stream, const Work& front, const Work& back) {
    Together result;
    result.alone = time_stream(context, front_stream, front.enqueue);
    const Summary back_alone = time_stream(context, back_stream, back.enqueue);
    if (result.alone.count == 0 || back_alone.count == 0) return result;
    // Four times what front takes alone: room for both to be slowed down.
    const auto rounds = static_cast<uint32_t>(
        std::max(2.0, 1 + 4 * result.alone.median / std::max(1.0, back_alone.median)));
    const Event begin, end, back_end;
    const Event started(Event::Timing::off);
    std::vector<double> samples;
    const double case_begin = now_s();
    while (context.another(static_cast<uint32_t>(samples.size()), case_begin)) {
        back.enqueue(back_stream);
        started.record(back_stream);
        started.hold(front_stream);
        for (uint32_t i = 0; i < rounds; ++i) back.enqueue(back_stream);
        begin.record(front_stream);
        front.enqueue(front_stream);
        end.record(front_stream);
        back_end.record(back_stream);
        end.wait();
        back_end.wait();
        samples.push_back(end.us_since(begin));
        if (back_end.us_since(end) < 0) ++result.uncovered;
    }
    result.together = summarise(std::move(samples));
    return result;
}

void report_together(Context& context, const Together& t, const Work& front, const Work& back) {
    if (t.together.count == 0) return context.report.note(front.name + " beside " + back.name +
                                                          ": left out, the budget is spent");
    Summary slowdown = t.together;
    slowdown.median = 100 * (t.together.median / t.alone.median - 1);
    slowdown.p10 = 100 * (t.together.p10 / t.alone.median - 1);
    slowdown.p90 = 100 * (t.together.p90 / t.alone.median - 1);
    Row row = make_row("slowdown", {{"of", front.name}, {"beside", back.name}}, slowdown, "%");
    row.note = number_text(t.alone.median) + " us alone";
    if (t.uncovered != 0) {
        row.note += ", neighbour ended first in " + std::to_string(t.uncovered) + " runs";
    }
    context.add(row);
}

// Tensor-core product of two square matrices, checked on one row of the result.
class Gemm {
public:
    Gemm(Context& context, uint32_t size)
        : size_(size), a_(size_t{size} * size), b_(size_t{size} * size), c_(size_t{size} * size) {
        const Stream stream;
        const uint64_t bytes = a_.bytes();
        enqueue_fill_rows(context.device, reinterpret_cast<uint4*>(a_.data()), bytes, 61, stream);
        enqueue_fill_rows(context.device, reinterpret_cast<uint4*>(b_.data()), bytes, 62, stream);
        enqueue(stream);
        stream.wait_idle();
        const size_t row = size / 2 + 5;
        const auto a = a_.download(row * size, size);
        const auto b = b_.download();
        const std::vector<float> c = c_.download(row * size, size);
        std::vector<float> expected(size);
        for (uint32_t j = 0; j < size; ++j) {
            double sum = 0;
            for (uint32_t i = 0; i < size; ++i) {
                sum += double{value_of(a[i])} * double{value_of(b[size_t{i} * size + j])};
            }
            expected[j] = static_cast<float>(sum);
        }
        double worst = 0;
        for (uint32_t j = 0; j < size; ++j) {
            worst = std::max(worst, std::abs(double{c[j]} - double{expected[j]}));
        }
        // Sums of `size` products below 1, f32: well under 1e-2.
        context.report.check("gemm stand-in", worst < 1e-2, "largest error " + number_text(worst));
    }
    void enqueue(cudaStream_t stream) const {
        const dim3 grid(size_ / kGemmTile, size_ / kGemmTile);
        gemm<kGemmThreads>
            <<<grid, kGemmThreads, 0, stream>>>(a_.data(), b_.data(), c_.data(), size_, size_);
        SHOAL_LAUNCHED();
    }

private:
    static float value_of(__nv_bfloat16 value) { return __bfloat162float(value); }
    uint32_t size_;
    DeviceArray<__nv_bfloat16> a_, b_;
    DeviceArray<float> c_;
};

void time_neighbours(Gatherer& g, Way way) {
    Context& context = g.context;
    const Stream front_stream;
    const Stream gather_stream(Priority::high);
    const uint64_t stream_bytes = context.plan.stream_bytes;
    const DeviceArray<uint4> hbm(stream_bytes / 16);
    DeviceArray<uint32_t> sum(1);
    sum.fill_bytes(0);
    enqueue_fill_rows(context.device, hbm.data(), stream_bytes, 5, front_stream);
    front_stream.wait_idle();
    const Gemm product(context, context.small ? 256 : 4096);
    const std::vector<Work> neighbours = {
        {"hbm read", [&](cudaStream_t s) {
             enqueue_read(context.device, hbm.data(), stream_bytes, sum.data(), s);
         }},
        {"gemm", [&](cudaStream_t s) { product.enqueue(s); }}};
    const Pieces pieces(4096, g.count_for(4096), context.plan.pinned_bytes, Order::random, 8);
    std::vector<Work> transfers;
    for (const uint32_t blocks : {4U, 16U, 64U}) {
        transfers.push_back({std::string("gather by ") + way_name(way) + ", 4 KiB, " +
                                 std::to_string(blocks) + " ctas",
                             [&g, &pieces, way, blocks](cudaStream_t s) {
                                 enqueue_gather(way, pieces.args(g.from, g.to.data()), blocks, s);
                             }});
    }
    if (way == Way::plain) {
        transfers.push_back({"dma h2d in bulk", [&](cudaStream_t s) {
                                 SHOAL_CUDA(cudaMemcpyAsync(g.to.data(), g.region.data(),
                                                            g.to.bytes(), cudaMemcpyHostToDevice,
                                                            s));
                             }});
    }
    for (const Work& neighbour : neighbours) {
        for (const Work& transfer : transfers) {
            const auto there =
                time_together(context, front_stream, gather_stream, neighbour, transfer);
            report_together(context, there, neighbour, transfer);
            const auto back =
                time_together(context, gather_stream, front_stream, transfer, neighbour);
            report_together(context, back, transfer, neighbour);
        }
    }
}

void time_way(Gatherer& g, Way way) {
    const std::vector<uint32_t>& all = g.context.plan.pieces;
    // The sizes that decide come first, the neighbours before the rest.
    for (const uint32_t piece : {4096U, 512U}) {
        if (std::count(all.begin(), all.end(), piece) != 0) {
            time_gather(g, way, piece, Order::random);
        }
    }
    time_neighbours(g, way);
    for (const uint32_t piece : all) {
        if (piece != 4096 && piece != 512) time_gather(g, way, piece, Order::random);
    }
    for (const uint32_t piece : all) time_gather(g, way, piece, Order::sorted);
}

}  // namespace

void run_gather(Context& context) {
    Gatherer gatherer(context);
    time_way(gatherer, Way::plain);
    // Last: a fault in bulk copies would end the process, and take nothing else with it.
    if (context.device.has_bulk_copy) time_way(gatherer, Way::bulk);
}

}  // namespace shoal::gpu
