// Helpers of the offload tests.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shoal::offload {

// Bytes of [data, data + bytes) that are in RAM, from /proc/self/pagemap.
inline uint64_t resident_bytes(const std::byte* data, uint64_t bytes) {
    constexpr uint64_t kPage = 4096;
    const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    std::vector<uint64_t> entries(bytes / kPage);
    const auto offset = static_cast<off_t>(reinterpret_cast<uintptr_t>(data) / kPage * 8);
    const ssize_t got = pread(file, entries.data(), entries.size() * 8, offset);
    close(file);
    uint64_t pages = 0;
    for (size_t i = 0; i < static_cast<size_t>(got > 0 ? got : 0) / 8; ++i) {
        pages += entries[i] >> 63;
    }
    return pages * kPage;
}

}  // namespace shoal::offload
