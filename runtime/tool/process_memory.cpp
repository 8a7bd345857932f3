#include "runtime/tool/process_memory.hpp"

#include <unistd.h>

#include <fstream>
#include <string>

namespace shoal::tool {
namespace {

struct Pages {
    uint64_t resident = 0;
    uint64_t shared = 0;
    uint64_t bytes = 0;
};

Pages read_pages() {
    Pages pages;
    std::ifstream file("/proc/self/statm");
    uint64_t size = 0;
    file >> size >> pages.resident >> pages.shared;
    pages.bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    return pages;
}

}  // namespace

uint64_t resident_bytes() {
    const Pages pages = read_pages();
    return pages.resident * pages.bytes;
}

uint64_t resident_anonymous_bytes() {
    const Pages pages = read_pages();
    return (pages.resident - pages.shared) * pages.bytes;
}

uint64_t peak_resident_bytes() {
    std::ifstream file("/proc/self/status");
    for (std::string key; file >> key;) {
        uint64_t kib = 0;
        if (key == "VmHWM:" && file >> kib) return kib * 1024;
    }
    return 0;
}

}  // namespace shoal::tool
