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

struct Memory {
    uint64_t device_free_bytes = 0;
    uint64_t host_free_bytes = 0;
    uint64_t l2_bytes = 0;
};

struct Plan {
    uint64_t pinned_bytes = 0;        // region that gathers read from; a power of 2
    uint64_t register_bytes = 0;      // pinned and unpinned to measure how long it takes
    uint64_t stream_bytes = 0;        // device buffer read or copied as one stream
    uint64_t dma_bytes_max = 0;       // the largest DMA piece
    uint64_t dma_sample_bytes = 0;    // moved between two events
    uint64_t gather_sample_bytes = 0;
    uint64_t cold_bytes = 0;          // buffers are rotated until this much lies between two uses
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
Plan make_plan(const Memory& memory, bool small, uint32_t span_bytes,
               std::vector<std::string>& notes);

// What a step of `tokens` takes on the device, weights apart.
uint64_t step_bytes(const Plan& plan, uint32_t tokens, uint32_t span_bytes);

// Slots of a request in the hot rows that attention is timed on, a power of 2: between two reads of
// a slot lie at least cold_bytes of others, whatever the number of rows a call selects.
uint32_t attend_slots(const Plan& plan, uint32_t batch);

// Calls in one replayed graph whose buffers rotate through `sets`: at least `at_least`, and whole
// rounds, so that the next replay does not begin with the buffer that the last one ended near.
uint32_t whole_rounds(uint32_t sets, uint32_t at_least);

// Host memory that may be taken: MemAvailable, or less where a cgroup says so. `meminfo`,
// `cgroup_max` and `cgroup_current` are the contents of those files, empty if there is none.
uint64_t host_free_bytes(const std::string& meminfo, const std::string& cgroup_max,
                         const std::string& cgroup_current);

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
