// Checked CUDA calls, owners of what they return, and how a figure is measured.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "bench/gpu/emulated_cuda.hpp"
#endif

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bench/gpu/plan.hpp"
#include "bench/gpu/report.hpp"

namespace shoal::gpu {

inline void check_cuda(cudaError_t error, const char* call, const char* file, int line) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + call + ": " +
                             cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}
#define SHOAL_CUDA(call) ::shoal::gpu::check_cuda((call), #call, __FILE__, __LINE__)

struct Shape {
    dim3 grid;
    uint32_t threads;
    uint32_t shared_bytes = 0;  // dynamic
};
// The one place where kernels are launched: by CUDA, or by the emulator.
template <typename... Parameters, typename... Arguments>
void launch(cudaStream_t stream, const Shape& shape, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
#ifdef __CUDACC__
    kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream>>>(
        static_cast<Parameters>(arguments)...);
    SHOAL_CUDA(cudaGetLastError());
#else
    (void)stream;
    static uint32_t launches = 0;
    const emulator::Launch how = {shape.grid.x, shape.grid.y, shape.threads, launches++ % 4};
    emulator::submit([=] {
        emulator::launch(how, [&] { kernel(static_cast<Parameters>(arguments)...); });
    });
#endif
}

inline double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

enum class Priority : uint8_t { normal, high };

class Stream {
public:
    explicit Stream(Priority priority = Priority::normal) {
        int least = 0;
        int greatest = 0;
        SHOAL_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
        SHOAL_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                                priority == Priority::high ? greatest : least));
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }
    void wait_idle() const { SHOAL_CUDA(cudaStreamSynchronize(stream_)); }

private:
    cudaStream_t stream_ = nullptr;
};

class Event {
public:
    enum class Timing : uint8_t { on, off };
    explicit Event(Timing timing = Timing::on) {
        SHOAL_CUDA(cudaEventCreateWithFlags(
            &event_, timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming));
    }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(cudaStream_t stream) const { SHOAL_CUDA(cudaEventRecord(event_, stream)); }
    void hold(cudaStream_t stream) const { SHOAL_CUDA(cudaStreamWaitEvent(stream, event_, 0)); }
    void wait() const { SHOAL_CUDA(cudaEventSynchronize(event_)); }
    // Microseconds from `begin` to this; both must have happened.
    double us_since(const Event& begin) const {
        float ms = 0;
        SHOAL_CUDA(cudaEventElapsedTime(&ms, begin.event_, event_));
        return double{ms} * 1000;
    }

private:
    cudaEvent_t event_ = nullptr;
};

// Bytes that the arrays below hold, and the most they held since `peak` was set back.
struct Held {
    uint64_t now = 0;
    uint64_t peak = 0;
    void add(uint64_t bytes) { peak = std::max(peak, now += bytes); }
    void remove(uint64_t bytes) { now -= bytes; }
};
inline Held held_on_device;
inline Held held_pinned;

// Device memory of `count` elements. Nothing is allocated between measurements.
template <typename T>
class DeviceArray {
public:
    DeviceArray() = default;
    explicit DeviceArray(size_t count) : count_(count) {
        if (count != 0) {
            SHOAL_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)));
            held_on_device.add(bytes());
        }
    }
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
        upload(values);
    }
    ~DeviceArray() {
        if (data_ == nullptr) return;
        cudaFree(data_);
        held_on_device.remove(bytes());
    }
    DeviceArray(DeviceArray&& other) noexcept { swap(other); }
    DeviceArray& operator=(DeviceArray&& other) noexcept {
        swap(other);
        return *this;
    }
    T* data() const { return data_; }
    size_t count() const { return count_; }
    size_t bytes() const { return count_ * sizeof(T); }

    // Blocking. The whole array takes part.
    void upload(const std::vector<T>& values) {
        if (values.empty()) return;
        SHOAL_CUDA(cudaMemcpy(data_, values.data(), values.size() * sizeof(T),
                              cudaMemcpyHostToDevice));
        SHOAL_CUDA(cudaDeviceSynchronize());
    }
    std::vector<T> download(size_t first, size_t count) const {
        std::vector<T> values(count);
        if (count == 0) return values;
        SHOAL_CUDA(cudaMemcpy(values.data(), data_ + first, count * sizeof(T),
                              cudaMemcpyDeviceToHost));
        return values;
    }
    std::vector<T> download() const { return download(0, count_); }
    // Every byte. Blocking.
    void fill_bytes(int value) {
        if (count_ == 0) return;
        SHOAL_CUDA(cudaMemset(data_, value, bytes()));
        SHOAL_CUDA(cudaDeviceSynchronize());
    }

private:
    void swap(DeviceArray& other) {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
    }
    T* data_ = nullptr;
    size_t count_ = 0;
};

