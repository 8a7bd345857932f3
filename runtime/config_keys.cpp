#include "runtime/config_keys.hpp"

#include <algorithm>
#include <array>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/config_bytes.hpp"

namespace shoal {
namespace {

using Kind = ConfigKeyKind;
using Names = std::span<const std::string_view>;

constexpr int64_t kMaxU32 = std::numeric_limits<uint32_t>::max();
constexpr int64_t kMaxI32 = std::numeric_limits<int32_t>::max();

constexpr std::array<std::string_view, 5> kSelectorNames = {"labels", "dense", "recent",
                                                             "page_bounds", "hybrid"};
constexpr std::array<std::string_view, 2> kCombineNames = {"sum", "max"};
constexpr std::array<std::string_view, 3> kSharingNames = {"layer", "head", "tidal"};
constexpr std::array<std::string_view, 5> kPrefetchNames = {"none", "known", "steps",
                                                            "last_query", "query"};
constexpr std::array<std::string_view, 2> kSharingHeadsNames = {"shared", "index"};
constexpr std::array<std::string_view, 2> kHostRowsNames = {"engine", "q8"};
constexpr std::array<std::string_view, 5> kLabelBitsNames = {"mixed", "2", "4", "8", "16"};
constexpr std::array<LabelBits, 5> kLabelBits = {LabelBits::mixed, LabelBits::bits2,
                                                 LabelBits::bits4, LabelBits::bits8,
                                                 LabelBits::bits16};
constexpr std::array<std::string_view, 5> kPageNames = {"4", "8", "16", "32", "64"};
constexpr std::array<uint32_t, 5> kPages = {4, 8, 16, 32, 64};

int64_t integer_of(const ConfigValue& value) { return std::get<int64_t>(value); }

// `Section` and `Field` are pointers to members: config.*Section.*Field.
template <auto Section, auto Field>
constexpr auto& field(auto& config) {
    return config.*Section.*Field;
}

template <auto Section, auto Field>
ConfigKey integer_key(std::string_view name, int64_t low, int64_t high, std::string_view hint,
                      std::string_view doc) {
    return {name, Kind::integer, {}, low, high, hint, doc,
            [](const Config& c) -> ConfigValue { return int64_t{field<Section, Field>(c)}; },
            [](Config& c, const ConfigValue& value) {
                auto& target = field<Section, Field>(c);
                target = static_cast<std::remove_reference_t<decltype(target)>>(integer_of(value));
            }};
}

template <auto Section, auto Field>
ConfigKey choice_key(std::string_view name, Names names, std::string_view doc) {
    return {name, Kind::choice, names, 0, 0, {}, doc,
            [](const Config& c) -> ConfigValue {
                return static_cast<int64_t>(field<Section, Field>(c));
            },
            [](Config& c, const ConfigValue& value) {
                auto& target = field<Section, Field>(c);
                target = static_cast<std::remove_reference_t<decltype(target)>>(integer_of(value));
            }};
}

template <auto Section, auto Field>
ConfigKey boolean_key(std::string_view name, std::string_view doc) {
    return {name, Kind::boolean, {}, 0, 0, {}, doc,
            [](const Config& c) -> ConfigValue { return field<Section, Field>(c); },
            [](Config& c, const ConfigValue& value) {
                field<Section, Field>(c) = std::get<bool>(value);
            }};
}

ConfigKey label_bits_key() {
    return {"selector.label_bits", Kind::choice, kLabelBitsNames, 0, 0, {},
            "bits per label channel: mixed gives each channel 0, 2 or 4 bits by its use",
            [](const Config& c) -> ConfigValue {
                return std::find(kLabelBits.begin(), kLabelBits.end(), c.selector.label_bits) -
                       kLabelBits.begin();
            },
            [](Config& c, const ConfigValue& value) {
                c.selector.label_bits = kLabelBits.at(static_cast<size_t>(integer_of(value)));
            }};
}

ConfigKey page_key() {
    return {"selector.page", Kind::choice, kPageNames, 0, 0, {},
            "tokens of a page, for page_bounds and hybrid",
            [](const Config& c) -> ConfigValue {
                return std::find(kPages.begin(), kPages.end(), c.selector.page) - kPages.begin();
            },
            [](Config& c, const ConfigValue& value) {
                c.selector.page = kPages.at(static_cast<size_t>(integer_of(value)));
            }};
}

template <auto Section, auto Field>
ConfigKey layers_key(std::string_view name, std::string_view doc) {
    return {name, Kind::list, {}, 0, kMaxI32, {}, doc,
            [](const Config& c) -> ConfigValue {
                const std::vector<uint32_t>& layers = field<Section, Field>(c);
                return std::vector<int64_t>(layers.begin(), layers.end());
            },
            [](Config& c, const ConfigValue& value) {
                std::vector<uint32_t>& layers = field<Section, Field>(c);
                layers.clear();
                for (const int64_t layer : std::get<std::vector<int64_t>>(value)) {
                    layers.push_back(static_cast<uint32_t>(layer));
                }
            }};
}

template <auto Section, auto Field>
ConfigKey bytes_key(std::string_view name, std::string_view doc) {
    return {name, Kind::size, {}, 0, 0, {}, doc,
            [](const Config& c) -> ConfigValue {
                return static_cast<int64_t>(field<Section, Field>(c));
            },
            [](Config& c, const ConfigValue& value) {
                field<Section, Field>(c) = static_cast<uint64_t>(integer_of(value));
            }};
}

template <auto Section, auto Field>
ConfigKey text_key(std::string_view name, std::string_view doc) {
    return {name, Kind::text, {}, 0, 0, {}, doc,
            [](const Config& c) -> ConfigValue { return field<Section, Field>(c); },
            [](Config& c, const ConfigValue& value) {
                field<Section, Field>(c) = std::get<std::string>(value);
            }};
}

std::vector<ConfigKey> policy_keys() {
    using C = Config;
    constexpr std::string_view kDenseHint =
        "or set selector.kind = \"dense\" to attend everything";
    return {
        choice_key<&C::selector, &C::Selector::kind>(
            "selector.kind", kSelectorNames,
            "what picks the tokens to attend: key labels, bounds of the keys of a page, bounds and "
            "then labels; or everything, or the safety set alone"),
        label_bits_key(),
        integer_key<&C::selector, &C::Selector::row_bits>(
            "selector.row_bits", 0, 4096, {},
            "bits of labels per token and KV head; 0 is one per key dimension"),
        choice_key<&C::selector, &C::Selector::combine>(
            "selector.combine", kCombineNames,
            "how the scores of heads that share a selection are combined"),
        page_key(),
        integer_key<&C::budget, &C::Budget::rows>(
            "budget.rows", 1, kMaxI32, kDenseHint,
            "tokens selected per query and group of heads, on top of the safety set"),
        boolean_key<&C::budget, &C::Budget::adaptive>(
            "budget.adaptive", "layers whose attention is spread select more rows, others fewer, "
                               "as many together"),
        integer_key<&C::budget, &C::Budget::dense_rows>(
            "budget.dense_rows", 1, kMaxI32, kDenseHint,
            "most tokens that a dense layer attends; beyond that it selects this many"),
        layers_key<&C::budget, &C::Budget::dense_layers>(
            "budget.dense_layers", "layers that attend everything, up to dense_rows tokens"),
        integer_key<&C::budget, &C::Budget::dense_below>(
            "budget.dense_below", 0, kMaxU32, {},
            "attention is dense while a query sees at most this many tokens; 0 is 2 x rows"),
        integer_key<&C::budget, &C::Budget::sparse_queries_max>(
            "budget.sparse_queries_max", 1, 64, {},
            "a step with more queries than this (prefill) gets exact attention"),
        choice_key<&C::sharing, &C::Sharing::kind>(
            "sharing.kind", kSharingNames,
            "which heads share one selection: all KV heads of a layer; none; or those of an anchor "
            "layer and of the layers after it, up to the next"),
        layers_key<&C::sharing, &C::Sharing::anchors>(
            "sharing.anchors", "layers that select, for tidal"),
        choice_key<&C::sharing, &C::Sharing::heads>(
            "sharing.heads", kSharingHeadsNames,
            "for tidal: an anchor selects one set for all its KV heads, or one for each, reused by "
            "the head of the same number"),
        integer_key<&C::safety, &C::Safety::sinks>(
            "safety.sinks", 0, kMaxI32, {}, "first tokens, always attended"),
        integer_key<&C::safety, &C::Safety::window>(
            "safety.window", 1, kMaxI32, "the current token is always attended",
            "last tokens, always attended, the current one included"),
    };
}

std::vector<ConfigKey> machine_keys() {
    using C = Config;
    return {
        bytes_key<&C::host, &C::Host::kv_bytes>(
            "host.kv_bytes", "most bytes of rows and labels in RAM; 0 is what the machine offers, "
                             "and with a disk three quarters of what mapped weights leave of it"),
        choice_key<&C::host, &C::Host::rows>(
            "host.rows", kHostRowsNames,
            "how K and V rows are stored, in RAM and on disk: as the engine's cache type says, or "
            "in 8 bits a number with a scale per row"),
        boolean_key<&C::host, &C::Host::huge_pages>(
            "host.huge_pages", "ask the kernel for huge pages for the rows"),
        integer_key<&C::host, &C::Host::threads>(
            "host.threads", 0, 1024, {},
            "threads; 0 is every core. Inside llama.cpp its own threads (-t) are used instead"),
        boolean_key<&C::host, &C::Host::pin>("host.pin", "bind each thread to a core"),
        boolean_key<&C::host, &C::Host::check_rows>(
            "host.check_rows",
            "for debugging, slow: before each attention, compare every row that it may read with a "
            "hash of what was written"),
        text_key<&C::disk, &C::Disk::dir>(
            "disk.dir", "folder for a file that holds all K and V rows, those in use in RAM too; "
                        "\"\" keeps all in RAM alone"),
        bytes_key<&C::disk, &C::Disk::kv_bytes>(
            "disk.kv_bytes", "most bytes of rows on disk; 0 is as many as they take"),
        integer_key<&C::disk, &C::Disk::deadline_ms>(
            "disk.deadline_ms", 1, 3600 * 1000, {},
            "milliseconds after which a read is tried once more, and then given up"),
        choice_key<&C::prefetch, &C::Prefetch::kind>(
            "prefetch.kind", kPrefetchNames,
            "with disk.dir, what is read before a layer needs it (a prompt's rows always are). "
            "known: what layers that reuse a selection or attend everything will read. The others "
            "guess too. steps: what the layer attended in the last step; last_query: what it would "
            "select for its last query; query: for its next one, which the engine computes a layer "
            "early. A guess that does not pay is switched off"),
        integer_key<&C::prefetch, &C::Prefetch::percent>(
            "prefetch.percent", 100, 400, {},
            "rows read early for a guessed query, of those that a layer selects"),
        text_key<&C::profile, &C::Profile::path>(
            "profile.path", "file of channel statistics, made by shoal calibrate; \"\" learns them "
                            "from the prompt"),
        integer_key<&C::profile, &C::Profile::tokens>(
            "profile.tokens", 256, 1 << 20, {},
            "tokens of the prompt that channel statistics are taken from without a profile"),
        integer_key<&C::stats, &C::Stats::recall_every>(
            "stats.recall_every", 0, kMaxI32, {},
            "every n-th sparse step one layer is compared with exact scores; 0 is never, as with "
            "disk.dir"),
    };
}

std::vector<ConfigKey> make_keys() {
    std::vector<ConfigKey> keys = policy_keys();
    for (ConfigKey& key : machine_keys()) keys.push_back(std::move(key));
    return keys;
}

size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
        }
    }
    return row[b.size()];
}

