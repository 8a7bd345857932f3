// Bad input: one clear line that names field, value and what is allowed, and exit code 2; nothing
// is loaded before. None of these needs a working machine, most not even a model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "tests/tool/support.hpp"

namespace shoal::tool_test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

void expect_refused(const Invocation& invocation, const std::string& message) {
    const Outcome outcome = run_tool(invocation);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, StartsWith("shoal: "));
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_EQ(outcome.out, "");
}

void expect_refused(std::vector<std::string> arguments, const std::string& message) {
    expect_refused(Invocation{.arguments = std::move(arguments)}, message);
}

// The header of a GGUF file with these text and number keys, and no tensor.
class GgufWriter {
public:
    GgufWriter& text(const std::string& key, const std::string& value) {
        add(key, 8);
        string(value);
        return *this;
    }
    GgufWriter& number(const std::string& key, uint32_t value) {
        add(key, 4);
        put(value);
        return *this;
    }
    std::string file() const {
        std::string head = "GGUF";
        append(head, uint32_t{3});
        append(head, uint64_t{0});
        append(head, keys_);
        return head + body_;
    }

private:
    template <typename T>
    static void append(std::string& to, T value) {
        to.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    template <typename T>
    void put(T value) {
        append(body_, value);
    }
    void string(const std::string& value) {
        put(uint64_t{value.size()});
        body_ += value;
    }
    void add(const std::string& key, uint32_t type) {
        string(key);
        put(type);
        ++keys_;
    }
    std::string body_;
    uint64_t keys_ = 0;
};

GgufWriter header(const std::string& architecture, uint32_t layers = 2) {
    GgufWriter writer;
    writer.text("general.architecture", architecture)
        .number(architecture + ".block_count", layers)
        .number(architecture + ".context_length", 2048)
        .number(architecture + ".embedding_length", 512)
        .number(architecture + ".attention.head_count", 8)
        .number(architecture + ".attention.head_count_kv", 2);
    return writer;
}

TEST(ToolErrors, Usage) {
    expect_refused(std::vector<std::string>{}, "A subcommand is required");
    expect_refused({"fly"}, "fly: unknown command (there are: run, plan, ");
    expect_refused({"run", "-p", "x"}, "--model is required");
    expect_refused({"run", "-m", "x.gguf", "--budget.row", "5"},
                   "--budget.row: unknown key (did you mean budget.rows?)");
    expect_refused({"run", "-m", "x.gguf", "-p", ""}, "the prompt is empty");
    expect_refused({"run", "-m", "x.gguf"},
                   "the prompt is empty: give -p TEXT, -f FILE or --load-kv FILE");
    expect_refused({"run", "-m", "x.gguf", "-f", "/nonexistent"},
                   "-f /nonexistent: No such file or directory");
    expect_refused({"run", "-m", "x.gguf", "-f", temporary_file("empty", "")},
                   "the file is empty");
    expect_refused({"run", "-m", "x.gguf", "-f", "/"}, "-f /: is a folder, not a text file");
    expect_refused({"run", "-m", "x.gguf", "-f", temporary_file("bytes", "ab\xC0\xAF")},
                   "byte 2 (0xc0): must be UTF-8 text");
    expect_refused({"run", "-m", "x.gguf", "-p", "ab\xED\xA0\x80"}, "-p: byte 2: must be UTF-8");
    expect_refused({"run", "-m", "x.gguf", "-p", "x", "-n", "0"}, "-n 0: must be 1 to");
    expect_refused({"run", "-m", "x.gguf", "-p", "x", "--temp", "-1"},
                   "--temp -1: must be 0 or more");
    expect_refused({"run", "-m", "x.gguf", "-p", "x", "--top-p", "2"}, "--top-p 2: must be 0 to 1");
    expect_refused({"bench", "-m", "x.gguf", "-f", "y", "-d", "5,x"}, "-d 5,x: must be whole");
    expect_refused({"bench", "-m", "x.gguf", "-f", "y", "-d", "99999999999"},
                   "-d 99999999999: must be whole numbers from 1 to 1073741824, with commas");
    expect_refused({"eval", "-m", "x.gguf", "-f", "y", "--reference", "dens"},
                   "--reference dens: must be labels, page_bounds, hybrid, tidal, dense, recent, "
                   "each with -q8 or without, stock or stock-noflash");
    expect_refused({"eval", "-m", "x.gguf", "-f", "y", "--policy", "labels,stock-q8"},
                   "--policy stock-q8: must be labels, ");
    expect_refused({"eval", "-m", "x.gguf", "-f", "y", "--policy", "labels,all"},
                   "--policy all: must be labels, ");
    expect_refused({"plan", "-m", ""}, "-m: must name a model file (GGUF)");
    expect_refused({"eval", "-m", "x.gguf", "-f", "y", "--positions", "9000"},
                   "--positions 9000: must be 1 to 8190");
    expect_refused({"calibrate", "-m", "x.gguf", "-f", "y", "-o", "z", "--tokens", "9"},
                   "--tokens 9: must be 256 to");
    expect_refused({"calibrate", "-m", "x.gguf", "-f", "y", "-o", "/nonexistent/z"},
                   "-o /nonexistent/z: No such file or directory");
    expect_refused({"calibrate", "-m", "x.gguf", "-f", "y", "-o", "/"}, "-o /: is a folder");
    expect_refused({"calibrate", "-m", "x.gguf", "-f", "y", "-o", "/dev/null"},
                   "-o /dev/null: is there and not a regular file");
    expect_refused({"bench", "-m", "x.gguf", "-f", "y", "-c", "10"},
                   "-c 10: bench makes the context as long as it needs; leave -c out");
    expect_refused({"plan", "-m", "x.gguf", "--report", "/nonexistent/r.json"},
                   "--report /nonexistent/r.json: No such file or directory");
    expect_refused({"plan", "-m", "/dev/null"}, "/dev/null: is not a regular file");
}

TEST(ToolErrors, Configuration) {
    const std::string file = temporary_file("shoal.toml", "[budget]\n  rows = 0\n");
    expect_refused({"config", "--config", file},
                   "--config: " + file +
                       ":2:3: budget.rows = 0: must be 1 or more (or set selector.kind = "
                       "\"dense\" to attend everything)");
    expect_refused({"config", "--config", "/nonexistent.toml"},
                   "--config: /nonexistent.toml: No such file or directory");
    expect_refused({"config", "--set", "rows"}, "--set rows: must be key=value");
    expect_refused({"config", "--set", "budget.rows=0"}, "--set: budget.rows = 0: must be 1");
    expect_refused({"config", "--budget.rows", "0"}, "--budget.rows: budget.rows = 0: must be 1");
    expect_refused({.arguments = {"config"}, .environment = {"SHOAL_BUDGET_ROW=5"}},
                   "SHOAL_BUDGET_ROW: budget.row: unknown key (did you mean budget.rows?)");
    expect_refused({.arguments = {"config"}, .environment = {"SHOAL_NONSENSE=5"}},
                   "SHOAL_NONSENSE: nonsense: unknown section");
    expect_refused({.arguments = {"config"}, .environment = {"SHOAL_CONFIG=/nonexistent"}},
                   "SHOAL_CONFIG: /nonexistent: No such file or directory");
}

TEST(ToolErrors, LostOutputIsNoSuccess) {
    const std::string command = std::string("'") + SHOAL_TEST_TOOL + "' config --toml";
    const int full = std::system((command + " >/dev/full 2>/dev/null").c_str());
    EXPECT_EQ(WEXITSTATUS(full), 1);
    const int good = std::system((command + " >/dev/null 2>/dev/null").c_str());
    EXPECT_EQ(WEXITSTATUS(good), 0);
}

// What a model and a configuration say of each other is checked before weights are read: this
// model has none.
TEST(ToolErrors, ConfigurationOfAnotherModel) {
    const std::string model = temporary_file("x.gguf", header("llama").file());
    expect_refused({"run", "-m", model, "-p", "x", "--budget.dense_layers", "[0,2]"},
                   "budget.dense_layers: 2: must be below 2, the layers of this model");
    expect_refused({"run", "-m", model, "-p", "x", "--profile.path", "/nonexistent.profile"},
                   "profile.path: /nonexistent.profile: ");
    expect_refused({"bench", "-m", model, "-f", temporary_file("text", "hello"), "--profile.path",
                    profile_path()},
                   "profile.path = \"" + profile_path() + "\": ");
}

TEST(ToolErrors, ModelFile) {
    expect_refused({"plan", "-m", "/nonexistent.gguf"},
                   "/nonexistent.gguf: No such file or directory");
    expect_refused({"plan", "-m", "/"}, "/: is a folder, not a model file");
    expect_refused({"plan", "-m", temporary_file("text", "hello, this is a text")},
                   "is not a GGUF model file");
    expect_refused({"plan", "-m", temporary_file("short", "GG")}, "is not a GGUF model file");
    expect_refused({"plan", "-m", temporary_file("cut", header("llama").file().substr(0, 60))},
                   "the GGUF header is damaged or cut");
    std::string many = header("llama").file();
    many[8] = '\x7f';  // says that it has 127 tensors
    expect_refused({"plan", "-m", temporary_file("many", many)}, "the GGUF header is damaged");
}

TEST(ToolErrors, Architecture) {
    const auto plan = [](const GgufWriter& writer) {
        return std::vector<std::string>{"plan", "-m", temporary_file("x.gguf", writer.file())};
    };
    expect_refused(plan(header("mamba2")),
                   "architecture \"mamba2\" keeps no KV cache per token: nothing for Shoal to "
                   "hold. Supported: llama, qwen2, qwen3, gemma3");
    expect_refused(plan(header("gemma2")), "caps its attention logits");
    expect_refused(plan(header("newer")), "is not one that Shoal was tested with");
    expect_refused(plan(GgufWriter()), "names no general.architecture");
    expect_refused(plan(GgufWriter().text("general.architecture", "llama")),
                   "the header has no usable llama.block_count");
    expect_refused(plan(header("llama").number("llama.attention.key_length", 24)),
                   "head_dim = 24: Shoal serves 32 to 256 in steps of 16");
    expect_refused(plan(header("llama").number("llama.attention.value_length", 0)),
                   "llama.attention.value_length = 0");
}

// Of 12 layers two see everything; the others' cache holds window and micro-batch, padded.
TEST(ToolErrors, SlidingLayersTakeAWindow) {
    const auto planned = [](GgufWriter writer) {
        const std::string path = temporary_file("x.gguf", writer.file());
        const Outcome outcome = run_tool({"plan", "-m", path, "-c", "65536", "--json"});
        EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
        return nlohmann::json::parse(outcome.out, nullptr, false);
    };
    const auto gemma = [] { return header("gemma3", 12); };
    const auto whole = planned(gemma());
    const auto sliding = planned(gemma().number("gemma3.attention.sliding_window", 300));
    constexpr uint64_t kRowBytes = 2 * 2 * 64 * 2;  // K and V, 2 heads x 64, f16
    EXPECT_EQ(whole["kv_bytes"], 12 * 65536 * kRowBytes);
    EXPECT_EQ(sliding["kv_bytes"], (2 * 65536 + 10 * 1024) * kRowBytes);
    EXPECT_EQ(sliding["notes"][0],
              "10 of 12 layers slide over 300 tokens: 1,024 slots, served dense");
    const auto zero = planned(gemma().number("gemma3.attention.sliding_window", 0));
    EXPECT_EQ(zero["kv_bytes"], whole["kv_bytes"]);
}

TEST(ToolErrors, WhatShoalDoesNotServe) {
    const std::string model = temporary_file("x.gguf", header("llama").file());
    expect_refused({"run", "-m", model, "-p", "x", "-ctk", "q8_0"},
                   "-ctk q8_0: Shoal keeps rows as f16, bf16 or f32");
    expect_refused({"run", "-m", model, "-p", "x", "-ctv", "q4_0"}, "-ctv q4_0");
    expect_refused({"run", "-m", model, "-p", "x", "-fa", "off"}, "--flash-attn off: Shoal needs");
    expect_refused({"run", "-m", model, "-p", "x", "-nkvo"}, "--no-kv-offload");
    expect_refused({"run", "-m", model, "-p", "x", "-c", "99999999999"}, "-c 99999999999: must be");
    expect_refused({"run", "-m", model, "-p", "x", "-t", "5000"}, "-t 5000: must be 0 to 1024");
}

TEST(ToolErrors, ContextLargerThanMemory) {
    const std::string model = temporary_file("x.gguf", header("llama").file());
    const std::vector<std::string> arguments = {"run", "-m", model, "-p", "x", "-c", "1000000000"};
    const Outcome outcome = run_tool(arguments);
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.err, HasSubstr("-c 1000000000: needs"));
    EXPECT_THAT(outcome.err, HasSubstr("this machine offers"));
    EXPECT_THAT(outcome.err, HasSubstr("Largest context that fits: "));
}

