// Sizes of everything that is measured, shrunk to what the machine has; lists of indices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal::gpu {

// The shape measured: one layer of Llama-3.1-8B.
inline constexpr uint32_t kKvHeads = 8;
inline constexpr uint32_t kQueryPerKv = 4;
inline constexpr uint32_t kQueryHeads = kKvHeads * kQueryPerKv;
inline constexpr uint32_t kHeadDim = 128;
inline constexpr uint32_t kRowBytes = 2 * kHeadDim * 2;           // K | V of one head in bf16
inline constexpr uint32_t kPieceBytes = kKvHeads * kRowBytes;     // one token of one layer
inline constexpr uint32_t kLayers = 32;
// Weights of one layer: q and o 4096^2 each, k and v 4096 x 1024 each, three of 4096 x 14336.
inline constexpr uint64_t kLayerWeightBytes =
    2 * (2 * uint64_t{4096} * 4096 + 2 * uint64_t{4096} * 1024 + 3 * uint64_t{4096} * 14336);

// Rows go to pinned memory by way of a device buffer of this size.
inline constexpr uint64_t kFillChunk = uint64_t{64} << 20;

struct Machine {
    uint64_t device_free_bytes = 0;
    uint64_t host_free_bytes = 0;
    uint64_t l2_bytes = 0;
    uint32_t processors = 0;  // multiprocessors: workspaces grow with them
};

struct Plan {
    uint32_t processors = 0;
    uint64_t pinned_bytes = 0;        // region that gathers read from; a power of 2
    uint64_t register_bytes = 0;      // pinned and unpinned to measure how long it takes
    uint64_t stream_bytes = 0;        // device buffer read or copied as one stream
    uint64_t dma_bytes_max = 0;       // the largest DMA piece
    uint64_t dma_sample_bytes = 0;    // moved between two events
    uint64_t gather_sample_bytes = 0;
    uint64_t cold_bytes = 0;          // buffers are rotated until this much lies between two uses
    uint32_t gemm_size = 0;           // rows and columns of the product beside a gather
    uint32_t gemm_depth = 0;
    std::vector<uint32_t> pieces;     // gather: bytes
    std::vector<uint32_t> ctas;       // gather
    std::vector<uint32_t> tokens;     // scan and select, ascending
    std::vector<uint32_t> batches;
    std::vector<uint32_t> select_rows;
    std::vector<uint32_t> attend_rows;
    std::vector<uint32_t> step_tokens;
    uint32_t step_layers = 0;
    uint32_t step_weight_layers = 0;  // distinct layers of weights in memory; 0: no weight load
    uint64_t step_weight_bytes = 0;   // of one layer
    uint32_t step_rows = 0;
    uint32_t step_hot_slots = 0;
};

// Every size that had to shrink adds a sentence to `notes`.
Plan make_plan(const Machine& machine, bool small, uint32_t span_bytes,
               std::vector<std::string>& notes);

// Units of work beside which a gather is timed, about 0.1 ms each, so that one is never the whole
// of a window: a fetch of half a step's rows of a layer, and a read that L2 cannot hold.
inline constexpr uint64_t kNeighbourFetchBytes = uint64_t{4} << 20;
inline constexpr uint64_t kNeighbourReadBytes = uint64_t{256} << 20;
// Select calls in a graph, with a histogram each.
inline constexpr uint32_t kSelectCalls = 20;
// Of rows that are written back, until they are written over.
inline constexpr uint32_t kRingSlots = 64;

// Slots of a request in the hot rows that attention is timed on, a power of 2: between two reads of
// a slot lie at least cold_bytes of others, whatever the number of rows a call selects.
uint32_t attend_slots(const Plan& plan, uint32_t batch);

// Of a power of 2.
uint32_t log2_of(uint64_t value);

// Calls in one replayed graph whose buffers rotate through `sets`: at least `at_least`, and whole
// rounds, so that the next replay does not begin with the buffer that the last one ended near.
uint32_t whole_rounds(uint32_t sets, uint32_t at_least);

// Host memory that may be taken: MemAvailable, or less where a cgroup says so. `meminfo`,
// `cgroup_max` and `cgroup_current` are the contents of those files, empty if there is none.
uint64_t host_free_bytes(const std::string& meminfo, const std::string& cgroup_max,
                         const std::string& cgroup_current);

// How two works ran beside each other. `ends_us`: when the launches of the one in the background
// ended, the first entry being when they began; the other ran from `begin_us` to `end_us`.
struct Overlap {
    double covered = 0;  // share of that window in which the background was at work
    double pace = 0;     // of the background in the covered part, 1: as fast as alone
};
Overlap overlap_of(const std::vector<double>& ends_us, double begin_us, double end_us,
                   double alone_us);

enum class Order : uint8_t { sorted, random };

// `count` different indices below 2^universe_log2, the same for the same seed.
std::vector<uint32_t> make_indices(uint32_t count, uint32_t universe_log2, Order order,
                                   uint32_t seed);

// Lower bound of one layer, in microseconds. Rates in bytes per microsecond. `hidden_us` is how
// long a fetch may run without being waited for.
struct StepBound {
    double label_bytes = 0;
    double weight_bytes = 0;
    double row_bytes = 0;    // read by attention
    double miss_bytes = 0;   // over the link
    double hbm_rate = 0;
    double link_rate = 0;
    double hidden_us = 0;
};
double layer_bound_us(const StepBound& bound);

}  // namespace shoal::gpu
