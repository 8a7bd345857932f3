// Pieces of pinned host memory gathered by SMs: bandwidth by piece size, blocks, order, way of
// pinning and way of loading; and what a running gather costs a neighbour, and the neighbour it.
#include "bench/gpu/gather.cuh"

#include <algorithm>

#include "bench/gpu/gemm.cuh"
#include "bench/gpu/host_memory.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/together.cuh"
#include "bench/gpu/parts.hpp"

namespace shoal::gpu {
namespace {

enum class Way : uint8_t { plain, bulk };

const char* way_name(Way way) { return way == Way::plain ? "loads" : "bulk copies"; }

void enqueue_gather(Way way, const GatherArgs& args, uint32_t blocks, cudaStream_t stream) {
    if (way == Way::plain) {
        launch(stream, {blocks, kGatherThreads}, gather_plain<kGatherThreads>, args);
    } else {
        launch(stream, {blocks, 32, kBulkSharedBytes}, gather_bulk<kBulkStages>, args);
    }
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

// Pinned memory that pieces come from, and what DMA reaches from it.
struct Source {
    const char* memory;  // how it was pinned
    const std::byte* host;
    const std::byte* on_device;
    Summary dma;
};

struct Gatherer {
    explicit Gatherer(Context& c)
        : context(c), driver_region(c.plan.pinned_bytes),
          map(c.plan.pinned_bytes, kRegisterChunk, 4), to(c.plan.gather_sample_bytes) {
        SHOAL_CUDA(cudaFuncSetAttribute(gather_bulk<kBulkStages>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBulkSharedBytes)));
        add_source("cudaHostAlloc", driver_region.data(), driver_region.device_data());
        add_source("registered", map.data(), map.device_data());
    }
    void add_source(const char* memory, std::byte* host, const std::byte* on_device) {
        fill_host_rows(context, host, context.plan.pinned_bytes, stream);
        const uint64_t bytes =
            std::min(context.plan.dma_bytes_max, context.plan.gather_sample_bytes);
        const Summary dma = measure_bulk_h2d(context, host, to.data(), bytes, stream);
        context.add(make_row("dma h2d in bulk",
                             {{"piece", bytes_text(bytes)}, {"memory", memory}}, dma, "GB/s"));
        sources.push_back({memory, host, on_device, dma});
    }
    uint32_t count_for(uint32_t piece_bytes) const {
        return static_cast<uint32_t>(std::min(context.plan.gather_sample_bytes,
                                              context.plan.pinned_bytes) / piece_bytes);
    }

    Context& context;
    Stream stream;
    PinnedArray<std::byte> driver_region;
    RegisteredMap map;
    DeviceArray<std::byte> to;
    std::vector<Source> sources;
};

void check_gather(Gatherer& g, Way way, const Source& source, const Pieces& pieces,
                  uint32_t blocks) {
    g.to.fill_bytes(0xee);
    enqueue_gather(way, pieces.args(source.on_device, g.to.data()), blocks, g.stream);
    g.stream.wait_idle();
    const std::vector<std::byte> got = g.to.download();
    const size_t piece = size_t{1} << pieces.piece_log2;
    size_t wrong = 0;
    for (size_t i = 0; i < pieces.host.size(); ++i) {
        const std::byte* wanted = source.host + pieces.host[i] * piece;
        if (std::memcmp(&got[i * piece], wanted, piece) != 0) ++wrong;
    }
    g.context.report.check(std::string("gather by ") + way_name(way) + ", " + source.memory +
                               ", " + bytes_text(piece) + ", " + std::to_string(blocks) +
                               " blocks",
                           wrong == 0, std::to_string(wrong) + " pieces differ");
}

void time_gather(Gatherer& g, Way way, const Source& source, uint32_t piece_bytes, Order order) {
    const Pieces pieces(piece_bytes, g.count_for(piece_bytes), g.context.plan.pinned_bytes, order,
                        7);
    if (order == Order::random) {
        check_gather(g, way, source, pieces, 1);
        check_gather(g, way, source, pieces, 16);
    }
    for (const uint32_t blocks : g.context.plan.ctas) {
        const GatherArgs args = pieces.args(source.on_device, g.to.data());
        const Summary us = time_stream(g.context, g.stream, [&](cudaStream_t s) {
            enqueue_gather(way, args, blocks, s);
        });
        Row row = make_row(std::string("gather by ") + way_name(way),
                           {{"piece", bytes_text(piece_bytes)},
                            {"ctas", std::to_string(blocks)},
                            {"order", order == Order::sorted ? "sorted" : "random"},
                            {"memory", source.memory}},
                           gb_per_s(us, pieces.bytes()), "GB/s");
        g.context.add(with_percent(std::move(row), source.dma.median, "bulk DMA"));
    }
}

// --- neighbours -------------------------------------------------------------------------------

// Tensor-core product [size, depth] x [depth, size], checked on one row of the result. Of little
// depth: a block lasts as long as its depth, and whoever waits for a place waits for a block.
class Gemm {
public:
    Gemm(Context& context, uint32_t size, uint32_t depth)
        : size_(size), depth_(depth), a_(size_t{size} * depth), b_(size_t{depth} * size),
          c_(size_t{size} * size) {
        const Stream stream;
        const uint64_t bytes = a_.bytes();
        enqueue_fill_rows(context.device, reinterpret_cast<uint4*>(a_.data()), bytes, 61, stream);
        enqueue_fill_rows(context.device, reinterpret_cast<uint4*>(b_.data()), bytes, 62, stream);
        enqueue(stream);
        stream.wait_idle();
        const size_t row = size / 2 + 5;
        const auto a = a_.download(row * depth, depth);
        const auto b = b_.download();
        const std::vector<float> c = c_.download(row * size, size);
        std::vector<float> expected(size);
        for (uint32_t j = 0; j < size; ++j) {
            double sum = 0;
            for (uint32_t i = 0; i < depth; ++i) {
                sum += double{value_of(a[i])} * double{value_of(b[size_t{i} * size + j])};
            }
            expected[j] = static_cast<float>(sum);
        }
        double worst = 0;
        for (uint32_t j = 0; j < size; ++j) {
            worst = std::max(worst, std::abs(double{c[j]} - double{expected[j]}));
        }
        // Sums of `depth` products below 1, f32: well under 1e-2.
        context.report.check("gemm stand-in", worst < 1e-2, "largest error " + number_text(worst));
    }
    void enqueue(cudaStream_t stream) const {
        const dim3 grid(size_ / kGemmTile, size_ / kGemmTile);
        launch(stream, {grid, kGemmThreads}, gemm<kGemmThreads>,
               a_.data(), b_.data(), c_.data(), size_, depth_);
    }

private:
    static float value_of(__nv_bfloat16 value) { return __bfloat162float(value); }
    uint32_t size_;
    uint32_t depth_;
    DeviceArray<__nv_bfloat16> a_, b_;
    DeviceArray<float> c_;
};

void time_neighbours(Gatherer& g, Way way) {
    Context& context = g.context;
    const Plan& plan = context.plan;
    const Source& source = g.sources.front();
    const Stream neighbour_stream;
    const Stream gather_stream(Priority::high);
    const uint64_t read_bytes = std::min(plan.stream_bytes, kNeighbourReadBytes);
    const DeviceArray<uint4> hbm(read_bytes / 16);
    DeviceArray<uint32_t> sum(1);
    sum.fill_bytes(0);
    enqueue_fill_rows(context.device, hbm.data(), read_bytes, 5, neighbour_stream);
    neighbour_stream.wait_idle();
    const Gemm product(context, plan.gemm_size, plan.gemm_depth);
    const std::vector<Work> neighbours = {
        {"hbm read", [&](cudaStream_t s) {
             enqueue_read_shortly(hbm.data(), read_bytes, sum.data(), s);
         }},
        {"gemm", [&](cudaStream_t s) { product.enqueue(s); }}};
    const uint32_t piece = kPieceBytes;
    const auto count = static_cast<uint32_t>(
        std::min<uint64_t>(g.count_for(piece), kNeighbourFetchBytes / piece));
    const Pieces pieces(piece, count, plan.pinned_bytes, Order::random, 8);
    std::vector<Work> transfers;
    for (const uint32_t blocks : {4U, 16U, 64U}) {
        transfers.push_back({std::string("gather by ") + way_name(way) + ", 4 KiB, " +
                                 std::to_string(blocks) + " ctas",
                             [&, blocks](cudaStream_t s) {
                                 enqueue_gather(way, pieces.args(source.on_device, g.to.data()),
                                                blocks, s);
                             }});
    }
    if (way == Way::plain) {
        transfers.push_back({"dma h2d", [&](cudaStream_t s) {
                                 SHOAL_CUDA(cudaMemcpyAsync(
                                     g.to.data(), source.host, static_cast<size_t>(pieces.bytes()),
                                     cudaMemcpyHostToDevice, s));
                             }});
    }
    for (const Work& neighbour : neighbours) {
        for (const Work& transfer : transfers) {
            report_together(context, {neighbour_stream, neighbour}, {gather_stream, transfer});
            report_together(context, {gather_stream, transfer}, {neighbour_stream, neighbour});
        }
    }
}

// A backend chooses between 512 B and 4 KiB: their figures come before all others.
enum class Sizes : uint8_t { deciding, other };

void time_pieces(Gatherer& g, Way way, Order order, Sizes sizes) {
    for (const Source& source : g.sources) {
        for (const uint32_t piece : g.context.plan.pieces) {
            const Sizes of = piece == 4096 || piece == 512 ? Sizes::deciding : Sizes::other;
            if (of == sizes) time_gather(g, way, source, piece, order);
        }
    }
}

}  // namespace

void run_gather(Context& context) {
    Gatherer gatherer(context);
    std::vector<Way> ways = {Way::plain};
    // Behind all that decides about loads: a fault in bulk copies would end the process.
    if (context.device.has_bulk_copy) ways.push_back(Way::bulk);
    for (const Way way : ways) {
        time_pieces(gatherer, way, Order::random, Sizes::deciding);
        time_neighbours(gatherer, way);
        time_pieces(gatherer, way, Order::sorted, Sizes::deciding);
    }
    for (const Way way : ways) time_pieces(gatherer, way, Order::random, Sizes::other);
    for (const Way way : ways) time_pieces(gatherer, way, Order::sorted, Sizes::other);
}

}  // namespace shoal::gpu
