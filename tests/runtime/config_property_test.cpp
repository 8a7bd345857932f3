// Any valid configuration survives being printed and read, in every form in which it can be given.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "runtime/config_keys.hpp"
#include "shoal/config.hpp"

namespace shoal {
namespace {

class RandomConfig {
public:
    explicit RandomConfig(uint64_t seed) : random_(seed) {}

    uint64_t below(uint64_t n) { return random_() % n; }

    Config make() {
        Config config;
        for (const ConfigKey& key : config_keys()) key.set(config, value(key));
        return config;
    }
    // Some of the keys, in any order.
    std::vector<const ConfigKey*> some_keys() {
        std::vector<const ConfigKey*> keys;
        for (const ConfigKey& key : config_keys()) {
            if (below(2) == 0) keys.push_back(&key);
        }
        std::shuffle(keys.begin(), keys.end(), random_);
        return keys;
    }

private:
    // As ConfigKey::set takes it. Half of the numbers lie at an end of what is allowed.
    ConfigValue value(const ConfigKey& key) {
        switch (key.kind) {
            case ConfigKeyKind::choice: return static_cast<int64_t>(below(key.choices.size()));
            case ConfigKeyKind::integer: return number(key);
            case ConfigKeyKind::boolean: return below(2) == 0;
            case ConfigKeyKind::size:  // of any order of magnitude that a machine has
                return static_cast<int64_t>(below(uint64_t{1} << below(51)) << below(3) * 10 / 2);
            case ConfigKeyKind::text: return text();
            case ConfigKeyKind::list: break;
        }
        std::vector<int64_t> list;
        for (uint64_t i = below(6); i > 0; --i) list.push_back(number(key));
        std::sort(list.begin(), list.end());
        list.erase(std::unique(list.begin(), list.end()), list.end());
        return list;
    }

    int64_t number(const ConfigKey& key) {
        const auto range = static_cast<uint64_t>(key.high - key.low);
        const uint64_t near = below(std::min<uint64_t>(range, 9) + 1);
        switch (below(4)) {
            case 0: return key.low + static_cast<int64_t>(near);
            case 1: return key.high - static_cast<int64_t>(near);
            default: return key.low + static_cast<int64_t>(below(range + 1));
        }
    }

    std::string text() {
        static const std::string kParts[] = {"a", "7", " ", "\"", "\\", "'", "\n", "\r", "\t",
                                             "\x01", "\x1b", "\x7f", "#", "=", "[", "}", "\u00fc",
                                             "\u6df1", "\U0001f41f", "\\u0041", "\"\"\"", "/", "."};
        std::string result;
        for (uint64_t i = below(12); i > 0; --i) result += kParts[below(std::size(kParts))];
        return result;
    }

    std::mt19937_64 random_;
};

void expect_same(const Config& a, const Config& b) {
    for (const ConfigKey& key : config_keys()) {
        ASSERT_EQ(config_value_text(key.get(a)), config_value_text(key.get(b))) << key.name;
    }
}

std::string assignment(const ConfigKey& key, const Config& config) {
    return std::string(key.name) + " = " + config_key_text(key, config) + "\n";
}

TEST(ConfigProperty, AnyConfigurationSurvivesEveryForm) {
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        RandomConfig random(seed);
        const Config config = random.make();
        ASSERT_TRUE(config_check(config)) << config_check(config).message();

        Config from_toml = random.make();
        const Status read = config_merge_text(config_to_toml(config), "all.toml", from_toml);
        ASSERT_TRUE(read) << read.message() << "\n" << config_to_toml(config);
        expect_same(config, from_toml);

        Config from_flags = random.make();
        for (const ConfigKey& key : config_keys()) {
            const std::string text = config_key_text(key, config);
            const Status set = config_set(key.name, text, ConfigOrigin::flag, "", from_flags);
            ASSERT_TRUE(set) << set.message();
        }
        expect_same(config, from_flags);

        std::string json;
        std::string_view section;
        for (const ConfigKey& key : config_keys()) {
            const bool same = key.section() == section;
            if (!same) json += (json.empty() ? "{" : "}, ");
            if (!same) json += "\"" + std::string(key.section()) + "\": {";
            section = key.section();
            json += (same ? ", \"" : "\"") + std::string(key.leaf()) +
                    "\": " + config_key_text(key, config);
        }
        Config from_json = random.make();
        const Status parsed = config_merge_text(json + "}}", "all.json", from_json);
        ASSERT_TRUE(parsed) << parsed.message() << "\n" << json;
        expect_same(config, from_json);
        if (HasFatalFailure()) return;
    }
}

// What a text does not name keeps its value.
TEST(ConfigProperty, SomeKeysInAnyOrder) {
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        RandomConfig random(seed);
        const Config before = random.make();
        const Config given = random.make();
        std::string text;
        Config expected = before;
        for (const ConfigKey* key : random.some_keys()) {
            text += assignment(*key, given);
            if (random.below(3) == 0) text += "\n  # a comment = 7\n";
            key->set(expected, key->get(given));
        }
        Config merged = before;
        const Status status = config_merge_text(text, "some.toml", merged);
        ASSERT_TRUE(status) << status.message() << "\n" << text;
        expect_same(expected, merged);
        if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace shoal
