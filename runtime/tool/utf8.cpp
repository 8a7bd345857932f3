#include "runtime/tool/utf8.hpp"

#include <cstdint>

namespace shoal::tool {
namespace {

// Bytes of the character that `lead` begins, 0 if none.
size_t character_bytes(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

// The second byte is where overlong forms, surrogates and what lies above U+10FFFF show.
bool second_fits(uint8_t lead, uint8_t second) {
    switch (lead) {
        case 0xE0: return second >= 0xA0;
        case 0xED: return second <= 0x9F;
        case 0xF0: return second >= 0x90;
        case 0xF4: return second <= 0x8F;
        default: return true;
    }
}

}  // namespace

size_t first_invalid_utf8(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        const auto lead = static_cast<uint8_t>(text[at]);
        const size_t bytes = character_bytes(lead);
        if (bytes == 0 || at + bytes > text.size()) return at;
        for (size_t i = 1; i < bytes; ++i) {
            const auto next = static_cast<uint8_t>(text[at + i]);
            if ((next & 0xC0) != 0x80 || (i == 1 && !second_fits(lead, next))) return at;
        }
        at += bytes;
    }
    return at;
}

}  // namespace shoal::tool
