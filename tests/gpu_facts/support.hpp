// Runs device code of bench/gpu on the CPU.
#pragma once

#include <functional>

#include "bench/gpu/emulator.hpp"

namespace shoal::gpu::test {

// Orders in which threads and blocks run: forwards, backwards, shuffled.
inline constexpr uint32_t kSeeds = 4;

inline void launch(uint32_t grid_x, uint32_t grid_y, uint32_t threads, uint32_t seed,
                   const std::function<void()>& body) {
    emulator::launch({grid_x, grid_y, threads, seed}, body);
}

}  // namespace shoal::gpu::test
