// Configuration: every key there and back, every kind of error, garbage. And statistics as JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <random>

#include <nlohmann/json.hpp>

#include "runtime/config_bytes.hpp"
#include "runtime/config_keys.hpp"
#include "shoal/config.hpp"
#include "shoal/stats.hpp"

namespace shoal {
namespace {

using testing::HasSubstr;

std::string merge_error(const std::string& text) {
    Config config;
    const std::string before = config_to_toml(config);
    const Status status = config_merge_text(text, "shoal.toml", config);
    EXPECT_EQ(before, config_to_toml(config)) << "changed by: " << text;
    return status.message();
}

// Another valid value than the default, as TOML.
std::string other_value(const ConfigKey& key) {
    switch (key.kind) {
        case ConfigKeyKind::choice: {
            const auto text = [](std::string_view choice) {
                const std::string name(choice);
                return std::isdigit(name[0]) ? name : "\"" + name + "\"";
            };
            const std::string last = text(key.choices.back());
            return config_key_text(key, Config{}) != last ? last : text(key.choices.front());
        }
        case ConfigKeyKind::integer:
            return std::to_string(std::max<int64_t>(7, 2 * key.low));
        case ConfigKeyKind::boolean:
            return config_key_text(key, Config{}) == "true" ? "false" : "true";
        case ConfigKeyKind::size: return "\"3GiB\"";
        case ConfigKeyKind::text: return "\"a \\\"b\\\".json\"";
        case ConfigKeyKind::list: return "[2, 5, 9]";
    }
    return "";
}

TEST(Config, EveryKeyIsDocumentedAndRoundTrips) {
    for (const ConfigKey& key : config_keys()) {
        SCOPED_TRACE(key.name);
        EXPECT_FALSE(key.doc.empty());
        EXPECT_FALSE(key.doc.ends_with('.'));
        EXPECT_FALSE(config_section_doc(key.section()).empty());
        const std::string value = other_value(key);
        const std::string toml =
            "[" + std::string(key.section()) + "]\n" + std::string(key.leaf()) + " = " + value;
        Config from_file;
        ASSERT_EQ(config_merge_text(toml, "shoal.toml", from_file).message(), "");
        EXPECT_EQ(config_key_text(key, from_file), value);
        EXPECT_NE(config_key_text(key, Config{}), value) << "the test needs another value";
        Config from_flag;
        ASSERT_EQ(config_set(key.name, value, ConfigOrigin::flag, "", from_flag).message(), "");
        EXPECT_EQ(config_to_toml(from_flag), config_to_toml(from_file));
        Config again;
        ASSERT_EQ(config_merge_text(config_to_toml(from_file), "x", again).message(), "");
        EXPECT_EQ(config_to_toml(again), config_to_toml(from_file));
    }
}

TEST(Config, EveryKeyIsReadFromJson) {
    for (const ConfigKey& key : config_keys()) {
        SCOPED_TRACE(key.name);
        const std::string value = other_value(key);
        Config from_json;
        const std::string json = "{\"" + std::string(key.section()) + "\": {\"" +
                                 std::string(key.leaf()) + "\": " + value + "}}";
        ASSERT_EQ(config_merge_text(json, "shoal.json", from_json).message(), "");
        EXPECT_EQ(config_key_text(key, from_json), value);
    }
}

TEST(Config, DefaultsAreThoseOfTheStruct) {
    const Config config;
    EXPECT_TRUE(config_check(config).is_ok());
    EXPECT_EQ(config_settings(config).size(), config_keys().size());
    Config parsed;
    EXPECT_TRUE(config_merge_text("", "empty", parsed).is_ok());
    EXPECT_EQ(config_to_toml(parsed), config_to_toml(config));
}

struct ErrorCase {
    const char* text;
    const char* message;
};
void PrintTo(const ErrorCase& c, std::ostream* out) { *out << c.text; }

class ConfigErrorTest : public testing::TestWithParam<ErrorCase> {};

TEST_P(ConfigErrorTest, SaysPlaceValueAndWhatIsAllowed) {
    EXPECT_THAT(merge_error(GetParam().text), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Toml, ConfigErrorTest,
    testing::Values(
        ErrorCase{"\n\n[budget]\n  rows = 0",
                  "shoal.toml:4:3: budget.rows = 0: must be 1 or more (or set selector.kind = "
                  "\"dense\" to attend everything)"},
        ErrorCase{"[budget]\nrows = -5", "shoal.toml:2:1: budget.rows = -5: must be 1 or more"},
        ErrorCase{"[budget]\nrows = 99999999999", "budget.rows = 99999999999: must be at most"},
        ErrorCase{"[budget]\nrows = \"many\"",
                  "shoal.toml:2:1: budget.rows = \"many\": must be a whole number, 1 or more"},
        ErrorCase{"[budget]\nrows = 1.5", "budget.rows = 1.5: must be a whole number"},
        ErrorCase{"[budget]\nrows = true", "budget.rows = true: must be a whole number"},
        ErrorCase{"[budget]\nsparse_queries_max = 65", "65: must be at most 64"},
        ErrorCase{"[budget]\nsparse_queries_max = 0", "0: must be 1 to 64"},
        ErrorCase{"budget.rows = 0", "shoal.toml:1:8: budget.rows = 0"},
        ErrorCase{"[budget]\nrow = 5",
                  "shoal.toml:2:1: budget.row: unknown key (did you mean budget.rows?)"},
        ErrorCase{"[selector]\nrows = 5", "selector.rows: unknown key (did you mean budget.rows?)"},
        ErrorCase{"selector = 3", "1:1: selector: must be a section ([selector] has: kind, "},
        ErrorCase{"[budget]\nfrobnication = 5", "unknown key ([budget] has: rows, adaptive, "},
        ErrorCase{"[buget]\nrows = 5", "buget.rows: unknown key (did you mean budget.rows?)"},
        ErrorCase{"[buget]\n", "buget: unknown section (did you mean budget?)"},
        ErrorCase{"[budget]\n", ""},
        ErrorCase{"rows = 5", "rows: unknown key (did you mean budget.rows?)"},
        ErrorCase{"zzzzzzzzzz = 5", "unknown section (there are: selector, budget"},
        ErrorCase{"budget = 5", "budget: must be a section ([budget] has: rows"},
        ErrorCase{"[selector]\nkind = \"lables\"",
                  "selector.kind = \"lables\": must be \"labels\", \"dense\", \"recent\", "
                  "\"page_bounds\" or \"hybrid\" (did you mean \"labels\"?)"},
        ErrorCase{"[selector]\nkind = 3", "selector.kind = 3: must be \"labels\""},
        ErrorCase{"[selector]\nlabel_bits = 3", "label_bits = 3: must be \"mixed\", 2, 4, 8 or 16"},
        ErrorCase{"[selector]\npage = 12", "selector.page = 12: must be 4, 8, 16, 32 or 64"},
        ErrorCase{"[selector]\npage = \"wide\"", "\"wide\": must be 4, 8, 16, 32 or 64"},
        ErrorCase{"[sharing]\nkind = \"tide\"", "must be \"layer\", \"head\" or \"tidal\" (did you "
                                                "mean \"tidal\"?)"},
        ErrorCase{"[sharing]\nanchors = 3", "sharing.anchors = 3: must be a list of whole numbers"},
        ErrorCase{"[sharing]\nanchors = [2, 2]", "sharing.anchors = [2, 2]: 2 is there twice"},
        ErrorCase{"[sharing]\nheads = \"map\"", "sharing.heads = \"map\": must be \"shared\" or "
                                                "\"index\""},
        ErrorCase{"[host]\nkv_bytes = 8", "host.kv_bytes = 8: must be a size with a unit"},
        ErrorCase{"[host]\nkv_bytes = \"8\"", "kv_bytes = \"8\": must be a number with a unit"},
        ErrorCase{"[host]\nkv_bytes = \"8 Gigs\"", "must be a number with a unit: KiB"},
        ErrorCase{"[host]\nkv_bytes = \"-1GiB\"", "must not be negative"},
        ErrorCase{"[host]\nkv_bytes = \"101%\"", "at most 100%"},
        ErrorCase{"[host]\nkv_bytes = \"0%\"", "above 0%"},
        ErrorCase{"[host]\nkv_bytes = \"99999999TiB\"", "more than any machine has"},
        ErrorCase{"[host]\npin = 1", "host.pin = 1: must be a truth value, true or false"},
        ErrorCase{"[host]\nthreads = 2000", "must be at most 1024"},
        ErrorCase{"[budget]\ndense_layers = 3", "must be a list of whole numbers"},
        ErrorCase{"[budget]\ndense_layers = [0, \"a\"]", "must be a list of whole numbers"},
        ErrorCase{"[budget]\ndense_layers = [0, -1]", "[0, -1]: each must be 0 or more"},
        ErrorCase{"[budget]\ndense_layers = [4, 4]", "[4, 4]: 4 is there twice"},
        ErrorCase{"[profile]\npath = 7", "profile.path = 7: must be a text in quotes"},
        ErrorCase{"[profile]\ntokens = 10", "profile.tokens = 10: must be 256 to"},
        ErrorCase{"[safety]\nwindow = 0", "must be 1 or more (the current token is always"},
        ErrorCase{"[stats]\nrecall_every = 1979-05-27", "1979-05-27: must be a whole number"},
        ErrorCase{"[budget]\nrows = 1\nrows = 2", "shoal.toml:3:"},
        ErrorCase{"[budget]\nrows = 1\n[budget]\nrows = 2", "shoal.toml:3:"},
        ErrorCase{"[budget\nrows = 1", "shoal.toml:1:"},
        ErrorCase{"[budget]\nrows =", "shoal.toml:2:"},
        ErrorCase{"[budget]\nrows = 1 2", "shoal.toml:2:"},
        ErrorCase{"[a.b.c]\nd = 1", "a.b: unknown key"},
        ErrorCase{"[budget.rows]\nd = 1", "budget.rows = {...}: must be a whole number"},
        ErrorCase{"[[budget]]\nrows = 1", "budget: must be a section ([budget] has: rows"}));

INSTANTIATE_TEST_SUITE_P(
    Json, ConfigErrorTest,
    testing::Values(
        ErrorCase{"{\n \"budget\": {\n  \"rows\": 0}}",
                  "shoal.toml:3:3: budget.rows = 0: must be 1 or more"},
        ErrorCase{"{\"budget\": {\"row\": 1}}",
                  "shoal.toml:1:13: budget.row: unknown key (did you mean budget.rows?)"},
        ErrorCase{"{\"budget\": {\"rows\": 1, \"rows\": 2}}", "1:24: budget.rows: is there twice"},
        ErrorCase{"{\"budget\": {\"rows\": {\"a\": 1}}}", "budget.rows: a table is not a value"},
        ErrorCase{"{\"budget\": {\"rows\": null}}", "budget.rows = null: must be a whole number"},
        ErrorCase{"{\"budget\": {\"dense_layers\": [1, [2]]}}", "1:"},
        ErrorCase{"{\"budget\": {\"dense_layers\": [1, 2.5]}}", "must be a list"},
        ErrorCase{"{\"budget\": {\"rows\": 18446744073709551615}}", "must be a whole number"},
        ErrorCase{"{\"buget\": {}}", "buget: unknown section (did you mean budget?)"},
        ErrorCase{"{\"budget\": {}}", ""},
        ErrorCase{"{\"budget\": {\"rows\": 1}", "shoal.toml:1:"},
        ErrorCase{"{\"budget\": {\"rows\": 1}} x", "shoal.toml:1:"},
        ErrorCase{"{\n\n  \"budget\" 1}", "shoal.toml:3:"}));

TEST(Config, AnErrorLateInTheFileChangesNothing) {
    EXPECT_THAT(merge_error("[budget]\nrows = 5\n[host]\nthreads = -1"), HasSubstr(":4:1:"));
}

TEST(Config, FileErrorsNameTheFile) {
    Config config;
    EXPECT_EQ(config_merge_file("/nonexistent/shoal.toml", config).message(),
              "/nonexistent/shoal.toml: No such file or directory");
    EXPECT_FALSE(config_merge_file("/", config).is_ok());
    const std::string path = testing::TempDir() + "shoal_config_test.toml";
    std::ofstream(path) << "[budget]\nrows = 33\n";
    EXPECT_TRUE(config_merge_file(path, config).is_ok());
    EXPECT_EQ(config.budget.rows, 33U);
    std::remove(path.c_str());
}

TEST(Config, SettingFromFlagsAndEnvironment) {
    Config config;
    EXPECT_TRUE(config_set("selector.kind", "dense", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config_set("budget.dense_layers", "1,2", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config_set("budget.dense_layers", "", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config.budget.dense_layers.empty());
    EXPECT_TRUE(config_set("budget.dense_layers", "[3]", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config_set("host.kv_bytes", "2GiB", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config_set("profile.path", "a b.json", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_TRUE(config_set("selector.label_bits", "4", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_EQ(config.selector.kind, SelectorKind::dense);
    EXPECT_EQ(config.budget.dense_layers, std::vector<uint32_t>{3});
    EXPECT_EQ(config.host.kv_bytes, uint64_t{2} << 30);
    EXPECT_EQ(config.profile.path, "a b.json");
    EXPECT_EQ(config.selector.label_bits, LabelBits::bits4);
    EXPECT_EQ(config_set("budget.rows", "0", ConfigOrigin::environment, "", config).message(),
              "SHOAL_BUDGET_ROWS: budget.rows = 0: must be 1 or more (or set selector.kind = "
              "\"dense\" to attend everything)");
    EXPECT_THAT(config_set("budget.rows", "lots", ConfigOrigin::flag, "--set", config).message(),
                HasSubstr("--set: budget.rows = \"lots\": must be a whole number"));
    EXPECT_THAT(config_set("rows", "1", ConfigOrigin::flag, "", config).message(),
                HasSubstr("did you mean budget.rows?"));
    EXPECT_FALSE(config_set("budget.rows", "1\nrows = 2", ConfigOrigin::flag, "", config).is_ok());
    EXPECT_EQ(config.budget.rows, Config{}.budget.rows);
}

TEST(Config, Bytes) {
    EXPECT_EQ(*config_parse_bytes("8GiB"), uint64_t{8} << 30);
    EXPECT_EQ(*config_parse_bytes("1.5 KiB"), 1536U);
    EXPECT_EQ(*config_parse_bytes("500MB"), 500'000'000U);
    EXPECT_EQ(*config_parse_bytes("0"), 0U);
    EXPECT_EQ(*config_parse_bytes("17B"), 17U);
    EXPECT_GT(*config_parse_bytes("50%"), 1U << 20);
    EXPECT_GT(*config_parse_bytes("100%"), *config_parse_bytes("10%"));
    for (const char* bad :
         {"", "GiB", "8gib", "8 G", "nan%", "infGiB", "0x10KiB", "1e3KiB", "-0%x"}) {
        EXPECT_FALSE(config_parse_bytes(bad).is_ok()) << bad;
    }
    for (const uint64_t bytes : {1ULL, 1000ULL, 1536ULL << 10, 8ULL << 30}) {
        EXPECT_EQ(*config_parse_bytes(config_bytes_text(bytes)), bytes);
    }
}

TEST(Config, CheckFindsWhatAProgramSetWrong) {
    Config config;
    config.budget.rows = 0;
    EXPECT_THAT(config_check(config).message(), HasSubstr("budget.rows = 0: must be 1 or more"));
    config = {};
    config.budget.dense_layers = {5, 5};
    EXPECT_FALSE(config_check(config).is_ok());
    config = {};
    config.selector.page = 12;
    EXPECT_EQ(config_check(config).message(), "selector.page = 12: must be 4, 8, 16, 32 or 64");
}

TEST(Config, SchemaNamesEveryKey) {
    const nlohmann::json schema = nlohmann::json::parse(config_schema());
    EXPECT_EQ(schema["additionalProperties"], false);
    for (const ConfigKey& key : config_keys()) {
        const auto& section = schema["properties"][std::string(key.section())];
        EXPECT_EQ(section["additionalProperties"], false);
        const auto& entry = section["properties"][std::string(key.leaf())];
        EXPECT_TRUE(entry.contains("description")) << key.name;
        EXPECT_TRUE(entry.contains("default")) << key.name;
    }
}

TEST(Config, GarbageIsRefusedNotCrashedOn) {
    std::mt19937 random(7);
    const std::string seed = config_to_toml(Config{});
    const std::string json = "{\"budget\": {\"rows\": 5, \"dense_layers\": [1, 2]}, \"host\": "
                             "{\"kv_bytes\": \"8GiB\", \"pin\": true}}";
    for (int round = 0; round < 4000; ++round) {
        std::string text = round % 2 == 0 ? seed : json;
        const int edits = 1 + static_cast<int>(random() % 8);
        for (int edit = 0; edit < edits; ++edit) {
            const size_t at = random() % text.size();
            switch (random() % 4) {
                case 0: text[at] = static_cast<char>(random()); break;
                case 1: text.erase(at, 1 + random() % 20); break;
                case 2: text.insert(at, 1, "[]{}=\"'.,#\n0"[random() % 12]); break;
                default: text.insert(at, text.substr(random() % text.size(), random() % 30));
            }
            if (text.empty()) text = "x";
        }
        Config config;
        const std::string before = config_to_toml(config);
        const Status status = config_merge_text(text, "garbage", config);
        if (status.is_ok()) {
            EXPECT_TRUE(config_check(config).is_ok()) << text;
        } else {
            EXPECT_EQ(config_to_toml(config), before) << text;
            EXPECT_THAT(status.message(), HasSubstr("garbage:"));
        }
    }
    const std::string deep(100'000, '[');
    EXPECT_FALSE(merge_error("x = " + deep).empty());
    EXPECT_FALSE(merge_error("{\"x\": " + deep).empty());
    EXPECT_FALSE(merge_error(std::string("\0\0\0", 3)).empty());
    EXPECT_FALSE(merge_error(std::string(10'000, 'x') + " = 1").empty());
}

TEST(Stats, JsonIsValidAndHoldsEveryFigure) {
    Stats stats;
    stats.rows_attended = std::numeric_limits<uint64_t>::max();
    stats.mass_recall_sum = std::nan("");
    stats.mass_recall_min = std::numeric_limits<double>::infinity();
    stats.recall_samples = 1;
    const std::string text = stats_to_json(stats);
    const nlohmann::json json = nlohmann::json::parse(text);
    EXPECT_EQ(json["rows_attended"], std::numeric_limits<uint64_t>::max());
    EXPECT_TRUE(json["mass_recall_sum"].is_null());
    EXPECT_TRUE(json["mass_recall_min"].is_null());
    EXPECT_EQ(json["mass_recall_min_layer"], -1);
    EXPECT_EQ(json.size(), 52U);
}

}  // namespace
}  // namespace shoal
