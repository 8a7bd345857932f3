#include "kv_tensor.hpp"

#include <charconv>
#include <cstring>
#include <string_view>

namespace shoal::llama_cpp {

std::optional<KvTensorName> parse_kv_name(const char* name) {
    std::string_view text(name, ::strnlen(name, GGML_MAX_NAME));
    KvTensorName result = {};
    if (text.starts_with("cache_k_l")) {
        result.part = Session::Part::k;
    } else if (text.starts_with("cache_v_l")) {
        result.part = Session::Part::v;
    } else {
        return std::nullopt;
    }
    text.remove_prefix(std::strlen("cache_k_l"));
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), result.layer);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return result;
}

}  // namespace shoal::llama_cpp
