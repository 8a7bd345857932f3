// What the machine can do at most, measured in the same run as the kernel that is compared with
// it. A sample takes some 10 ms: take one next to every sample of the kernel and report the median
// of the ratios, because the machine changes from second to second.
//
//   LimitProbe limits(executor);
//   for (...) ratios.push_back(kernel_gb_per_s() / limits.read_gb_per_s());
//   report(median_of(ratios));
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "offload/arena.hpp"
#include "offload/executor.hpp"

namespace shoal::bench {

// Multiply-add instructions whose peak is a limit of compute-bound kernels.
enum class Fma : uint8_t { f32_avx2, f32_avx512, bf16_avx512 };

inline const char* fma_name(Fma fma) {
    switch (fma) {
        case Fma::f32_avx2: return "f32 AVX2";
        case Fma::f32_avx512: return "f32 AVX-512";
        case Fma::bf16_avx512: return "bf16 dot AVX-512";
    }
    return "unknown";
}

namespace detail {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

inline uint64_t read_words(const std::byte* data, size_t bytes) {
    const auto* words = reinterpret_cast<const uint64_t*>(data);
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / sizeof *words; ++i) sum ^= words[i];
    return sum;
}

#if defined(__x86_64__)
// With or without software prefetch, `kAhead` bytes early. Which is faster depends on the
// processor: 37 to 45 GB/s with it on a Zen 5 server, 16.7 to 15.3 on a Sapphire Rapids one.
template <size_t kAhead>
__attribute__((target("avx512f"))) inline uint64_t read_avx512(const std::byte* data,
                                                               size_t bytes) {
    __m512i sums[8] = {};
    for (size_t at = 0; at < bytes; at += sizeof sums) {
        for (size_t i = 0; i < 8; ++i) {
            const std::byte* line = data + at + 64 * i;
            if constexpr (kAhead > 0) __builtin_prefetch(line + kAhead);
            sums[i] = _mm512_xor_si512(sums[i], _mm512_load_si512(line));
        }
    }
    for (size_t i = 1; i < 8; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, sums[0]);
    return words[0];
}

template <size_t kAhead>
__attribute__((target("avx2"))) inline uint64_t read_avx2(const std::byte* data, size_t bytes) {
    __m256i sums[8] = {};
    for (size_t at = 0; at < bytes; at += sizeof sums) {
        for (size_t i = 0; i < 8; ++i) {
            const std::byte* from = data + at + 32 * i;
            if constexpr (kAhead > 0) {
                if (i % 2 == 0) __builtin_prefetch(from + kAhead);
            }
            const __m256i value = _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
            sums[i] = _mm256_xor_si256(sums[i], value);
        }
    }
    for (size_t i = 1; i < 8; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
    return static_cast<uint64_t>(_mm256_extract_epi64(sums[0], 0));
}

// Twelve chains hide a latency of 4 at two instructions a cycle, and fit AVX2's registers. They
// start from different values, or a compiler makes one of them.
constexpr size_t kChains = 12;

__attribute__((target("avx2,fma"))) inline float fma_avx2(uint64_t rounds) {
    __m256 sums[kChains];
    for (size_t i = 0; i < kChains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
    const __m256 a = _mm256_set1_ps(0.5F);
    for (uint64_t round = 0; round < rounds; ++round) {
        for (size_t i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(sums[i], a, a);
    }
    for (size_t i = 1; i < kChains; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
    return _mm256_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) inline float fma_avx512(uint64_t rounds) {
    __m512 sums[kChains];
    for (size_t i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
    const __m512 a = _mm512_set1_ps(0.5F);
    for (uint64_t round = 0; round < rounds; ++round) {
        for (size_t i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(sums[i], a, a);
    }
    for (size_t i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f,avx512bf16"))) inline float dot_bf16(uint64_t rounds) {
    __m512 sums[kChains];
    for (size_t i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
    const auto pairs = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3F00));  // 0.5
    for (uint64_t round = 0; round < rounds; ++round) {
        for (size_t i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], pairs, pairs);
    }
    for (size_t i = 1; i < kChains; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_cvtss_f32(sums[0]);
}

using Reader = uint64_t (*)(const std::byte* data, size_t bytes);

inline std::vector<Reader> readers() {
    constexpr size_t kAhead = 8192;
    if (__builtin_cpu_supports("avx512f")) return {read_avx512<0>, read_avx512<kAhead>};
    if (__builtin_cpu_supports("avx2")) return {read_avx2<0>, read_avx2<kAhead>};
    return {read_words};
}

inline bool has(Fma fma) {
    switch (fma) {
        case Fma::f32_avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        case Fma::f32_avx512: return __builtin_cpu_supports("avx512f");
        case Fma::bf16_avx512: return __builtin_cpu_supports("avx512bf16");
    }
    return false;
}

// Returns the floating-point operations done.
inline double run_fma(Fma fma, uint64_t rounds, float& sink) {
    const double steps = static_cast<double>(rounds * kChains);
    switch (fma) {
        case Fma::f32_avx2: sink += fma_avx2(rounds); return steps * 8 * 2;
        case Fma::f32_avx512: sink += fma_avx512(rounds); return steps * 16 * 2;
        case Fma::bf16_avx512: sink += dot_bf16(rounds); return steps * 32 * 2;
    }
    return 0;
}
#else
using Reader = uint64_t (*)(const std::byte* data, size_t bytes);

inline std::vector<Reader> readers() { return {read_words}; }
inline bool has(Fma) { return false; }
inline double run_fma(Fma, uint64_t, float&) { return 0; }
#endif

}  // namespace detail

// Samples of what the threads of one executor reach. Holds 1 GiB of huge pages, more than the last
// cache of a server gives to one tenant; each sample reads the next part of it.
class LimitProbe {
public:
    // `executor` must outlive the probe; empty: the calling thread alone.
    explicit LimitProbe(const Executor& executor)
        : executor_(executor), region_(std::move(*arena_.region(offload::MemoryTag::workspace,
                                                                kBufferBytes))) {
        SHOAL_ASSERT(region_.touch_all(&executor_).is_ok());
        for (size_t at = 0; at < kBufferBytes; at += offload::kPageBytes) {
            region_.data()[at] = std::byte{1};
        }
        double best = 0;
        for (int attempt = 0; attempt < 5; ++attempt) {
            for (const detail::Reader candidate : detail::readers()) {
                const double rate = read_with(candidate);
                if (rate > best) reader_ = candidate;
                best = std::max(best, rate);
            }
        }
    }

    // Sequential reads of 192 MiB, in parts of 2 MiB, in the fastest way found.
    double read_gb_per_s() { return read_with(reader_); }

    // Peak of one instruction on all threads, about 5 ms. 0 where the processor lacks it.
    double gflop_per_s(Fma fma) {
        if (!detail::has(fma)) return 0;
        constexpr uint64_t kRounds = 20000;
        const uint32_t parts = 24 * offload::thread_count_of(executor_);
        std::vector<double> done(parts);
        const auto begin = detail::Clock::now();
        offload::run_on(executor_, parts, [&](uint32_t index, uint32_t) {
            float sink = 0;
            done[index] = detail::run_fma(fma, kRounds, sink);
            sink_ = sink_ + static_cast<uint64_t>(sink != 0);
        });
        const double seconds = detail::seconds_since(begin);
        double sum = 0;
        for (const double operations : done) sum += operations;
        return sum / seconds * 1e-9;
    }

private:
    double read_with(detail::Reader reader) {
        constexpr uint32_t kParts = 96;
        const auto begin = detail::Clock::now();
        offload::run_on(executor_, kParts, [&](uint32_t index, uint32_t) {
            const size_t part = (next_part_ + index) % (kBufferBytes / kPartBytes);
            sink_ = sink_ + reader(region_.data() + part * kPartBytes, kPartBytes);
        });
        next_part_ += kParts;
        return static_cast<double>(kParts * kPartBytes) / detail::seconds_since(begin) * 1e-9;
    }

    static constexpr size_t kBufferBytes = size_t{1} << 30;
    static constexpr size_t kPartBytes = offload::kHugePageBytes;

    Executor executor_;
    offload::Budget budget_{"bench", kBufferBytes};
    offload::Arena arena_ = offload::Arena::real(budget_, offload::HugePages::advise);
    offload::Region region_;
    size_t next_part_ = 0;
    detail::Reader reader_ = nullptr;
    std::atomic<uint64_t> sink_{0};  // keeps the work from being optimised away
};

inline double median_of(std::vector<double> values) {
    if (values.empty()) return 0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

}  // namespace shoal::bench