// Pinned, mapped host memory from the driver.
template <typename T>
class PinnedArray {
public:
    PinnedArray() = default;
    explicit PinnedArray(size_t count) : count_(count) {
        SHOAL_CUDA(cudaHostAlloc(reinterpret_cast<void**>(&data_), count * sizeof(T),
                                 cudaHostAllocMapped | cudaHostAllocPortable));
        void* pointer = nullptr;
        SHOAL_CUDA(cudaHostGetDevicePointer(&pointer, data_, 0));
        device_data_ = static_cast<T*>(pointer);
        held_pinned.add(count * sizeof(T));
    }
    ~PinnedArray() {
        if (data_ == nullptr) return;
        cudaFreeHost(data_);
        held_pinned.remove(count_ * sizeof(T));
    }
    PinnedArray(PinnedArray&& other) noexcept { swap(other); }
    PinnedArray& operator=(PinnedArray&& other) noexcept {
        swap(other);
        return *this;
    }
    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    size_t count() const { return count_; }
    // The same memory as the device sees it: not always the same address.
    T* device_data() const { return device_data_; }

private:
    void swap(PinnedArray& other) {
        std::swap(data_, other.data_);
        std::swap(device_data_, other.device_data_);
        std::swap(count_, other.count_);
    }
    T* data_ = nullptr;
    T* device_data_ = nullptr;
    size_t count_ = 0;
};

// What `enqueue` puts on the stream (and on streams that it forks off and joins), as one graph.
class Graph {
public:
    Graph(cudaStream_t stream, const std::function<void()>& enqueue) {
        SHOAL_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        cudaGraph_t graph = nullptr;
        try {
            enqueue();
        } catch (...) {
            cudaStreamEndCapture(stream, &graph);
            if (graph != nullptr) cudaGraphDestroy(graph);
            cudaGetLastError();
            throw;
        }
        SHOAL_CUDA(cudaStreamEndCapture(stream, &graph));
        const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
        cudaGraphDestroy(graph);
        SHOAL_CUDA(error);
    }
    ~Graph() {
        if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void launch(cudaStream_t stream) const { SHOAL_CUDA(cudaGraphLaunch(exec_, stream)); }

private:
    cudaGraphExec_t exec_ = nullptr;
};

struct DeviceFacts {
    std::string name;
    int compute_major = 0;
    uint32_t processor_count = 0;
    uint64_t l2_bytes = 0;
    bool has_bulk_copy = false;  // sm_90 and newer
};

// What every part is given.
struct Context {
    Report& report;
    const Plan& plan;
    const DeviceFacts& device;
    bool small;
    double budget_s;
    double begin_s;

    bool another(uint32_t done, double case_begin_s) const {
        const double now = now_s();
        return wants_another({done, now - case_begin_s, now - begin_s, budget_s, small});
    }
    // Calls in a graph: `wanted`, or 2 where figures mean nothing.
    uint32_t calls(uint32_t wanted) const { return small ? std::min(wanted, 2U) : wanted; }
    // Adds a row unless the case was left out.
    void add(Row row) const {
        if (row.value.count == 0) return report.note(row.what + ": left out, the budget is spent");
        report.add(std::move(row));
    }
};

using Enqueue = std::function<void(cudaStream_t stream)>;

// Microseconds between two events round one `enqueue`, again and again after one to warm up.
// `lead` goes before the first event: while it runs, the host submits what is timed.
inline Summary time_stream(const Context& context, cudaStream_t stream, const Enqueue& enqueue,
                           const Enqueue& lead = {}) {
    const Event begin, end;
    const double case_begin = now_s();
    std::vector<double> samples;
    while (context.another(static_cast<uint32_t>(samples.size()), case_begin)) {
        if (samples.empty()) {
            enqueue(stream);
            SHOAL_CUDA(cudaStreamSynchronize(stream));
        }
        if (lead) lead(stream);
        begin.record(stream);
        enqueue(stream);
        end.record(stream);
        end.wait();
        samples.push_back(end.us_since(begin));
    }
    return summarise(std::move(samples));
}

// Microseconds of one of `inner` calls that are captured in one graph and replayed: kernels follow
// each other as in a captured step. `enqueue` is given 0 .. inner - 1, to rotate its buffers. The
// graph runs once to warm up and twice for each sample; `prepare` goes before each timed run and is
// not timed.
inline Summary time_captured(const Context& context, cudaStream_t stream, uint32_t inner,
                             const std::function<void(cudaStream_t, uint32_t)>& enqueue,
                             const Enqueue& prepare = {}) {
    const Graph graph(stream, [&] {
        for (uint32_t i = 0; i < inner; ++i) enqueue(stream, i);
    });
    const auto replay = [&](cudaStream_t target) { graph.launch(target); };
    const auto lead = [&](cudaStream_t target) {
        graph.launch(target);
        if (prepare) prepare(target);
    };
    Summary summary = time_stream(context, stream, replay, lead);
    summary.median /= inner;
    summary.p10 /= inner;
    summary.p90 /= inner;
    return summary;
}

inline Row make_row(std::string what, Params params, const Summary& value, std::string unit) {
    Row row;
    row.what = std::move(what);
    row.params = std::move(params);
    row.value = value;
    row.unit = std::move(unit);
    return row;
}
inline Row with_percent(Row row, double of, std::string of_what) {
    if (of > 0) row.percent = 100 * row.value.median / of;
    row.percent_of = std::move(of_what);
    return row;
}
// GB/s of `bytes` in `us`.
inline Summary gb_per_s(const Summary& us, double bytes) { return rate_of(us, bytes / 1e3); }

}  // namespace shoal::gpu
