// Profiles with any statistics survive a file, and no damage to the file passes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "calib/profile.hpp"

namespace shoal::calib {
namespace {

class ProfileProperty : public ::testing::Test {
protected:
    void SetUp() override {
        path_ = (std::filesystem::temp_directory_path() /
                 ("shoal_profile_property_" + std::to_string(::getpid()))).string();
    }
    void TearDown() override { std::filesystem::remove(path_); }

    std::string written(const Profile& profile) {
        const Status status = write_profile(path_, profile);
        EXPECT_TRUE(status) << status.message();
        std::ifstream file(path_, std::ios::binary);
        std::ostringstream text;
        text << file.rdbuf();
        return text.str();
    }

    std::string path_;
};

class RandomProfile {
public:
    explicit RandomProfile(uint64_t seed) : random_(seed) {}
    uint64_t below(uint64_t n) { return random_() % n; }

    Profile make(uint32_t layers_max, uint32_t heads = 4) {
        static constexpr uint32_t kDims[] = {32, 48, 64, 80};
        static constexpr uint32_t kRatios[] = {1, 3, 4, 16};
        Profile profile;
        profile.model_fingerprint = text();
        profile.source = text();
        profile.token_count = 1 + (random_() >> (1 + below(63)));
        profile.q_head_count = heads * kRatios[below(4)];
        const uint64_t layers = 1 + below(layers_max);
        for (uint64_t l = 0; l < layers; ++l) {
            LayerProfile& layer = profile.layers.emplace_back();
            if (l > 0 && below(5) == 0) continue;  // keeps no labels
            layer.k_head_dim = kDims[below(4)];
            layer.heads.resize(heads);
            for (ChannelMoments& head : layer.heads) {
                head.key_mean = values(layer.k_head_dim, true);
                head.key_variance = values(layer.k_head_dim, false);
                head.query_square = values(layer.k_head_dim, false);
            }
        }
        if (below(2) == 0) {
            profile.dense_layers.emplace();
            for (uint32_t l = 0; l < layers; ++l) {
                if (below(3) == 0) profile.dense_layers->push_back(l);
            }
        }
        return profile;
    }

private:
    // Any finite float, of any magnitude.
    std::vector<float> values(uint32_t count, bool with_negative) {
        std::vector<float> values(count);
        for (float& value : values) {
            do {
                value = std::bit_cast<float>(static_cast<uint32_t>(random_()));
            } while (!std::isfinite(value));
            if (!with_negative) value = std::fabs(value);
        }
        return values;
    }

    std::string text() {
        static const std::string kParts[] = {"llama", " ", "\"", "\\", "checksum", "\n", "\x01",
                                             "\x7f", "{", "]", ",", "\u00fc", "\U0001f41f", "7"};
        std::string result;
        for (uint64_t i = below(9); i > 0; --i) result += kParts[below(std::size(kParts))];
        return result;
    }

    std::mt19937_64 random_;
};

TEST_F(ProfileProperty, AnyStatisticsSurviveAFile) {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        RandomProfile random(seed);
        const Profile profile = random.make(5);
        const std::string text = written(profile);
        const Result<Profile> read = read_profile(path_);
        ASSERT_TRUE(read) << read.status().message();
        ASSERT_EQ(*read, profile);
        ASSERT_EQ(written(*read), text);
    }
}

// Everything but the last byte, a newline that carries nothing.
TEST_F(ProfileProperty, AnyFlippedByteIsRefused) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
        RandomProfile random(seed);
        const std::string text = written(random.make(1, 1));
        for (size_t at = 0; at + 1 < text.size(); ++at) {
            std::string damaged = text;
            damaged[at] = static_cast<char>(damaged[at] ^ static_cast<char>(1 + random.below(255)));
            const Result<Profile> read = parse_profile(damaged, "p");
            ASSERT_FALSE(read) << "seed " << seed << ", byte " << at << " of " << text.size()
                               << ": " << text[at] << " became " << damaged[at];
            ASSERT_LT(read.status().message().size(), 300U);
        }
    }
}

// Bytes put in, taken out or moved.
TEST_F(ProfileProperty, AnyOtherDamageIsRefused) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
        RandomProfile random(seed);
        const std::string text = written(random.make(2));
        for (int i = 0; i < 500; ++i) {
            std::string damaged = text;
            const size_t at = random.below(text.size() - 1);
            switch (random.below(3)) {
                case 0: damaged.insert(at, 1, static_cast<char>(random.below(256))); break;
                case 1: damaged.erase(at, 1 + random.below(20)); break;
                default: std::swap(damaged[at], damaged[random.below(text.size() - 1)]);
            }
            // Without its last newline a profile is whole.
            if (damaged == text || damaged + "\n" == text) continue;
            ASSERT_FALSE(parse_profile(damaged, "p")) << "seed " << seed << ", damage " << i;
        }
    }
}

}  // namespace
}  // namespace shoal::calib