// Names longer than any key are not compared: the distance costs the product of the lengths.
constexpr size_t kComparedLengthMax = 64;

std::string_view nearest(std::string_view name, std::span<const std::string_view> names) {
    std::string_view best;
    size_t best_distance = std::max<size_t>(name.size() / 2, 1) + 1;
    if (name.size() > kComparedLengthMax) return best;
    for (const std::string_view candidate : names) {
        const size_t distance = edit_distance(name, candidate);
        if (distance < best_distance) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

std::vector<std::string_view> section_names() {
    std::vector<std::string_view> names;
    for (const ConfigKey& key : config_keys()) {
        if (names.empty() || names.back() != key.section()) names.push_back(key.section());
    }
    return names;
}

bool is_number(std::string_view name) {
    return name.find_first_not_of("0123456789") == std::string_view::npos;
}

std::string quoted_choices(const ConfigKey& key) {
    std::string text;
    for (size_t i = 0; i < key.choices.size(); ++i) {
        const bool number = is_number(key.choices[i]);
        if (i > 0) text += i + 1 == key.choices.size() ? " or " : ", ";
        text += fmt::format("{0}{1}{0}", number ? "" : "\"", key.choices[i]);
    }
    return text;
}

std::string range_text(const ConfigKey& key) {
    const bool open = key.high == kMaxU32 || key.high == kMaxI32;
    if (open) return fmt::format("{} or more", key.low);
    return fmt::format("{} to {}", key.low, key.high);
}

Status refuse(const ConfigKey& key, const ConfigValue& value, const std::string& why) {
    return Status::error(StatusCode::invalid_argument,
                         fmt::format("{} = {}: {}", key.name, config_value_text(value), why));
}

Result<ConfigValue> read_choice(const ConfigKey& key, const ConfigValue& value) {
    std::string name;
    if (const auto* text = std::get_if<std::string>(&value)) name = *text;
    if (const auto* number = std::get_if<int64_t>(&value)) name = std::to_string(*number);
    const auto found = std::find(key.choices.begin(), key.choices.end(), name);
    if (found != key.choices.end()) return ConfigValue(found - key.choices.begin());
    const std::string_view near = nearest(name, key.choices);
    const std::string hint = near.empty() ? "" : fmt::format(" (did you mean \"{}\"?)", near);
    return refuse(key, value, fmt::format("must be {}{}", quoted_choices(key), hint));
}

Result<ConfigValue> read_integer(const ConfigKey& key, const ConfigValue& value) {
    const auto* number = std::get_if<int64_t>(&value);
    if (number == nullptr) return refuse(key, value, "must be a " + config_key_allowed(key));
    if (*number >= key.low && *number <= key.high) return value;
    const std::string hint = key.hint.empty() ? "" : fmt::format(" ({})", key.hint);
    if (*number > key.high) return refuse(key, value, fmt::format("must be at most {}", key.high));
    return refuse(key, value, fmt::format("must be {}{}", range_text(key), hint));
}

Result<ConfigValue> read_size(const ConfigKey& key, const ConfigValue& value) {
    if (const auto* number = std::get_if<int64_t>(&value); number != nullptr && *number == 0) {
        return value;
    }
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr) return refuse(key, value, "must be a " + config_key_allowed(key));
    const Result<uint64_t> bytes = config_parse_bytes(*text);
    if (!bytes) return refuse(key, value, bytes.status().message());
    return ConfigValue(static_cast<int64_t>(*bytes));
}

Result<ConfigValue> read_list(const ConfigKey& key, const ConfigValue& value) {
    const auto* items = std::get_if<std::vector<int64_t>>(&value);
    if (items == nullptr) return refuse(key, value, "must be a " + config_key_allowed(key));
    std::vector<int64_t> sorted = *items;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) return refuse(key, value, fmt::format("{} is there twice", *twice));
    if (!sorted.empty() && (sorted.front() < key.low || sorted.back() > key.high)) {
        return refuse(key, value, fmt::format("each must be {}", range_text(key)));
    }
    return ConfigValue(sorted);
}

}  // namespace

