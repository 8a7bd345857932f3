#include "runtime/guess_queries.hpp"

#include <algorithm>
#include <cstring>

namespace shoal {

namespace {

size_t query_floats(const ModelShape& shape) {
    size_t dim = 0;
    for (const LayerShape& layer : shape.layers) dim = std::max<size_t>(dim, layer.k_head_dim);
    return dim * shape.q_head_count;
}

void copy_row(const ConstTensor& q, uint32_t row, float* to) {
    const std::byte* from = q.data + row * q.n_stride_bytes;
    for (uint32_t head = 0; head < q.heads; ++head, to += q.head_dim) {
        std::memcpy(to, from + head * q.head_stride_bytes, q.head_dim * sizeof(float));
    }
}

}  // namespace

GuessQueries::GuessQueries(const ModelShape& shape, uint32_t place_count)
    : layer_count_(static_cast<uint32_t>(shape.layers.size())),
      place_count_(place_count),
      query_floats_(query_floats(shape)),
      known_((shape.layers.size() + 1) * place_count) {}

uint64_t GuessQueries::float_count(const ModelShape& shape, uint32_t place_count) {
    return (shape.layers.size() + 1) * place_count * query_floats(shape);
}

void GuessQueries::remember(uint32_t layer, uint32_t place, const ConstTensor& q, uint32_t row) {
    copy_row(q, row, at(layer, place));
    known_[index(layer, place)] = 1;
}

void GuessQueries::hint(uint32_t layer, uint32_t place, const ConstTensor& q, uint32_t row) {
    if (hinted_layer_ != layer) {
        std::fill(known_.end() - place_count_, known_.end(), uint8_t{0});
    }
    hinted_layer_ = layer;
    copy_row(q, row, at(layer_count_, place));
    known_[index(layer_count_, place)] = 1;
}

void GuessQueries::forget() {
    forget_hint();
    std::fill(known_.begin(), known_.end(), uint8_t{0});
}

const float* GuessQueries::last(uint32_t layer, uint32_t place) const {
    return known_[index(layer, place)] != 0 ? at(layer, place) : nullptr;
}

const float* GuessQueries::hinted(uint32_t layer, uint32_t place) const {
    if (hinted_layer_ != layer || known_[index(layer_count_, place)] == 0) return nullptr;
    return at(layer_count_, place);
}

}  // namespace shoal
