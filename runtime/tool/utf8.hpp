// Whether bytes are text.
#pragma once

#include <cstddef>
#include <string_view>

namespace shoal::tool {

// Index of the first byte that begins no well-formed UTF-8 character (RFC 3629); the size if every
// one does.
size_t first_invalid_utf8(std::string_view text);

}  // namespace shoal::tool
