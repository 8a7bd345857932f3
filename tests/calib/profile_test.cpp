#include "calib/profile.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>

#include "tests/calib/support.hpp"

namespace shoal::calib {
namespace {

namespace fs = std::filesystem;

Profile sample_profile() {
    Profile profile;
    profile.model_fingerprint = "llama 2 layers \"tiny\"";
    profile.source = "a novel, \"checksum\" and \\ ü";
    profile.token_count = 4096;
    profile.q_head_count = 4;
    for (uint32_t l = 0; l < 2; ++l) {
        LayerProfile& layer = profile.layers.emplace_back();
        layer.k_head_dim = 32;
        for (uint32_t h = 0; h < 2; ++h) {
            ChannelMoments& moments = layer.heads.emplace_back();
            moments.key_mean = test::random_values(32, 10 * l + h);
            moments.key_variance = test::random_values(32, 100 + 10 * l + h, 20.0F);
            moments.query_square = test::random_values(32, 200 + 10 * l + h, 1e6F, 1e5F);
        }
    }
    profile.layers[0].heads[0].key_mean[0] = 0.1F;
    profile.layers[0].heads[0].key_mean[1] = std::numeric_limits<float>::denorm_min();
    profile.layers[0].heads[0].key_mean[2] = std::numeric_limits<float>::max();
    profile.layers[0].heads[0].key_mean[3] = -0.0F;
    profile.dense_layers = {0, 1};
    return profile;
}

// A folder of its own for every test.
class ProfileTest : public ::testing::Test {
protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "shoal_profile_XXXXXX").string();
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string path(const std::string& name = "p.json") const { return (folder_ / name).string(); }
    size_t file_count() const {
        return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
    }
    static std::string text_of(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        std::ostringstream text;
        text << file.rdbuf();
        return text.str();
    }
    std::string sample_text() {
        EXPECT_TRUE(write_profile(path("sample.json"), sample_profile()));
        return text_of(path("sample.json"));
    }
    // `text` with the checksum that its content needs.
    static std::string signed_again(std::string text) {
        text.resize(text.rfind("\"checksum\""));
        char tail[64];
        std::snprintf(tail, sizeof(tail), "\"checksum\": \"xxh3:%016llx\"\n}\n",
                      static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
        return text + tail;
    }
    static std::string replaced(std::string text, const std::string& from, const std::string& to) {
        const size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        return text.replace(at, from.size(), to);
    }

    fs::path folder_;
};

TEST_F(ProfileTest, RoundTripIsExact) {
    Profile profile = sample_profile();
    ASSERT_TRUE(write_profile(path(), profile));
    Result<Profile> read = read_profile(path());
    ASSERT_TRUE(read) << read.status().message();
    EXPECT_EQ(*read, profile);
    EXPECT_EQ(file_count(), 1U) << "temporary files left";

    profile.dense_layers.reset();
    profile.model_fingerprint.clear();
    profile.layers[1] = {};
    ASSERT_TRUE(write_profile(path(), profile));
    read = read_profile(path());
    ASSERT_TRUE(read) << read.status().message();
    EXPECT_EQ(*read, profile);
}

TEST_F(ProfileTest, EveryFloatSurvives) {
    std::mt19937 random(1);
    Profile profile = sample_profile();
    for (int round = 0; round < 50; ++round) {
        for (float& value : profile.layers[1].heads[1].key_mean) {
            do {
                value = std::bit_cast<float>(static_cast<uint32_t>(random()));
            } while (!std::isfinite(value));
        }
        ASSERT_TRUE(write_profile(path(), profile));
        const Result<Profile> read = read_profile(path());
        ASSERT_TRUE(read) << read.status().message();
        ASSERT_EQ(*read, profile);
    }
}

TEST_F(ProfileTest, AwkwardDimensions) {
    for (const uint32_t head_dim : {32U, 48U, 80U, 96U, 256U}) {
        ChannelStatistics statistics(test::small_shape(1, 4, 2, head_dim));
        const auto k = test::random_values(size_t{9} * 2 * head_dim, head_dim);
        const auto q = test::random_values(size_t{9} * 4 * head_dim, head_dim + 1);
        statistics.observe_keys({0}, test::make_tensor(k, 9, 2, head_dim).view);
        statistics.observe_queries({0}, test::make_tensor(q, 9, 4, head_dim).view);
        const Profile profile = profile_from(statistics, "model", "text");
        EXPECT_EQ(profile.token_count, 9U);
        EXPECT_EQ(profile.layers[0].heads[1], statistics.moments({0}, 1));
        ASSERT_TRUE(write_profile(path(), profile));
        const Result<Profile> read = read_profile(path());
        ASSERT_TRUE(read) << read.status().message();
        EXPECT_EQ(*read, profile);
        EXPECT_TRUE(check_profile(*read, test::small_shape(1, 4, 2, head_dim), "model"));
    }
}

TEST_F(ProfileTest, ReplacesWholeOrNotAtAll) {
    ASSERT_TRUE(write_profile(path(), sample_profile()));
    const std::string before = text_of(path());
    Profile bad = sample_profile();
    bad.layers[1].heads[0].query_square[31] = std::numeric_limits<float>::quiet_NaN();
    const Status status = write_profile(path(), bad);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_EQ(status.message(), path() + ": layers[1].heads[0].query_square[31] = nan: must be a "
                                         "finite number, 0 or more");
    EXPECT_EQ(text_of(path()), before);
    EXPECT_EQ(file_count(), 1U);

    struct stat info = {};
    ASSERT_EQ(::stat(path().c_str(), &info), 0);
    const mode_t mask = ::umask(0);
    ::umask(mask);
    EXPECT_EQ(info.st_mode & 0777U, 0666U & ~mask) << "readable as any file of this user";
}

TEST_F(ProfileTest, CannotBeWritten) {
    Status status = write_profile(path("missing/p.json"), sample_profile());
    EXPECT_EQ(status.code(), StatusCode::not_found);
    EXPECT_EQ(status.message(),
              path("missing/p.json") + ": cannot create: No such file or directory");

    fs::create_directory(folder_ / "folder");
    status = write_profile(path("folder"), sample_profile());
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_EQ(status.message(), path("folder") + ": is there and not a regular file");
    EXPECT_EQ(file_count(), 1U) << "temporary files left";

    Profile profile = sample_profile();
    profile.source = "\xff";
    status = write_profile(path(), profile);
    EXPECT_EQ(status.code(), StatusCode::invalid_argument);
    EXPECT_EQ(status.message(), path() + ": source = (bytes): must be UTF-8");
}

TEST_F(ProfileTest, CannotBeOpened) {
    Result<Profile> read = read_profile(path("none.json"));
    EXPECT_EQ(read.status().code(), StatusCode::not_found);
    EXPECT_EQ(read.status().message(),
              path("none.json") + ": cannot open profile: No such file or directory");

    read = read_profile(folder_.string());
    EXPECT_EQ(read.status().code(), StatusCode::invalid_argument);
    EXPECT_NE(read.status().message().find("not a regular file"), std::string::npos);

    ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
    read = read_profile(path("pipe"));
    EXPECT_EQ(read.status().code(), StatusCode::invalid_argument);

    std::ofstream(path("large")).close();
    fs::resize_file(path("large"), kProfileBytesMax + 1);
    read = read_profile(path("large"));
    EXPECT_EQ(read.status().code(), StatusCode::invalid_argument);
    EXPECT_EQ(read.status().message(), path("large") + ": size = 67108865 bytes: a profile has at "
                                                       "most 67108864 bytes (64 MiB)");
}

TEST_F(ProfileTest, EveryCutIsFound) {
    const std::string text = sample_text();
    for (size_t length = 0; length + 2 < text.size(); length += 97) {
        const Result<Profile> read = parse_profile(text.substr(0, length), "p");
        ASSERT_FALSE(read) << length;
        EXPECT_EQ(read.status().code(), StatusCode::corrupt);
        EXPECT_NE(read.status().message().find("the file ends too early (it was cut)"),
                  std::string::npos)
            << read.status().message();
    }
    EXPECT_TRUE(parse_profile(text.substr(0, text.size() - 1), "p")) << "only the last newline";
}

TEST_F(ProfileTest, EveryDamagedByteIsFound) {
    const std::string text = sample_text();
    for (size_t at = 0; at < text.size() - 1; at += 13) {
        for (const char damage : {'0', ' ', '\0', '"', '\xff'}) {
            std::string damaged = text;
            if (damaged[at] == damage) continue;
            damaged[at] = damage;
            const Result<Profile> read = parse_profile(damaged, "p");
            ASSERT_FALSE(read) << at;
            EXPECT_TRUE(read.status().code() == StatusCode::corrupt ||
                        read.status().code() == StatusCode::unsupported)
                << read.status().message();
            EXPECT_LT(read.status().message().size(), 300U);
        }
    }
}

TEST_F(ProfileTest, HostileTextIsRefusedCheaply) {
    for (const std::string& text :
         {std::string(1 << 20, '['), std::string(1 << 20, '{'), std::string(1 << 20, '"'),
          std::string("{\"a\":" + std::string(1 << 20, '[') + std::string(1 << 20, ']') + "}"),
          std::string(1 << 20, '1'), std::string("[]"), std::string("null"), std::string("{}"),
          std::string("\xef\xbb\xbf{}"), std::string("{\"format\": 7}"),
          std::string("{\"format\":\"shoal-profile\",\"version\":1,\"\\u0063hecksum\":\"x\"}")}) {
        const Result<Profile> read = parse_profile(text, "p");
        ASSERT_FALSE(read);
        EXPECT_EQ(read.status().code(), StatusCode::corrupt);
        EXPECT_LT(read.status().message().size(), 300U);
    }
}

struct EditCase {
    const char* from;
    const char* to;
    const char* message;  // after "p: "; ends the match
    StatusCode code = StatusCode::corrupt;
};

TEST_F(ProfileTest, EveryWrongFieldIsNamed) {
    const std::string text = sample_text();
    const std::vector<EditCase> cases = {
        {"\"shoal-profile\"", "\"dense\"", "format = \"dense\": must be \"shoal-profile\""},
        {"\"format\"", "\"form\"", "format = absent: must be a string"},
        {"\"version\": 1", "\"version\": 2",
         "version = 2: must be 1: make the profile again with this Shoal", StatusCode::unsupported},
        {"\"version\": 1", "\"version\": \"1\"",
         "version = \"1\": must be a whole number, 0 to 4294967295"},
        {"\"version\": 1", "\"version\": 1, \"extra\": [1,2]",
         "extra = 2 values: no such field; allowed: format, version, model,"},
        {"\"model\": \"llama 2 layers \\\"tiny\\\"\"", "\"model\": {\"a\": 1}",
         "model = an object of 1 fields: must be a string"},
        {"\"source\"", "\"sauce\"", "sauce = \"a novel,"},
        {"\"token_count\": 4096", "\"token_count\": 0", "token_count = 0: must be 1 or more"},
        {"\"token_count\": 4096", "\"token_count\": -1",
         "token_count = -1: must be a whole number, 0 or more"},
        {"\"token_count\": 4096,\n", "", "token_count = absent: must be a whole number, 0 or more"},
        {"\"q_head_count\": 4", "\"q_head_count\": 0", "q_head_count = 0: must be 1 or more"},
        {"\"q_head_count\": 4", "\"q_head_count\": 4294967296",
         "q_head_count = 4294967296: must be a whole number, 0 to 4294967295"},
        {"\"q_head_count\": 4", "\"q_head_count\": 3",
         "layers[0].heads = 2 KV heads: must divide q_head_count = 3, at most 16 to one"},
        {"\"q_head_count\": 4", "\"q_head_count\": 34",
         "layers[0].heads = 2 KV heads: must divide q_head_count = 34, at most 16 to one"},
        {"[0,1]", "[0,2]", "dense_layers[1] = 2: must be less than the number of layers, 2"},
        {"[0,1]", "[1,1]", "dense_layers[1] = 1: must be more than the one before it, 1"},
        {"[0,1]", "[0,1.5]", "dense_layers[1] = 1.5: must be the index of a layer"},
        {"[0,1]", "0", "dense_layers = 0: must be an array of layer indices"},
        {"\"layers\": [", "\"layers\": [7,", "layers[0] = 7: must be an object"},
        {"\"k_head_dim\": 32", "\"k_head_dim\": 33",
         "layers[0].k_head_dim = 33: must be 32 to 256 in steps of 16"},
        {"\"k_head_dim\": 32", "\"k_head_dim\": 48",
         "layers[0].heads[0].key_mean = 32 numbers: must be 48, one per key channel"},
        {"\"k_head_dim\": 32", "\"k_head_dim\": true",
         "layers[0].k_head_dim = true: must be a whole number"},
        {"\"k_head_dim\": 32, \"heads\": [", "\"k_head_dim\": 32, \"heads\": [], \"x\": [",
         "layers[0].x = 2 values: no such field; allowed: k_head_dim, heads"},
        {"\"key_mean\": [0.1", "\"key_mean\": [null",
         "layers[0].heads[0].key_mean[0] = null: must be a finite number"},
        {"\"key_mean\": [0.1", "\"key_mean\": [1e39",
         "layers[0].heads[0].key_mean[0] = inf: must be a finite number"},
        {"\"key_mean\": [0.1,", "\"key_mean\": [",
         "layers[0].heads[0].key_mean = 31 numbers: must be 32, one per key channel"},
        {"\"key_mean\": [0.1", "\"key_mean\": [[0.1]",
         "layers[0].heads[0].key_mean[0] = 1 values: must be a finite number"},
        {"\"key_variance\": [", "\"key_variance\": [-",
         "layers[0].heads[0].key_variance[0] = -"},
        {"\"query_square\"", "\"query_cube\"",
         "layers[0].heads[0].query_cube = 32 values: no such field"},
    };
    for (const EditCase& edit : cases) {
        const Result<Profile> read =
            parse_profile(signed_again(replaced(text, edit.from, edit.to)), "p");
        ASSERT_FALSE(read) << edit.message;
        EXPECT_EQ(read.status().code(), edit.code) << read.status().message();
        const std::string expected = std::string("p: ") + edit.message;
        EXPECT_EQ(read.status().message().substr(0, expected.size()), expected);
    }
}

TEST_F(ProfileTest, SyntaxErrorsNameLineAndColumn) {
    const std::string text = sample_text();
    const auto message = [&](const std::string& from, const std::string& to) {
        return parse_profile(signed_again(replaced(text, from, to)), "p").status().message();
    };
    EXPECT_EQ(message("\"version\": 1", "\"version\": NaN"),
              "p:3:12: not valid JSON: the file is damaged or not a profile");
    EXPECT_EQ(message("\"key_mean\": [0.1", "\"key_mean\": [1e999"),
              "p: not valid JSON: number overflow parsing '1e999'");
    EXPECT_EQ(parse_profile("", "p").status().message(),
              "p:1:1: not valid JSON: the file ends too early (it was cut)");
}

TEST_F(ProfileTest, EditedContentFailsTheChecksum) {
    const std::string text = sample_text();
    const std::string edited = replaced(text, "4096", "4097");
    const std::string message = parse_profile(edited, "p").status().message();
    const std::string good = signed_again(edited);
    const std::string stored = text.substr(text.rfind("xxh3:"), 21);
    const std::string needed = good.substr(good.rfind("xxh3:"), 21);
    EXPECT_EQ(message, "p: checksum = \"" + stored + "\": must end the file as \"" + needed +
                           "\" for this content: the file was damaged or edited");
    EXPECT_TRUE(parse_profile(good, "p"));
    // Nothing may follow what the checksum covers.
    EXPECT_FALSE(parse_profile(text.substr(0, text.size() - 2) + ",\"source\":\"x\"}\n", "p"));
}

struct OtherModelCase {
    std::function<void(ModelShape&)> change;
    const char* message;
};

TEST_F(ProfileTest, AnotherModelIsRefused) {
    const Profile profile = sample_profile();
    const std::string name = profile.model_fingerprint;
    EXPECT_TRUE(check_profile(profile, test::small_shape(), name));
    EXPECT_TRUE(check_profile(profile, test::small_shape(), "")) << "not known: shapes decide";
    EXPECT_EQ(check_profile(profile, test::small_shape(), "other").message(),
              "profile of another model: model = \"llama 2 layers \"tiny\"\": this model has "
              "\"other\"");
    const std::vector<OtherModelCase> cases = {
        {[](ModelShape& s) { s.q_head_count = 8; }, "q_head_count = 4: this model has 8"},
        {[](ModelShape& s) { s.layers.pop_back(); }, "layer count = 2: this model has 1"},
        {[](ModelShape& s) { s.layers[1].kv_head_count = 1; },
         "layers[1].kv_head_count = 2: this model has 1"},
        {[](ModelShape& s) { s.layers[0].k_head_dim = 64; },
         "layers[0].k_head_dim = 32: this model has 64"},
        {[](ModelShape& s) { s.layers[1].kind = LayerKind::sliding; },
         "layers[1].kv_head_count = 2: this model has 0"},
    };
    for (const OtherModelCase& other : cases) {
        ModelShape shape = test::small_shape();
        other.change(shape);
        const Status status = check_profile(profile, shape, name);
        EXPECT_EQ(status.code(), StatusCode::invalid_argument);
        EXPECT_EQ(status.message(), std::string("profile of another model: ") + other.message);
    }
}

// A rename would put a file in the place of a device or of a link.
TEST_F(ProfileTest, WritesThroughLinksAndOverNothingButFiles) {
    const Status device = write_profile("/dev/null", sample_profile());
    EXPECT_EQ(device.message(), "/dev/null: is there and not a regular file");
    struct stat info = {};
    ASSERT_EQ(::stat("/dev/null", &info), 0);
    EXPECT_TRUE(S_ISCHR(info.st_mode));

    ASSERT_TRUE(write_profile(path("target.json"), sample_profile()));
    ASSERT_EQ(::chmod(path("target.json").c_str(), 0600), 0);
    fs::create_symlink(path("target.json"), path("link.json"));
    Profile other = sample_profile();
    other.source = "another text";
    ASSERT_TRUE(write_profile(path("link.json"), other));
    EXPECT_TRUE(fs::is_symlink(path("link.json")));
    EXPECT_NE(text_of(path("target.json")).find("another text"), std::string::npos);
    ASSERT_EQ(::stat(path("target.json").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
}

}  // namespace
}  // namespace shoal::calib