std::string config_value_text(const ConfigValue& value) {
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
    if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
        return fmt::format("[{}]", fmt::join(*list, ", "));
    }
    if (const auto* unfit = std::get_if<ConfigUnfit>(&value)) return unfit->shown;
    std::string text = "\"";
    for (const char c : std::get<std::string>(value)) {
        if (c == '"' || c == '\\') {
            text += '\\';
            text += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            text += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
        } else {
            text += c;
        }
    }
    return text + "\"";
}

std::span<const ConfigKey> config_keys() {
    static const std::vector<ConfigKey> keys = make_keys();
    return keys;
}

const ConfigKey* config_key_find(std::string_view name) {
    for (const ConfigKey& key : config_keys()) {
        if (key.name == name) return &key;
    }
    return nullptr;
}

std::string_view config_section_doc(std::string_view section) {
    if (section == "selector") return "how the tokens worth attending are found";
    if (section == "budget") return "how many tokens are attended";
    if (section == "sharing") return "which heads attend the same tokens";
    if (section == "safety") return "tokens that are always attended";
    if (section == "host") return "memory and threads of this machine";
    if (section == "disk") return "rows on disk, those in use in RAM";
    if (section == "prefetch") return "reading rows from disk before they are needed";
    if (section == "profile") return "channel statistics of a model";
    if (section == "stats") return "what is measured on the way";
    return {};
}

