// As much of the CUDA runtime as this folder's host code calls, on the CPU: with the emulator in
// place of the device, whole parts of gpu_facts run in a test. Figures mean nothing there; checks,
// sizes, graphs and the order of calls do.
//
// One queue of work for all streams, run by a thread of its own, in the order in which it was
// asked for: so the host may poll what a kernel writes. Capture keeps that order too. Errors of
// device code come out of the next call that waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "bench/gpu/emulator.hpp"

namespace shoal::gpu {

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t : int { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation,
                         cudaErrorLaunchFailure };
enum cudaMemcpyKind : int { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                            cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode : int { cudaStreamCaptureModeThreadLocal };
enum cudaMemLocationType : int { cudaMemLocationTypeHost, cudaMemLocationTypeDevice };
enum cudaFuncAttribute : int { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpySrcAccessOrder : int { cudaMemcpySrcAccessOrderStream };
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDefault = 0;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocPortable = 1;
inline constexpr unsigned cudaHostAllocMapped = 2;
inline constexpr unsigned cudaHostRegisterPortable = 1;
inline constexpr unsigned cudaHostRegisterMapped = 2;

struct cudaMemcpyAttributes {
    cudaMemcpySrcAccessOrder srcAccessOrder;
    struct {
        cudaMemLocationType type;
    } srcLocHint, dstLocHint;
};

namespace emulator {
struct Stream;
struct Event;
struct Work;  // captured, in order

// Runs `work` on the device's thread after all that was submitted before; while a capture is on,
// keeps it for the graph.
void submit(std::function<void()> work);
}  // namespace emulator

using cudaStream_t = emulator::Stream*;
using cudaEvent_t = emulator::Event*;
using cudaGraph_t = emulator::Work*;
using cudaGraphExec_t = emulator::Work*;

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaMalloc(void** at, size_t bytes);
cudaError_t cudaFree(void* at);
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* at);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);
// Pages, and no range twice: what the driver would refuse.
cudaError_t cudaHostRegister(void* at, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* at);

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const size_t* bytes,
                                 size_t count, cudaMemcpyAttributes* attributes,
                                 size_t* attribute_indices, size_t attribute_count,
                                 cudaStream_t stream);
cudaError_t cudaMemset(void* at, int value, size_t bytes);

cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*call)(void*), void* data);
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
    return cudaSuccess;
}

}  // namespace shoal::gpu
