// Every choice a user can make, its default, and how it is read from TOML or JSON text.
//
// The library reads no environment variable and no file by itself: a program passes a Config.
// Keys are named `section.key` everywhere: in TOML, in errors, as flags of the tool.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shoal/status.hpp"
#include "shoal/types.hpp"

namespace shoal {

enum class SelectorKind : uint8_t {
    labels,       // quantised key channels (Double Sparsity, arXiv 2408.07092)
    dense,        // everything visible: baseline and oracle
    recent,       // the safety set only
    page_bounds,  // whole pages by the least and largest key of each (Quest, arXiv 2406.10774)
    hybrid,       // page bounds find candidates, labels choose among them
};
enum class CombineKind : uint8_t { sum, max };
enum class SharingKind : uint8_t {
    layer,  // one set for all KV heads of a layer
    head,   // one set per KV head
    tidal,  // anchor layers select, the layers after each reuse its set (arXiv 2410.05076)
};
// Of `tidal`: which set of its anchor a KV head of a reuse layer attends.
enum class SharingHeads : uint8_t {
    shared,  // an anchor selects one set for all its KV heads
    index,   // one per KV head, reused by the head of the same number
};
// How rows on disk that a layer is about to attend are found early, so that they are read while
// layers before it are served. Each kind after `known` reads what is known too. Rows of a prompt
// longer than RAM are read in turn ahead of attention, whatever the kind.
enum class PrefetchKind : uint8_t {
    none,
    known,       // for layers that reuse a selection, and for those that attend everything
    steps,       // what the layer attended in the step before
    last_query,  // what its labels give for the query of the step before
    query,       // for the query that the engine hints (Session::hint_query), else as last_query
};
// How K and V rows lie in RAM and on disk.
enum class HostRows : uint8_t {
    engine,  // as the engine asks for
    q8,      // 8 bits a number and a scale per row
};
enum class LabelBits : uint8_t { mixed = 0, bits2 = 2, bits4 = 4, bits8 = 8, bits16 = 16 };

struct Config {
    struct Selector {
        SelectorKind kind = SelectorKind::labels;
        LabelBits label_bits = LabelBits::mixed;
        // Bits of labels per token and KV head. 0: one per key dimension.
        uint32_t row_bits = 0;
        CombineKind combine = CombineKind::sum;
        // Tokens of a page of page_bounds and hybrid: 4, 8, 16, 32 or 64.
        uint32_t page = 16;
        bool operator==(const Selector&) const = default;
    } selector;

    struct Budget {
        uint32_t rows = 1024;         // selected tokens per group and query; 1 ..
        // Groups whose attention is spread select up to 4 x rows, others down to a quarter, and
        // together as many as without. Found from the scores, step by step, in each store.
        bool adaptive = false;
        uint32_t dense_rows = 8192;   // what a dense layer attends at most; 1 ..
        std::vector<uint32_t> dense_layers = {0, 1};
        // Attention is dense while a query sees at most this many tokens. 0: 2 x rows.
        uint32_t dense_below = 0;
        // A store that brings more queries than this to a step gets exact attention; 1 .. 64
        uint32_t sparse_queries_max = 8;
        bool operator==(const Budget&) const = default;
    } budget;

    struct Sharing {
        SharingKind kind = SharingKind::layer;
        // Of `tidal`, 1 or more: layers that select. Layers after one, up to the next, attend what
        // it selected, but for dense layers; those before the first select for themselves.
        std::vector<uint32_t> anchors;
        SharingHeads heads = SharingHeads::shared;
        bool operator==(const Sharing&) const = default;
    } sharing;

    struct Safety {
        uint32_t sinks = 4;    // first tokens, always attended
        uint32_t window = 64;  // last tokens, the current one included; 1 ..
    } safety;

    struct Host {
        // Most bytes of a session: rows, labels, index and workspace; 0: what the machine offers,
        // and with a disk three quarters of what mapped weights leave of it.
        uint64_t kv_bytes = 0;
        HostRows rows = HostRows::engine;
        bool huge_pages = true;
        uint32_t threads = 0;   // 0: every core of this process; ignored with an engine's executor
        bool pin = true;
        // For debugging, slow: every row is compared with a hash of what was written to its slot
        // before attention reads it, and every attended slot with what the query may see.
        bool check_rows = false;
    } host;

    // All rows have a place in an unlinked file, made whole at create; those in use are in RAM,
    // within host.kv_bytes, and the others are read when attention needs them.
    struct Disk {
        std::string dir;              // folder of that file; "": every row stays in RAM
        uint64_t kv_bytes = 0;        // most bytes of the file; 0: as many as the rows take
        uint32_t deadline_ms = 10000; // a read that takes longer is tried once more; 1 ..
    } disk;

    struct Prefetch {
        PrefetchKind kind = PrefetchKind::query;
        // Rows that a query's guess reads, of those that the layer selects; 100 .. 400.
        uint32_t percent = 100;
        bool operator==(const Prefetch&) const = default;
    } prefetch;

    struct Profile {
        std::string path;            // "" = none: channels come from the first `tokens` tokens
        uint32_t tokens = 2048;      // 256 ..
    } profile;

    struct Stats {
        // Every n-th step one layer's selection is compared with exact scores. 0: never. Not with
        // disk.dir, where it would read all there is.
        uint32_t recall_every = 64;
    } stats;
};

// Where a value came from, for `shoal config` and for error messages.
enum class ConfigOrigin : uint8_t { default_value, file, environment, flag };

// One key with its value, as `shoal config` shows it.
struct ConfigSetting {
    std::string key;     // "budget.rows"
    std::string value;   // as TOML text
    ConfigOrigin origin = ConfigOrigin::default_value;
    std::string where;   // "shoal.toml:7:3", "SHOAL_BUDGET_ROWS", "--budget.rows", or ""
};

// Reads TOML, or JSON when the first character is '{', over the values in `config`. Unknown
// keys, wrong types and values out of range are errors: "source:line:column: key = value: what is
// allowed" with the nearest known name. On error `config` is unchanged. Sizes carry units:
// "8GiB", "500MB", or "50%" of the memory this machine offers.
Status config_merge_text(std::string_view text, const std::string& source, Config& config);
Status config_merge_file(const std::string& path, Config& config);
// One key from a flag or environment variable: `value` is TOML or a bare word.
Status config_set(std::string_view key, std::string_view value, ConfigOrigin origin,
                  const std::string& where, Config& config);
// How a session with this configuration stores rows that an engine asks for as `rows`.
RowFormat stored_rows(const Config& config, const RowFormat& rows);
// Checks ranges and combinations, as create() does.
Status config_check(const Config& config);
// All keys in order, with their values in `config` (origin is left at default_value).
std::vector<ConfigSetting> config_settings(const Config& config);
std::string config_to_toml(const Config& config);
// JSON Schema of the file.
std::string config_schema();

}  // namespace shoal
