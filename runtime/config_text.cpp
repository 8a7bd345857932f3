#include "runtime/config_text.hpp"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <toml++/toml.h>

namespace shoal {
namespace {

constexpr size_t kFileBytesMax = size_t{1} << 20;
// A configuration has two levels; parsers that recurse are not given more than this many brackets.
constexpr size_t kNestingMax = 64;

Status syntax_error(const std::string& source, uint32_t line, uint32_t column,
                    std::string_view what) {
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("{}:{}:{}: {}", source, line, column, what));
}

std::string shown_toml(const toml::node& node) {
    if (node.is_table()) return "{...}";
    std::ostringstream out;
    node.visit([&](const auto& value) { out << value; });
    std::string text = out.str();
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

ConfigValue value_of(const toml::node& node) {
    if (const auto* flag = node.as_boolean()) return flag->get();
    if (const auto* number = node.as_integer()) return number->get();
    if (const auto* text = node.as_string()) return text->get();
    if (const auto* list = node.as_array()) {
        std::vector<int64_t> numbers;
        for (const toml::node& item : *list) {
            if (!item.is_integer()) return ConfigUnfit{shown_toml(node)};
            numbers.push_back(item.as_integer()->get());
        }
        return numbers;
    }
    return ConfigUnfit{shown_toml(node)};
}

void flatten_toml(const toml::table& table, const std::string& prefix,
                  std::vector<ConfigEntry>& entries) {
    for (const auto& [key, node] : table) {
        const std::string name = prefix + std::string(key.str());
        if (node.is_table() && prefix.empty()) {
            flatten_toml(*node.as_table(), name + ".", entries);
            if (!node.as_table()->empty()) continue;
        }
        const bool empty_section = node.is_table() && prefix.empty();
        const toml::source_position at = key.source().begin;
        // An empty section sets nothing, but its name is still checked.
        entries.push_back({empty_section ? name + "." : name, value_of(node),
                           static_cast<uint32_t>(at.line), static_cast<uint32_t>(at.column)});
    }
}

Result<std::vector<ConfigEntry>> parse_toml(std::string_view text, const std::string& source) {
    try {
        std::vector<ConfigEntry> entries;
        flatten_toml(toml::parse(text, source), "", entries);
        return entries;
    } catch (const toml::parse_error& error) {
        const toml::source_position at = error.source().begin;
        return syntax_error(source, static_cast<uint32_t>(at.line),
                            static_cast<uint32_t>(at.column), error.description());
    }
}

// Counts what the JSON lexer has taken, so that a key's place is known when it is reported.
struct CountingIterator {
    using difference_type = std::ptrdiff_t;
    using value_type = char;
    using pointer = const char*;
    using reference = const char&;
    using iterator_category = std::input_iterator_tag;
    const char* at;
    const char** farthest;
    reference operator*() const { return *at; }
    CountingIterator& operator++() {
        *farthest = ++at;
        return *this;
    }
    bool operator==(const CountingIterator& other) const { return at == other.at; }
    bool operator!=(const CountingIterator& other) const { return at != other.at; }
};

struct Place {
    uint32_t line = 1;
    uint32_t column = 1;
};

Place place_of(std::string_view text, size_t offset) {
    Place place;
    for (size_t i = 0; i < std::min(offset, text.size()); ++i) {
        const auto c = static_cast<unsigned char>(text[i]);
        if (c == '\n') {
            ++place.line;
            place.column = 1;
        } else if ((c & 0xC0) != 0x80) {  // not the inside of a UTF-8 character
            ++place.column;
        }
    }
    return place;
}

// Collects entries from the parser's events; nothing is built that could nest deeply.
class JsonReader : public nlohmann::json_sax<nlohmann::json> {
public:
    JsonReader(std::string_view text, const std::string& source, const char** farthest)
        : text_(text), source_(source), farthest_(farthest) {}

    Result<std::vector<ConfigEntry>> result(bool parsed) {
        if (!status_.is_ok()) return status_;
        if (!parsed) return syntax_error(source_, 1, 1, "not JSON");
        return std::move(entries_);
    }

    bool null() override { return value(ConfigUnfit{"null"}); }
    bool boolean(bool flag) override { return value(flag); }
    bool number_integer(number_integer_t number) override {
        return list_open_ ? push(number) : value(number);
    }
    bool number_unsigned(number_unsigned_t number) override {
        if (number > static_cast<uint64_t>(INT64_MAX)) {
            return value(ConfigUnfit{std::to_string(number)});
        }
        return number_integer(static_cast<int64_t>(number));
    }
    bool number_float(number_float_t, const string_t& shown) override {
        return value(ConfigUnfit{shown});
    }
    bool string(string_t& text) override { return value(text); }
    bool binary(binary_t&) override { return value(ConfigUnfit{"binary"}); }

    bool start_object(size_t) override {
        if (list_open_) return unfit_list();
        if (++depth_ <= 2) return true;
        return refuse_at_key("a table is not a value here");
    }
    bool end_object() override {
        if (depth_ == 2 && !section_has_keys_) entries_.push_back(at_key(section_ + ".", false));
        --depth_;
        return true;
    }
    bool key(string_t& name) override {
        const auto end = static_cast<size_t>(*farthest_ - text_.data());
        const size_t quoted = name.size() + 2;
        key_place_ = place_of(text_, end >= quoted ? end - quoted : 0);
        if (depth_ == 1) section_ = name;
        section_has_keys_ = depth_ == 2;
        key_ = depth_ == 1 ? name : section_ + "." + name;
        if (seen_.insert(key_).second) return true;
        return refuse_at_key("is there twice");
    }
    bool start_array(size_t) override {
        if (list_open_) return unfit_list();
        list_open_ = true;
        list_fits_ = true;
        list_.clear();
        return true;
    }
    bool end_array() override {
        list_open_ = false;
        if (list_fits_) return value(list_);
        return value(ConfigUnfit{"[...]"});
    }
    bool parse_error(size_t position, const std::string&,
                     const nlohmann::detail::exception& error) override {
        const Place place = place_of(text_, position > 0 ? position - 1 : 0);
        std::string_view what = error.what();
        // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ...":
        // the place is said once, in the form of every other message.
        if (const size_t cut = what.find(": "); cut != std::string_view::npos) {
            what.remove_prefix(cut + 2);
        }
        status_ = syntax_error(source_, place.line, place.column, what);
        return false;
    }

private:
    ConfigEntry at_key(std::string key, ConfigValue value) const {
        return {std::move(key), std::move(value), key_place_.line, key_place_.column};
    }
    bool value(ConfigValue value) {
        if (list_open_) return unfit_list();
        entries_.push_back(at_key(key_, std::move(value)));
        return true;
    }
    bool push(int64_t number) {
        list_.push_back(number);
        return true;
    }
    bool unfit_list() {
        list_fits_ = false;
        return true;
    }
    bool refuse_at_key(const char* why) {
        status_ = syntax_error(source_, key_place_.line, key_place_.column,
                               fmt::format("{}: {}", key_, why));
        return false;
    }

    std::string_view text_;
    const std::string& source_;
    const char** farthest_;
    std::vector<ConfigEntry> entries_;
    Status status_ = Status::ok();
    std::set<std::string> seen_;
    std::string section_;
    std::string key_;
    Place key_place_;
    size_t depth_ = 0;
    bool section_has_keys_ = false;
    bool list_open_ = false;
    bool list_fits_ = true;
    std::vector<int64_t> list_;
};

Result<std::vector<ConfigEntry>> parse_json(std::string_view text, const std::string& source) {
    const char* farthest = text.data();
    JsonReader reader(text, source, &farthest);
    const CountingIterator first{text.data(), &farthest};
    const CountingIterator last{text.data() + text.size(), &farthest};
    return reader.result(nlohmann::json::sax_parse(first, last, &reader));
}

bool nests_too_deeply(std::string_view text) {
    size_t depth = 0;
    for (const char c : text) {
        if (c == '[' || c == '{') ++depth;
        if ((c == ']' || c == '}') && depth > 0) --depth;
        if (depth > kNestingMax) return true;
    }
    return false;
}

}  // namespace

std::string ConfigEntry::where(const std::string& source) const {
    return fmt::format("{}:{}:{}", source, line, column);
}

Result<std::vector<ConfigEntry>> config_parse_text(std::string_view text,
                                                   const std::string& source) {
    if (nests_too_deeply(text)) {
        return syntax_error(source, 1, 1, fmt::format("more than {} open brackets", kNestingMax));
    }
    const size_t start = text.find_first_not_of(" \t\r\n");
    const bool json = start != std::string_view::npos && text[start] == '{';
    return json ? parse_json(text, source) : parse_toml(text, source);
}

ConfigValue config_parse_value(std::string_view text) {
    if (nests_too_deeply(text)) return ConfigUnfit{std::string(text)};
    try {
        const toml::table table = toml::parse("value = " + std::string(text));
        if (table.size() == 1 && table.contains("value")) {
            return value_of(*table.get("value"));
        }
    } catch (const toml::parse_error&) {
        // Not TOML: a bare word.
    }
    return std::string(text);
}

Result<std::string> config_read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        return Status::error(StatusCode::not_found,
                             fmt::format("{}: {}", path,
                                         std::generic_category().message(errno)));
    }
    std::string text;
    text.resize(kFileBytesMax + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (file.bad() || (file.fail() && !file.eof())) {
        return Status::error(StatusCode::not_found, fmt::format("{}: cannot be read", path));
    }
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kFileBytesMax) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("{}: more than 1 MiB is no configuration", path));
    }
    return text;
}

}  // namespace shoal