// The model's file is no part of host.kv_bytes: what fits beside a small file fits beside a large
// one as long as the machine holds both.
TEST(ToolErrors, ContextLargerThanTheBudget) {
    const std::string model = temporary_file("x.gguf", header("llama").file());
    expect_refused({"run", "-m", model, "-p", "x", "-c", "1000000", "--host.kv_bytes", "40MiB"},
                   "for the KV cache; host.kv_bytes allows 40.0 MiB. Largest context that fits: ");
    if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
    const Outcome fits = run_tool({"plan", "-m", model_path(), "-c", "2048", "--host.kv_bytes",
                                   "90MiB"});  // less than the file
    EXPECT_EQ(fits.exit_code, 0) << fits.err;
    expect_refused({"run", "-m", model_path(), "-p", "x", "-c", "131072", "--host.kv_bytes",
                    "90MiB"},
                   "host.kv_bytes allows 90.0 MiB. Largest context that fits: 3,584 tokens");
}

TEST(ToolErrors, CutModel) {
    if (!have_model()) GTEST_SKIP() << "no test model: run examples/setup.sh";
    std::ifstream file(model_path(), std::ios::binary);
    std::string head(20'000'000, '\0');
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    const std::string path = temporary_file("cut.gguf", head);
    expect_refused({"plan", "-m", path}, "the file is cut: 20,000,000 of 98,362,432 bytes");
    std::remove(path.c_str());
}

}  // namespace
}  // namespace shoal::tool_test
