// Resident memory of this process.
#pragma once

#include <cstdint>

namespace shoal::tool {

uint64_t resident_bytes();  // 0 where the system does not say
// Part of it that belongs to no file: heap, arenas. A mapped model file comes and goes with the
// page cache and is not in it.
uint64_t resident_anonymous_bytes();
uint64_t peak_resident_bytes();  // the most that resident_bytes() ever was

}  // namespace shoal::tool
