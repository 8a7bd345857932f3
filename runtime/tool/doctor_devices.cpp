// Findings about the kernel's I/O and the GPU driver, by asking them.
#include <dlfcn.h>

#include <array>
#include <memory>

#include <fmt/format.h>

#include "offload/io_path.hpp"
#include "offload/memory_limits.hpp"
#include "runtime/tool/doctor_checks.hpp"

namespace shoal::tool {
namespace {

struct LibraryCloser {
    void operator()(void* library) const { dlclose(library); }
};
using Library = std::unique_ptr<void, LibraryCloser>;

template <typename Function>
bool resolve(const Library& library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library.get(), name));
    return function != nullptr;
}

// The part of NVIDIA's management library that says what is there; 0 is success throughout.
class Nvml {
public:
    static std::string describe() {
        const Library library(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL));
        if (!library) return "";
        Nvml nvml;
        if (!nvml.open(library) || nvml.init_() != 0) return "";
        const std::string text = nvml.devices();
        nvml.shutdown_();
        return text;
    }

private:
    struct Memory {
        unsigned long long total, free, used;
    };

    bool open(const Library& library) {
        return resolve(library, "nvmlInit_v2", init_) &&
               resolve(library, "nvmlShutdown", shutdown_) &&
               resolve(library, "nvmlSystemGetDriverVersion", driver_) &&
               resolve(library, "nvmlDeviceGetCount_v2", count_) &&
               resolve(library, "nvmlDeviceGetHandleByIndex_v2", handle_) &&
               resolve(library, "nvmlDeviceGetName", name_) &&
               resolve(library, "nvmlDeviceGetMemoryInfo", memory_);
    }

    std::string devices() const {
        std::array<char, 96> text = {};
        unsigned count = 0;
        if (count_(&count) != 0 || count == 0) return "";
        std::string all;
        for (unsigned i = 0; i < count; ++i) {
            void* device = nullptr;
            Memory memory = {};
            if (handle_(i, &device) != 0 || name_(device, text.data(), text.size()) != 0 ||
                memory_(device, &memory) != 0) {
                continue;
            }
            all += fmt::format("{} ({}), ", text.data(), offload::bytes_text(memory.total));
        }
        if (driver_(text.data(), text.size()) != 0) text[0] = '\0';
        return fmt::format("{}driver {}", all, text.data());
    }

    int (*init_)() = nullptr;
    int (*shutdown_)() = nullptr;
    int (*driver_)(char*, unsigned) = nullptr;
    int (*count_)(unsigned*) = nullptr;
    int (*handle_)(unsigned, void**) = nullptr;
    int (*name_)(void*, char*, unsigned) = nullptr;
    int (*memory_)(void*, Memory*) = nullptr;
};

// Where the management library is missing (some containers), the driver itself.
std::string describe_cuda() {
    const Library library(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL));
    if (!library) return "";
    int (*init)(unsigned) = nullptr;
    int (*count_devices)(int*) = nullptr;
    int (*version)(int*) = nullptr;
    if (!resolve(library, "cuInit", init) ||
        !resolve(library, "cuDeviceGetCount", count_devices) ||
        !resolve(library, "cuDriverGetVersion", version)) {
        return "";
    }
    int count = 0;
    int number = 0;
    if (init(0) != 0 || count_devices(&count) != 0 || count == 0 || version(&number) != 0) {
        return "";
    }
    return fmt::format("{} CUDA device{}, driver for CUDA {}.{}", count, count == 1 ? "" : "s",
                       number / 1000, number % 1000 / 10);
}

}  // namespace

Finding check_disk_io() {
    const offload::IoPath path = offload::probe_io_path();
    if (path.is_uring) {
        return {"disk I/O", Verdict::ok, path.text, "one thread reads and writes rows on disk"};
    }
    return {"disk I/O", Verdict::warning,
            fmt::format("{}, for io_uring is refused ({})", path.text, path.refusal),
            "rows on disk cost two to four times the processor time; results are the same"};
}

Finding check_gpu() {
    std::string found = Nvml::describe();
    if (found.empty()) found = describe_cuda();
    if (found.empty()) {
        return {"GPU", Verdict::ok, "none found (no NVIDIA driver, or no device behind it)",
                "not needed: Shoal attends on the CPU"};
    }
    return {"GPU", Verdict::ok, found, "not used in this version: Shoal attends on the CPU"};
}

}  // namespace shoal::tool
