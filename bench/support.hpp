// What plain benches share: threads, memory as the runtime has it, the read limit, medians.
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>

#include <hwy/targets.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/convert.hpp"

namespace shoal::bench {

inline double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Processor time of the process.
inline double cpu_s() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

inline double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0.0 : values[values.size() / 2];
}

// Threads that spin between calls and take equal, consecutive shares of the indices.
class BenchThreads {
public:
    explicit BenchThreads(uint32_t thread_count) : thread_count_(thread_count) {
        for (uint32_t w = 1; w < thread_count; ++w) threads_.emplace_back([this, w] { loop(w); });
    }
    ~BenchThreads() {
        body_ = nullptr;
        generation_.fetch_add(1);
        for (std::thread& thread : threads_) thread.join();
    }
    BenchThreads(const BenchThreads&) = delete;
    BenchThreads& operator=(const BenchThreads&) = delete;
    Executor executor() { return {this, &run, &count_of}; }
    uint32_t thread_count() const { return thread_count_; }

    // Runs fn(index, worker) for every index in [0, count).
    template <typename F>
    void run_each(uint32_t count, const F& fn) {
        run(this, count,
            [](void* context, uint32_t index, uint32_t worker) {
                (*static_cast<const F*>(context))(index, worker);
            },
            const_cast<F*>(&fn));
    }

private:
    static uint32_t count_of(const void* self) {
        return static_cast<const BenchThreads*>(self)->thread_count_;
    }
    static void run(void* self, uint32_t count, Executor::Body body, void* context) {
        auto* threads = static_cast<BenchThreads*>(self);
        threads->body_ = body;
        threads->context_ = context;
        threads->count_ = count;
        threads->pending_.store(threads->thread_count_ - 1);
        threads->generation_.fetch_add(1);
        threads->share(0);
        while (threads->pending_.load() != 0) spin();
    }
    static void spin() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void share(uint32_t worker) {
        const uint64_t count = count_;
        for (uint64_t i = count * worker / thread_count_; i < count * (worker + 1) / thread_count_;
             ++i) {
            body_(context_, static_cast<uint32_t>(i), worker);
        }
    }
    void loop(uint32_t worker) {
        for (uint32_t seen = 0;;) {
            while (generation_.load() == seen) spin();
            ++seen;
            if (body_ == nullptr) return;
            share(worker);
            pending_.fetch_sub(1);
        }
    }

    uint32_t thread_count_;
    std::vector<std::thread> threads_;
    std::atomic<uint32_t> generation_{0};
    std::atomic<uint32_t> pending_{0};
    Executor::Body body_ = nullptr;
    void* context_ = nullptr;
    uint32_t count_ = 0;
};

// Zeroed memory with huge pages advised, touched once.
class HugeBuffer {
public:
    explicit HugeBuffer(size_t bytes) : bytes_((bytes + kHuge - 1) / kHuge * kHuge) {
        map_ = mmap(nullptr, bytes_ + kHuge, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map_ == MAP_FAILED) {
            std::fprintf(stderr, "bench: cannot map %zu bytes\n", bytes_);
            std::exit(1);
        }
        const auto at = reinterpret_cast<uintptr_t>(map_);
        data_ = static_cast<std::byte*>(map_) + ((kHuge - at % kHuge) % kHuge);
        madvise(data_, bytes_, MADV_HUGEPAGE);
        std::memset(data_, 0, bytes_);
    }
    ~HugeBuffer() { munmap(map_, bytes_ + kHuge); }
    HugeBuffer(const HugeBuffer&) = delete;
    HugeBuffer& operator=(const HugeBuffer&) = delete;
    std::byte* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    static constexpr size_t kHuge = size_t{2} << 20;
    size_t bytes_;
    void* map_ = nullptr;
    std::byte* data_ = nullptr;
};

// One sequential read of `bytes` (a multiple of 256) at `data`.
inline uint64_t read_all(const std::byte* data, size_t bytes) {
    uint64_t sums[16] = {};
    const auto* words = reinterpret_cast<const uint64_t*>(data);
    for (size_t i = 0; i < bytes / 8; i += 32) {
        for (size_t line = 0; line < 4; ++line) {
            __builtin_prefetch(words + i + 8 * line + 512);
        }
        for (size_t j = 0; j < 16; ++j) sums[j] += words[i + j] + words[i + 16 + j];
    }
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}

// Seconds that all threads take to read the buffer once.
inline double time_read(BenchThreads& threads, const HugeBuffer& buffer) {
    static std::atomic<uint64_t> sink{0};
    constexpr size_t kChunk = size_t{1} << 20;
    const double start = now_s();
    threads.run_each(static_cast<uint32_t>(buffer.bytes() / kChunk), [&](uint32_t i, uint32_t) {
        sink += read_all(buffer.data() + i * kChunk, kChunk);
    });
    return now_s() - start;
}

// Rows as the runtime lays them out: K and V of a head beside each other, a token's heads together,
// pieces of whole cache-line pairs.
inline kernels::PieceFormat piece_format(uint32_t kv_heads, uint32_t head_dim, DType dtype) {
    kernels::PieceFormat format;
    format.k_dtype = dtype;
    format.v_dtype = dtype;
    format.kv_head_count = kv_heads;
    format.k_head_dim = head_dim;
    format.v_head_dim = head_dim;
    format.v_offset_bytes = head_dim * kernels::element_bytes(dtype);
    format.row_stride_bytes = 2 * format.v_offset_bytes;
    format.piece_stride_bytes = (kv_heads * format.row_stride_bytes + 127) / 128 * 128;
    return format;
}

// Instruction sets to measure: the one named, or the best one and AVX2.
inline std::vector<int64_t> bench_targets(const std::string& name) {
    std::vector<int64_t> targets;
    for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
        const int64_t target = rest & -rest;
        const bool wanted = name.empty() ? targets.empty() || target == HWY_AVX2
                                         : name == hwy::TargetName(target);
        if (wanted) targets.push_back(target);
    }
    return targets;
}

struct BenchArgs {
    bool quick = false;
    std::string target;                    // Highway's name, e.g. AVX2
    std::vector<uint32_t> threads = {1, 2};
    uint32_t rounds = 9;
};

inline BenchArgs parse_args(int argc, char** argv) {
    BenchArgs args;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
        if (arg == "--quick") {
            args.quick = true;
            args.rounds = 3;
        } else if (arg == "--target") {
            args.target = value();
        } else if (arg == "--threads") {
            args.threads = {static_cast<uint32_t>(std::max(1, std::atoi(value().c_str())))};
        } else if (arg == "--rounds") {
            args.rounds = static_cast<uint32_t>(std::max(1, std::atoi(value().c_str())));
        } else {
            std::fprintf(stderr, "usage: %s [--quick] [--target AVX2] [--threads N] [--rounds N]\n",
                         argv[0]);
            std::exit(2);
        }
    }
    return args;
}

}  // namespace shoal::bench
