#include "bench/gpu/machine_facts.hpp"

#include <dlfcn.h>

#include <fstream>
#include <sstream>

namespace shoal::gpu {
namespace {

// The few calls used of libnvidia-ml.so.1; 0 is success.
class ManagementLibrary {
public:
    ManagementLibrary() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
        const auto init = symbol<int()>("nvmlInit_v2");
        running_ = init != nullptr && init() == 0;
    }
    ~ManagementLibrary() {
        const auto shutdown = symbol<int()>("nvmlShutdown");
        if (running_ && shutdown != nullptr) shutdown();
        if (library_ != nullptr) dlclose(library_);
    }
    ManagementLibrary(const ManagementLibrary&) = delete;
    ManagementLibrary& operator=(const ManagementLibrary&) = delete;

    std::string driver_version() const {
        char text[96] = {};
        const auto call = symbol<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
        if (!running_ || call == nullptr || call(text, sizeof(text)) != 0) return "unknown";
        return text;
    }
    void* device(const std::string& pci_bus_id) const {
        void* handle = nullptr;
        const auto call =
            symbol<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
        if (!running_ || call == nullptr || call(pci_bus_id.c_str(), &handle) != 0) return nullptr;
        return handle;
    }
    std::string number(const char* name, void* handle) const {
        unsigned value = 0;
        const auto call = symbol<int(void*, unsigned*)>(name);
        if (handle == nullptr || call == nullptr || call(handle, &value) != 0) return "unknown";
        return std::to_string(value);
    }
    // kind: 1 SM, 2 memory.
    std::string clock(const char* name, void* handle, int kind) const {
        unsigned value = 0;
        const auto call = symbol<int(void*, int, unsigned*)>(name);
        if (handle == nullptr || call == nullptr || call(handle, kind, &value) != 0) {
            return "unknown";
        }
        return std::to_string(value) + " MHz";
    }

private:
    template <typename Function>
    Function* symbol(const char* name) const {
        return library_ == nullptr ? nullptr
                                   : reinterpret_cast<Function*>(dlsym(library_, name));
    }
    void* library_;
    bool running_ = false;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> machine_facts(const std::string& pci_bus_id) {
    const ManagementLibrary library;
    void* device = library.device(pci_bus_id);
    return {
        {"driver", library.driver_version()},
        {"link generation",
         library.number("nvmlDeviceGetCurrPcieLinkGeneration", device) + " of " +
             library.number("nvmlDeviceGetMaxPcieLinkGeneration", device)},
        {"link width", library.number("nvmlDeviceGetCurrPcieLinkWidth", device) + " of " +
                           library.number("nvmlDeviceGetMaxPcieLinkWidth", device)},
        {"sm clock", library.clock("nvmlDeviceGetClockInfo", device, 1) + " of " +
                         library.clock("nvmlDeviceGetMaxClockInfo", device, 1)},
        {"memory clock", library.clock("nvmlDeviceGetClockInfo", device, 2) + " of " +
                             library.clock("nvmlDeviceGetMaxClockInfo", device, 2)},
    };
}

std::string file_text(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

}  // namespace shoal::gpu
