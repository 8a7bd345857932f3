// Sizes as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "shoal/status.hpp"

namespace shoal {

// "8GiB", "1.5GiB", "500MB", "50%" (of what this machine offers to this process) or "0" as bytes.
// The error says what is allowed.
Result<uint64_t> config_parse_bytes(std::string_view text);
// The largest unit that divides the bytes: "8GiB", "1536KiB", "1000B".
std::string config_bytes_text(uint64_t bytes);

}  // namespace shoal