std::string config_key_allowed(const ConfigKey& key) {
    switch (key.kind) {
        case Kind::choice: return quoted_choices(key);
        case Kind::integer: return fmt::format("whole number, {}", range_text(key));
        case Kind::boolean: return "truth value, true or false";
        case Kind::size: return "size with a unit, such as \"8GiB\", \"500MB\" or \"50%\", or 0";
        case Kind::text: return "text in quotes";
        case Kind::list: return fmt::format("list of whole numbers such as [0, 1], each {}",
                                            range_text(key));
    }
    return {};
}

Result<ConfigValue> config_key_read(const ConfigKey& key, const ConfigValue& value) {
    switch (key.kind) {
        case Kind::choice: return read_choice(key, value);
        case Kind::integer: return read_integer(key, value);
        case Kind::size: return read_size(key, value);
        case Kind::list: return read_list(key, value);
        case Kind::boolean:
            if (std::holds_alternative<bool>(value)) return value;
            break;
        case Kind::text:
            if (std::holds_alternative<std::string>(value)) return value;
            break;
    }
    return refuse(key, value, "must be a " + config_key_allowed(key));
}

std::string config_key_text(const ConfigKey& key, const Config& config) {
    const ConfigValue value = key.get(config);
    if (key.kind == Kind::choice) {
        const std::string_view name = key.choices[static_cast<size_t>(integer_of(value))];
        const bool number = is_number(name);
        return number ? std::string(name) : fmt::format("\"{}\"", name);
    }
    if (key.kind == Kind::size && integer_of(value) != 0) {
        return fmt::format("\"{}\"", config_bytes_text(static_cast<uint64_t>(integer_of(value))));
    }
    return config_value_text(value);
}

