// Host memory that the device reads and writes: mapped as the host arena is, in huge pages,
// touched and registered by several threads. Beside it the driver's own (PinnedArray).
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "bench/gpu/cuda.cuh"

namespace shoal::gpu {

inline constexpr uint64_t kHugePage = uint64_t{2} << 20;
// Of memory that is copied from or gathered: no copy may cross the edge of two chunks.
inline constexpr uint64_t kRegisterChunk = uint64_t{256} << 20;

// Runs fn(thread) on `count` threads.
template <typename Fn>
void on_threads(uint32_t count, const Fn& fn) {
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < count; ++t) threads.emplace_back([&fn, t] { fn(t); });
    fn(0);
    for (std::thread& thread : threads) thread.join();
}

// mmap, huge pages advised; `threads` threads touch it, then register chunk after chunk, each
// thread the next one that nobody has taken.
class RegisteredMap {
public:
    RegisteredMap(uint64_t bytes, uint64_t chunk, uint32_t threads)
        : bytes_(bytes), chunk_(std::min(chunk, bytes)) {
        map_ = mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map_ == MAP_FAILED) {
            throw std::runtime_error("mmap of " + bytes_text(bytes) + " failed");
        }
        held_pinned.add(bytes_);
        const auto at = reinterpret_cast<uintptr_t>(map_);
        data_ = static_cast<std::byte*>(map_) + (kHugePage - at % kHugePage) % kHugePage;
        madvise(data_, bytes_, MADV_HUGEPAGE);
        const double begin = now_s();
        touch(threads);
        touch_s_ = now_s() - begin;
        try {
            register_chunks(threads);
            register_s_ = now_s() - begin - touch_s_;
            find_device_data();
        } catch (...) {
            release();
            throw;
        }
    }
    ~RegisteredMap() { release(); }
    RegisteredMap(const RegisteredMap&) = delete;
    RegisteredMap& operator=(const RegisteredMap&) = delete;
    std::byte* data() const { return data_; }
    // The same memory as the device sees it.
    std::byte* device_data() const { return device_data_; }
    double touch_s() const { return touch_s_; }
    double register_s() const { return register_s_; }

private:
    void touch(uint32_t threads) {
        on_threads(threads, [&](uint32_t t) {
            const uint64_t first = bytes_ * t / threads / kHugePage * kHugePage;
            const uint64_t last = t + 1 == threads
                                      ? bytes_
                                      : bytes_ * (t + 1) / threads / kHugePage * kHugePage;
            for (uint64_t i = first; i < last; i += 4096) data_[i] = std::byte{1};
        });
    }
    void register_chunks(uint32_t threads) {
        std::atomic<uint64_t> next{0};
        std::mutex mutex;
        cudaError_t error = cudaSuccess;
        on_threads(threads, [&](uint32_t) {
            for (uint64_t at = next.fetch_add(chunk_); at < bytes_; at = next.fetch_add(chunk_)) {
                const cudaError_t status =
                    cudaHostRegister(data_ + at, std::min(chunk_, bytes_ - at),
                                     cudaHostRegisterMapped | cudaHostRegisterPortable);
                const std::lock_guard lock(mutex);
                if (status == cudaSuccess) {
                    registered_.push_back(at);
                } else {
                    error = status;
                }
            }
        });
        SHOAL_CUDA(error);
    }
    void find_device_data() {
        for (uint64_t at = 0; at < bytes_; at += chunk_) {
            void* pointer = nullptr;
            SHOAL_CUDA(cudaHostGetDevicePointer(&pointer, data_ + at, 0));
            auto* device = static_cast<std::byte*>(pointer);
            if (at == 0) device_data_ = device;
            if (device != device_data_ + at) {
                throw std::runtime_error("registered chunks are not contiguous on the device");
            }
        }
    }
    void release() {
        for (const uint64_t at : registered_) cudaHostUnregister(data_ + at);
        munmap(map_, bytes_ + kHugePage);
        held_pinned.remove(bytes_);
    }

    uint64_t bytes_;
    uint64_t chunk_;
    void* map_ = nullptr;
    std::byte* data_ = nullptr;
    std::byte* device_data_ = nullptr;
    std::vector<uint64_t> registered_;  // where chunks begin
    double touch_s_ = 0;
    double register_s_ = 0;
};

}  // namespace shoal::gpu
