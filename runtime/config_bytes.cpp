#include "runtime/config_bytes.hpp"

#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "offload/memory_limits.hpp"

namespace shoal {
namespace {

struct Unit {
    std::string_view name;
    double bytes;
};
constexpr double kKi = 1024.0;
constexpr std::array<Unit, 9> kUnits = {{{"TiB", kKi * kKi * kKi * kKi}, {"GiB", kKi * kKi * kKi},
                                         {"MiB", kKi * kKi}, {"KiB", kKi}, {"TB", 1e12},
                                         {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1.0}}};

// Above this a size is a slip of the pen on any machine, and bytes fit int64_t below it.
constexpr double kBytesMax = 4.6e18;

}  // namespace

Result<uint64_t> config_parse_bytes(std::string_view text) {
    const auto refuse = [](const char* why) {
        return Status::error(StatusCode::invalid_argument, why);
    };
    constexpr const char* kForm =
        "must be a number with a unit: KiB, MiB, GiB, TiB, KB, MB, GB, TB, or % of this machine's "
        "memory";
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number,
                                              std::chars_format::fixed);
    if (error != std::errc() || !std::isfinite(number)) return refuse(kForm);
    if (number < 0) return refuse("must not be negative");
    std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
    while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
    if (unit.empty()) return number == 0 ? Result<uint64_t>(uint64_t{0}) : refuse(kForm);
    if (unit == "%") {
        // 0 bytes would mean "no limit", the opposite of what 0% says.
        if (number == 0 || number > 100) return refuse("must be above 0% and at most 100%");
        const auto available =
            static_cast<double>(offload::read_memory_limits().available_bytes);
        return static_cast<uint64_t>(available * number / 100.0);
    }
    for (const Unit& known : kUnits) {
        if (known.name != unit) continue;
        if (number * known.bytes > kBytesMax) return refuse("is more than any machine has");
        return static_cast<uint64_t>(number * known.bytes);
    }
    return refuse(kForm);
}

std::string config_bytes_text(uint64_t bytes) {
    for (size_t i = 0; i < 4; ++i) {
        const auto unit = static_cast<uint64_t>(kUnits[i].bytes);
        if (bytes != 0 && bytes % unit == 0) {
            return fmt::format("{}{}", bytes / unit, kUnits[i].name);
        }
    }
    return fmt::format("{}B", bytes);
}

}  // namespace shoal
