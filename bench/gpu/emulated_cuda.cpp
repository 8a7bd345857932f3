#include "bench/gpu/emulated_cuda.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace shoal::gpu {

namespace emulator {

struct Stream {
    int priority;
};
struct Event {
    double us = -1;
};
struct Work {
    std::vector<std::function<void()>> calls;
};

}  // namespace emulator

namespace {

using Call = std::function<void()>;
constexpr uintptr_t kPage = 4096;

// The device: a thread that does what is in the queue.
class Device {
public:
    Device() : thread_([this] { run(); }) {}
    ~Device() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void submit(Call call) {
        {
            const std::lock_guard lock(mutex_);
            queue_.push_back(std::move(call));
        }
        changed_.notify_all();
    }
    // Until the queue is empty. The first error since the last wait.
    cudaError_t wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return queue_.empty(); });
        if (error_.empty()) return cudaSuccess;
        what_ = std::exchange(error_, "");
        return cudaErrorLaunchFailure;
    }
    const char* what() const { return what_.c_str(); }

private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return ends_ || !queue_.empty(); });
            if (queue_.empty()) return;
            // It stays in the queue while it runs: empty means done.
            const Call call = queue_.front();
            const bool works = error_.empty();  // after a fault nothing runs
            lock.unlock();
            std::string error;
            try {
                if (works) call();
            } catch (const std::exception& fault) {
                error = fault.what();
            }
            lock.lock();
            if (!error.empty()) error_ = error;
            queue_.pop_front();
            if (queue_.empty()) changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Call> queue_;
    std::string error_;
    std::string what_;
    bool ends_ = false;
    std::thread thread_;
};

Device& device() {
    static Device one;
    return one;
}

// Of the one thread that calls the runtime.
emulator::Work* capture = nullptr;
std::mutex registered_mutex;
std::map<uintptr_t, uintptr_t> registered;  // begin -> end

double now_us() {
    return std::chrono::duration<double, std::micro>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

cudaError_t allocate(void** at, size_t bytes) {
    *at = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (*at == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*at, 0xa5, bytes);  // garbage, as on a device
    return cudaSuccess;
}

}  // namespace

namespace emulator {

void submit(std::function<void()> work) {
    if (capture != nullptr) {
        capture->calls.push_back(std::move(work));
    } else {
        device().submit(std::move(work));
    }
}

}  // namespace emulator

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    }
    return "";
}
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorLaunchFailure ? device().what() : "emulated";
}

cudaError_t cudaMalloc(void** at, size_t bytes) { return allocate(at, bytes); }
cudaError_t cudaFree(void* at) {
    const cudaError_t error = device().wait();
    std::free(at);
    return error;
}
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) { return allocate(at, bytes); }
cudaError_t cudaFreeHost(void* at) { return cudaFree(at); }
cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* host, unsigned) {
    *device_pointer = host;
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void* at, size_t bytes, unsigned) {
    const auto begin = reinterpret_cast<uintptr_t>(at);
    const uintptr_t end = begin + bytes;
    if (begin % kPage != 0 || bytes == 0) return cudaErrorInvalidValue;
    const std::lock_guard lock(registered_mutex);
    for (const auto& [other_begin, other_end] : registered) {
        if (begin < other_end && other_begin < end) return cudaErrorInvalidValue;
    }
    registered[begin] = end;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* at) {
    const cudaError_t error = device().wait();
    const std::lock_guard lock(registered_mutex);
    if (registered.erase(reinterpret_cast<uintptr_t>(at)) == 0) return cudaErrorInvalidValue;
    return error;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    const cudaError_t error = device().wait();
    if (error == cudaSuccess) std::memcpy(to, from, bytes);
    return error;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    emulator::submit([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                 size_t count, cudaMemcpyAttributes*, size_t*, size_t,
                                 cudaStream_t stream) {
    if (capture != nullptr) return cudaErrorInvalidValue;
    for (size_t i = 0; i < count; ++i) {
        cudaMemcpyAsync(to[i], from[i], bytes[i], cudaMemcpyHostToDevice, stream);
    }
    return cudaSuccess;
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) {
    const cudaError_t error = device().wait();
    if (error == cudaSuccess) std::memset(at, value, bytes);
    return error;
}

cudaError_t cudaDeviceSynchronize() { return device().wait(); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
    *stream = new emulator::Stream{priority};
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return capture != nullptr ? cudaErrorInvalidValue : device().wait();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new emulator::Event;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const cudaError_t error = device().wait();
    delete event;
    return error;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    // A captured record is an edge of the graph and no work.
    if (capture == nullptr) emulator::submit([event] { event->us = now_us(); });
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return device().wait(); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
    const cudaError_t error = device().wait();
    if (begin->us < 0 || end->us < 0) return cudaErrorInvalidValue;
    *ms = static_cast<float>((end->us - begin->us) / 1000);
    return error;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    if (capture != nullptr) return cudaErrorInvalidValue;
    capture = new emulator::Work;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = std::exchange(capture, nullptr);
    return *graph != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned) {
    *exec = new emulator::Work(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (const Call& call : exec->calls) emulator::submit(call);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    const cudaError_t error = device().wait();
    delete exec;
    return error;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*call)(void*), void* data) {
    emulator::submit([=] { call(data); });
    return cudaSuccess;
}

}  // namespace shoal::gpu
