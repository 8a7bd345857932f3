// Numbers as messages spell them.
#pragma once

#include <cstdint>
#include <string>

namespace shoal {

std::string bytes_text(uint64_t bytes);  // "512 B", "21.4 GiB"
std::string grouped(uint64_t number);    // "978,944"

}  // namespace shoal