std::string config_unknown_key_text(std::string_view name) {
    const size_t dot = name.find('.');
    const std::string_view section = name.substr(0, dot);
    const std::vector<std::string_view> sections = section_names();
    const bool known = std::find(sections.begin(), sections.end(), section) != sections.end();
    if (dot == std::string_view::npos && !known) {
        for (const ConfigKey& key : config_keys()) {
            if (key.leaf() == name) {
                return fmt::format("unknown key (did you mean {}?)", key.name);
            }
        }
        const std::string_view near = nearest(section, sections);
        if (!near.empty()) return fmt::format("unknown section (did you mean {}?)", near);
        return fmt::format("unknown section (there are: {})", fmt::join(sections, ", "));
    }
    std::vector<std::string_view> names;
    std::vector<std::string_view> siblings;
    for (const ConfigKey& key : config_keys()) {
        if (dot != std::string_view::npos && key.leaf() == name.substr(dot + 1)) {
            return fmt::format("unknown key (did you mean {}?)", key.name);
        }
        names.push_back(key.name);
        if (key.section() == section) siblings.push_back(key.leaf());
    }
    // Half the letters of the whole name would always be near within a section.
    const std::string_view near = known ? nearest(name.substr(dot + 1), siblings)
                                        : nearest(name, names);
    if (!near.empty()) {
        return known ? fmt::format("unknown key (did you mean {}.{}?)", section, near)
                     : fmt::format("unknown key (did you mean {}?)", near);
    }
    if (known && dot == std::string_view::npos) {
        return fmt::format("must be a section ([{}] has: {})", section,
                           fmt::join(siblings, ", "));
    }
    return known ? fmt::format("unknown key ([{}] has: {})", section, fmt::join(siblings, ", "))
                 : fmt::format("unknown key (sections are: {})", fmt::join(sections, ", "));
}

}  // namespace shoal
