// gpu_facts: what the CUDA backend will stand on, measured. Run it through bench/gpu.sh.
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/machine_facts.hpp"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/options.hpp"
#include "bench/gpu/parts.hpp"
#include "bench/gpu/reference.hpp"

namespace shoal::gpu {
namespace {

using Run = void (*)(Context&);
constexpr Run kRuns[kPartCount] = {run_link,           run_gather,     run_label_scan, run_select,
                                   run_resolve_attend, run_step_graph, run_write_back};

// Why nothing can be measured here, or "".
std::string reason_not_to_run() {
    int driver = 0;
    int runtime = 0;
    int devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    cudaRuntimeGetVersion(&runtime);
    std::string error;
    if (driver != 0) {
        const cudaError_t status = cudaGetDeviceCount(&devices);
        if (status != cudaSuccess && status != cudaErrorNoDevice) {
            error = cudaGetErrorString(status);
        }
    }
    cudaGetLastError();
    return refusal(driver, runtime, devices, error);
}

DeviceFacts describe_machine(Report& report) {
    cudaDeviceProp properties;
    SHOAL_CUDA(cudaGetDeviceProperties(&properties, 0));
    DeviceFacts facts;
    facts.name = properties.name;
    facts.compute_major = properties.major;
    facts.processor_count = static_cast<uint32_t>(properties.multiProcessorCount);
    facts.l2_bytes = static_cast<uint64_t>(properties.l2CacheSize);
    facts.has_bulk_copy = properties.major >= 9;
    char bus[64] = {};
    SHOAL_CUDA(cudaDeviceGetPCIBusId(bus, sizeof(bus), 0));
    int driver = 0;
    int runtime = 0;
    SHOAL_CUDA(cudaDriverGetVersion(&driver));
    SHOAL_CUDA(cudaRuntimeGetVersion(&runtime));
    report.fact("gpu", facts.name);
    report.fact("compute capability",
                std::to_string(properties.major) + "." + std::to_string(properties.minor));
    report.fact("multiprocessors", std::to_string(facts.processor_count));
    report.fact("l2", bytes_text(facts.l2_bytes));
    report.fact("memory", bytes_text(properties.totalGlobalMem));
    report.fact("cuda driver / runtime", std::to_string(driver) + " / " + std::to_string(runtime));
    const bool same_address = properties.canUseHostPointerForRegisteredMem != 0;
    report.fact("host pointers on device", same_address ? "same address" : "other address");
    utsname system = {};
    uname(&system);
    report.fact("kernel", system.release);
    for (const auto& [name, value] : machine_facts(bus)) report.fact(name, value);
    return facts;
}

// Links and clocks rest until something runs; the facts are of a GPU at work.
void wake_up() {
    const Stream stream;
    const DeviceArray<uint4> buffer((uint64_t{64} << 20) / 16);
    const PinnedArray<uint4> host(buffer.count());
    for (int i = 0; i < 20; ++i) {
        launch(stream, {1024, 256}, fill_rows<256>, buffer.data(), buffer.count(), 1U);
        SHOAL_CUDA(cudaMemcpyAsync(host.data(), buffer.data(), buffer.bytes(),
                                   cudaMemcpyDeviceToHost, stream));
    }
    stream.wait_idle();
}

Plan make_plan_here(const DeviceFacts& facts, bool small, Report& report) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    SHOAL_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    const uint64_t host = host_free_bytes(file_text("/proc/meminfo"),
                                          file_text("/sys/fs/cgroup/memory.max"),
                                          file_text("/sys/fs/cgroup/memory.current"));
    report.fact("device memory free", std::to_string(free_bytes >> 20) + " MiB");
    report.fact("host memory free", std::to_string(host >> 20) + " MiB");
    std::vector<std::string> notes;
    const uint32_t span_bytes = make_label_model(1, kLabelScaleMax, 3).span_bytes;
    const Plan plan = make_plan({free_bytes, host, facts.l2_bytes, facts.processor_count}, small,
                                span_bytes, notes);
    for (const std::string& note : notes) report.note(note);
    return plan;
}

// False when the device is in no state to go on.
bool run_part(Part part, double left_s, const Options& options, const Plan& plan,
              const DeviceFacts& facts, Report& report) {
    const PartInfo& info = part_info(part);
    report.begin_part(info.name);
    const double budget_s = std::max(1.0, std::min(info.budget_s, left_s));
    Context context{report, plan, facts, options.small, budget_s, now_s()};
    bool alive = true;
    try {
        kRuns[static_cast<size_t>(part)](context);
    } catch (const std::exception& error) {
        report.check("the part ran to its end", false, error.what());
        alive = cudaDeviceSynchronize() == cudaSuccess;
        if (!alive) report.note("the device is lost to this process: the other parts are left out");
    }
    report.end_part(now_s() - context.begin_s, budget_s);
    return alive;
}

bool write_json(const Report& report, const Options& options) {
    if (options.json_path.empty()) return true;
    const Status written = report.write_json(options.json_path);
    if (!written.is_ok()) std::fprintf(stderr, "gpu_facts: %s\n", written.message().c_str());
    return written.is_ok();
}

int run(const Options& options) {
    const std::string reason = reason_not_to_run();
    if (!reason.empty()) {
        std::fprintf(stderr, "gpu_facts: %s\n", reason.c_str());
        return kExitNoGpu;
    }
    const double begin = now_s();
    Report report(stdout);
    // A file that cannot be written shows now, not after the first part.
    if (!write_json(report, options)) return kExitFailed;
    wake_up();
    const DeviceFacts facts = describe_machine(report);
    const Plan plan = make_plan_here(facts, options.small, report);
    for (const Part part : options.parts) {
        const double left_s = kTotalBudgetS - (now_s() - begin);
        const bool alive = run_part(part, left_s, options, plan, facts, report);
        // After every part: what was measured survives whatever comes.
        if (!write_json(report, options)) return kExitFailed;
        if (!alive) break;
    }
    std::printf("\n%s s, %u checks, %u failed\n", number_text(now_s() - begin).c_str(),
                report.check_count(), report.failed_count());
    return report.failed_count() == 0 ? kExitOk : kExitFailed;
}

}  // namespace
}  // namespace shoal::gpu

int main(int argc, char** argv) {
    using namespace shoal::gpu;
    // A run that is ended from outside has printed every figure it took.
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const shoal::Result<Options> options =
        parse_options(std::vector<std::string>(argv + 1, argv + argc));
    if (!options.is_ok()) {
        std::fprintf(stderr, "gpu_facts: %s\n", options.status().message().c_str());
        return kExitUsage;
    }
    if (options->help || options->list) {
        std::fputs((options->help ? usage_text() : list_text()).c_str(), stdout);
        return kExitOk;
    }
    // A kernel that is loaded at its first launch may wait for others, or meet a capture.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    try {
        return run(*options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "gpu_facts: %s\n", error.what());
        return kExitFailed;
    }
}
