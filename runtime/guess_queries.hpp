// Queries that layers are likely to ask next: what the engine hinted, or what they asked last.
#pragma once

#include <cstdint>
#include <vector>

#include "shoal/config.hpp"
#include "shoal/types.hpp"

namespace shoal {

// Of the first queries of each store alone: a place per store and query.
class GuessQueries {
public:
    GuessQueries() = default;
    GuessQueries(const ModelShape& shape, uint32_t place_count);

    // Floats of the memory that use() takes: a query of every layer and place, and one hint.
    static uint64_t float_count(const ModelShape& shape, uint32_t place_count);
    void use(float* memory) { memory_ = memory; }

    // q: [n, q_head_count, k_head_dim of the layer]; row `row` of it belongs to `place`.
    void remember(uint32_t layer, uint32_t place, const ConstTensor& q, uint32_t row);
    void hint(uint32_t layer, uint32_t place, const ConstTensor& q, uint32_t row);
    void forget_hint() { hinted_layer_ = UINT32_MAX; }
    void forget();
    // What a query knows of its own: [q_head_count, k_head_dim of the layer], or null.
    const float* last(uint32_t layer, uint32_t place) const;
    const float* hinted(uint32_t layer, uint32_t place) const;

private:
    size_t index(uint32_t layer, uint32_t place) const {
        return size_t{layer} * place_count_ + place;
    }
    float* at(uint32_t layer, uint32_t place) const {
        return memory_ + index(layer, place) * query_floats_;
    }

    uint32_t layer_count_ = 0;
    uint32_t place_count_ = 0;
    size_t query_floats_ = 0;
    float* memory_ = nullptr;        // [layer_count + 1, place_count, query_floats]
    std::vector<uint8_t> known_;     // likewise
    uint32_t hinted_layer_ = UINT32_MAX;
};

}  // namespace shoal
