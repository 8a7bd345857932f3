#include "shoal/status.hpp"

#include <cstdio>
#include <cstdlib>

namespace shoal {

const char* status_code_name(StatusCode code) {
    switch (code) {
        case StatusCode::ok: return "ok";
        case StatusCode::invalid_argument: return "invalid_argument";
        case StatusCode::out_of_memory: return "out_of_memory";
        case StatusCode::not_found: return "not_found";
        case StatusCode::unsupported: return "unsupported";
        case StatusCode::corrupt: return "corrupt";
        case StatusCode::unavailable: return "unavailable";
        case StatusCode::internal: return "internal";
    }
    return "unknown";
}

namespace detail {

void assert_failed(const char* condition, const char* file, int line) {
    std::fprintf(stderr, "shoal: %s:%d: assertion failed: %s\n", file, line, condition);
    std::abort();
}

}  // namespace detail
}  // namespace shoal
