// With attention handed to ggml's own kernel, a context through the device answers bit for bit as
// stock llama.cpp does: the rows that Shoal holds are the rows that llama.cpp would.
#include <filesystem>
#include <fstream>
#include <sstream>

#include "llama_support.hpp"

namespace shoal::testing {

namespace {

constexpr size_t kPrefill = 600;  // three micro-batches, the last one short
constexpr size_t kShort = 300;
constexpr size_t kDecoded = 64;

struct Pair {
    Context stock;
    Context shoal;
};

class Identity : public ::testing::Test {
protected:
    Pair make(ContextOptions options = {}) {
        Pair pair{make_context(Engine::stock, options), make_context(Engine::shoal, options)};
        EXPECT_NE(pair.stock, nullptr);
        EXPECT_NE(pair.shoal, nullptr) << plugin().last_error();
        return pair;
    }

    void expect_same(const Pair& pair, const std::vector<llama_token>& tokens, llama_pos first) {
        EXPECT_EQ(count_different(decode(pair.stock.get(), tokens, first, 16),
                                  decode(pair.shoal.get(), tokens, first, 16)),
                  0U);
    }

    void expect_same_singly(const Pair& pair, const std::vector<llama_token>& tokens,
                            llama_pos first) {
        EXPECT_EQ(count_different(decode_singly(pair.stock.get(), tokens, first),
                                  decode_singly(pair.shoal.get(), tokens, first)),
                  0U);
    }

    const std::vector<llama_token> tokens_ = novel_tokens(kPrefill + kDecoded);
    DelegateScope delegate_;
};

struct TypeCase {
    ggml_type type;
    int32_t threads;
};

class IdentityOfTypes : public Identity, public ::testing::WithParamInterface<TypeCase> {};

// Bytes of this process's address space that no one may touch.
size_t inaccessible_bytes() {
    std::ifstream maps("/proc/self/maps");
    size_t sum = 0;
    for (std::string line; std::getline(maps, line);) {
        std::istringstream fields(line);
        size_t begin = 0;
        size_t end = 0;
        char dash = 0;
        std::string access;
        fields >> std::hex >> begin >> dash >> end >> access;
        if (access == "---p") sum += end - begin;
    }
    return sum;
}

}  // namespace

TEST_P(IdentityOfTypes, PrefillAndDecode) {
    const size_t before = inaccessible_bytes();
    ContextOptions options;
    options.type_k = options.type_v = GetParam().type;
    options.threads = GetParam().threads;
    Pair pair = make(options);
    ASSERT_TRUE(pair.stock && pair.shoal);
    expect_same(pair, slice(tokens_, 0, kPrefill), 0);
    expect_same_singly(pair, slice(tokens_, kPrefill, kPrefill + kDecoded), kPrefill);
    // 30 layers x 1,024 slots x K and V of 192 elements, reserved and out of reach all along.
    const size_t kv_bytes = size_t{30} * 1024 * 2 * 192 * ggml_type_size(GetParam().type);
#ifdef SHOAL_SANITIZED
    (void)before;  // the sanitizer's own reservations come and go by terabytes
    EXPECT_GE(inaccessible_bytes(), kv_bytes);
#else
    // Threads' heaps, out of reach as far as they are unused, grow by pages meanwhile.
    constexpr size_t kHeaps = 1 << 20;
    EXPECT_GE(inaccessible_bytes() + kHeaps, before + kv_bytes);
#endif
}

TEST_F(Identity, TailRemovedAndGrownAgain) {
    Pair pair = make();
    ASSERT_TRUE(pair.stock && pair.shoal);
    expect_same(pair, slice(tokens_, 0, kShort), 0);
    const llama_pos cut = 133;
    for (llama_context* context : {pair.stock.get(), pair.shoal.get()}) {
        ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(context), 0, cut, -1));
    }
    // Other tokens than were there, in one batch and singly, past the old end.
    expect_same(pair, slice(tokens_, 300, 300 + 200), cut);
    expect_same_singly(pair, slice(tokens_, 500, 500 + 16), cut + 200);
}

TEST_F(Identity, Cleared) {
    Pair pair = make();
    ASSERT_TRUE(pair.stock && pair.shoal);
    expect_same(pair, slice(tokens_, 0, 100), 0);
    for (llama_context* context : {pair.stock.get(), pair.shoal.get()}) {
        llama_memory_clear(llama_get_memory(context), true);
    }
    expect_same(pair, slice(tokens_, 300, 400), 0);
    expect_same_singly(pair, slice(tokens_, 500, 508), 100);
}

TEST_F(Identity, StateThroughMemory) {
    Pair pair = make();
    ASSERT_TRUE(pair.stock && pair.shoal);
    expect_same(pair, slice(tokens_, 0, kShort), 0);
    std::vector<uint8_t> states[2];
    for (int i = 0; i < 2; ++i) {
        llama_context* context = i == 0 ? pair.stock.get() : pair.shoal.get();
        states[i].resize(llama_state_get_size(context));
        states[i].resize(llama_state_get_data(context, states[i].data(), states[i].size()));
    }
    EXPECT_EQ(states[0], states[1]) << "what the device saves is what stock saves";

    Pair fresh = make();
    ASSERT_TRUE(fresh.stock && fresh.shoal);
    for (llama_context* context : {fresh.stock.get(), fresh.shoal.get()}) {
        ASSERT_EQ(llama_state_set_data(context, states[0].data(), states[0].size()),
                  states[0].size());
    }
    expect_same_singly(fresh, slice(tokens_, kShort, kShort + 16), kShort);

    // One sequence, into a context that holds something else.
    for (llama_context* context : {pair.stock.get(), pair.shoal.get()}) {
        std::vector<uint8_t> sequence(llama_state_seq_get_size(context, 0));
        llama_state_seq_get_data(context, sequence.data(), sequence.size(), 0);
        llama_memory_clear(llama_get_memory(context), true);
        decode(context, slice(tokens_, 0, 40), 0);
        ASSERT_NE(llama_state_seq_set_data(context, sequence.data(), sequence.size(), 0), 0U);
    }
    expect_same_singly(pair, slice(tokens_, kShort, kShort + 8), kShort);
}

TEST_F(Identity, StateThroughFile) {
    Pair pair = make();
    ASSERT_TRUE(pair.stock && pair.shoal);
    expect_same(pair, slice(tokens_, 0, kShort), 0);
    const std::string path = ::testing::TempDir() + "shoal_state.bin";
    const std::vector<llama_token> held = slice(tokens_, 0, kShort);
    ASSERT_TRUE(llama_state_save_file(pair.shoal.get(), path.c_str(), held.data(), held.size()));
    Pair fresh = make();
    ASSERT_TRUE(fresh.stock && fresh.shoal);
    for (llama_context* context : {fresh.stock.get(), fresh.shoal.get()}) {
        std::vector<llama_token> tokens(kShort);
        size_t count = 0;
        ASSERT_TRUE(llama_state_load_file(context, path.c_str(), tokens.data(), tokens.size(),
                                          &count));
        EXPECT_EQ(count, kShort);
    }
    expect_same_singly(fresh, slice(tokens_, kShort, kShort + 16), kShort);
    std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(
    Types, IdentityOfTypes,
    ::testing::Values(TypeCase{GGML_TYPE_F16, 2}, TypeCase{GGML_TYPE_BF16, 1},
                      TypeCase{GGML_TYPE_F32, 1}),
    [](const auto& given) { return ggml_type_name(given.param.type); });

}  // namespace shoal::testing
