// CUB's answers to the best k of n: all of them sorted, or all of at least a known threshold.
#pragma once

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_select.cuh>
#include <thrust/iterator/counting_iterator.h>
#else
#include <algorithm>
#include <numeric>
#endif

#include "bench/gpu/cuda.cuh"

namespace shoal::gpu {

// As CUB's calls: without a workspace they only say how many bytes of it they need.
struct CubCall {
    const float* scores;
    float* sorted_scores;
    uint32_t* slots;         // 0, 1, 2, ...
    uint32_t* sorted_slots;
    uint32_t* out;           // the first k of sorted_slots, ascending
    uint32_t* count;         // of cub_select_if()
    uint32_t n;
    uint32_t k;
    float threshold;
};

#ifdef __CUDACC__

struct AtLeast {
    const float* scores;
    float floor;
    __device__ bool operator()(uint32_t slot) const { return scores[slot] >= floor; }
};

inline cudaError_t cub_sort_scores(const CubCall& s, void* workspace, size_t& bytes,
                                   cudaStream_t stream) {
    return cub::DeviceRadixSort::SortPairsDescending(workspace, bytes, s.scores, s.sorted_scores,
                                                     s.slots, s.sorted_slots,
                                                     static_cast<int>(s.n), 0, 32, stream);
}
inline cudaError_t cub_sort_slots(const CubCall& s, void* workspace, size_t& bytes,
                                  cudaStream_t stream) {
    return cub::DeviceRadixSort::SortKeys(workspace, bytes, s.sorted_slots, s.out,
                                          static_cast<int>(s.k), 0, 32, stream);
}
inline cudaError_t cub_select_if(const CubCall& s, void* workspace, size_t& bytes,
                                 cudaStream_t stream) {
    return cub::DeviceSelect::If(workspace, bytes, thrust::counting_iterator<uint32_t>(0), s.out,
                                 s.count, static_cast<int>(s.n), AtLeast{s.scores, s.threshold},
                                 stream);
}

#else  // what they do, for the emulator

inline cudaError_t cub_call(void* workspace, size_t& bytes, std::function<void()> call) {
    if (workspace == nullptr) {
        bytes = 1024;
    } else {
        emulator::submit(std::move(call));
    }
    return cudaSuccess;
}
inline cudaError_t cub_sort_scores(const CubCall& s, void* workspace, size_t& bytes,
                                   cudaStream_t) {
    return cub_call(workspace, bytes, [s] {
        std::copy_n(s.slots, s.n, s.sorted_slots);
        std::stable_sort(s.sorted_slots, s.sorted_slots + s.n,
                         [&](uint32_t a, uint32_t b) { return s.scores[a] > s.scores[b]; });
    });
}
inline cudaError_t cub_sort_slots(const CubCall& s, void* workspace, size_t& bytes,
                                  cudaStream_t) {
    return cub_call(workspace, bytes, [s] {
        std::copy_n(s.sorted_slots, s.k, s.out);
        std::sort(s.out, s.out + s.k);
    });
}
inline cudaError_t cub_select_if(const CubCall& s, void* workspace, size_t& bytes,
                                 cudaStream_t) {
    return cub_call(workspace, bytes, [s] {
        *s.count = 0;
        for (uint32_t i = 0; i < s.n; ++i) {
            if (s.scores[i] >= s.threshold) s.out[(*s.count)++] = i;
        }
    });
}

#endif

// Workspaces of CUB for one row of n scores.
class CubSelect {
public:
    CubSelect(const float* scores, uint32_t n, uint32_t k, float threshold)
        : sorted_scores_(n), slots_(numbers(n)), sorted_slots_(n), out(n), count(1),
          call_{scores,     sorted_scores_.data(), slots_.data(), sorted_slots_.data(),
                out.data(), count.data(),          n,             k,
                threshold} {
        const Stream stream;
        size_t bytes[3] = {};
        SHOAL_CUDA(cub_sort_scores(call_, nullptr, bytes[0], stream));
        SHOAL_CUDA(cub_sort_slots(call_, nullptr, bytes[1], stream));
        SHOAL_CUDA(cub_select_if(call_, nullptr, bytes[2], stream));
        workspace_ = DeviceArray<std::byte>(std::max({bytes[0], bytes[1], bytes[2]}));
    }
    // All n sorted, then the best k by slot. Stable: ties to the lowest slot.
    void enqueue_sort(cudaStream_t stream) {
        size_t bytes = workspace_.bytes();
        SHOAL_CUDA(cub_sort_scores(call_, workspace_.data(), bytes, stream));
        bytes = workspace_.bytes();
        SHOAL_CUDA(cub_sort_slots(call_, workspace_.data(), bytes, stream));
    }
    // Everything of at least a threshold that is known beforehand: a bound, not a selection.
    void enqueue_select_if(cudaStream_t stream) {
        size_t bytes = workspace_.bytes();
        SHOAL_CUDA(cub_select_if(call_, workspace_.data(), bytes, stream));
    }

private:
    static std::vector<uint32_t> numbers(uint32_t n) {
        std::vector<uint32_t> all(n);
        for (uint32_t i = 0; i < n; ++i) all[i] = i;
        return all;
    }
    DeviceArray<float> sorted_scores_;
    DeviceArray<uint32_t> slots_;
    DeviceArray<uint32_t> sorted_slots_;
    DeviceArray<std::byte> workspace_;

public:
    DeviceArray<uint32_t> out;
    DeviceArray<uint32_t> count;

private:
    CubCall call_;
};

}  // namespace shoal::gpu
