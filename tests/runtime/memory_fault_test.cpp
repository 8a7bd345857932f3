// The system refuses memory in the middle of a step: the call says so, nothing is lost, and the
// same call works once there is memory again.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <numeric>

#include "tests/runtime/session_support.hpp"

namespace {
// How many more stretches of memory are granted; below 0: all.
std::atomic<int> granted{-1};
std::atomic<int> refused{0};
}  // namespace

// Stands in for libc's: an arena asks for memory with MADV_POPULATE_WRITE.
extern "C" int madvise(void* address, size_t length, int advice) noexcept {
    if (advice == MADV_POPULATE_WRITE && granted >= 0 && granted-- == 0) {
        ++refused;
        granted = 0;  // and from now on none
        errno = ENOMEM;
        return -1;
    }
    return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}

namespace shoal {
namespace {

using testing::tensor_of;

constexpr uint32_t kPrompt = 700;  // statistics are known after 256
constexpr uint32_t kSlots = 4096;

// A model of two layers whose labels start in the first attend of a prompt.
class Reader {
public:
    Reader() : shape_(testing::small_model(2)), rows_(7) {
        SessionOptions options;
        options.slots_per_store = kSlots;
        options.queries_per_step_max = kPrompt;
        session_ = std::move(*Session::create(testing::test_config(), shape_, options));
        store_ = *session_->open();
    }

    // Appends n rows to every layer of a new step and draws the queries of its attends.
    void begin(uint32_t n) {
        first_ = count_;
        count_ += n;
        const uint32_t offsets[2] = {0, n};
        ASSERT_TRUE(session_->begin_step({{&store_, 1}, offsets, {}, {}, {}}));
        queries_.clear();
        for (uint32_t l = 0; l < 2; ++l) {
            const LayerShape& s = shape_.layers[l];
            const auto k = rows_.make(n, s.kv_head_count, s.k_head_dim);
            const auto v = rows_.make(n, s.kv_head_count, s.v_head_dim);
            ASSERT_TRUE(session_->append({l}, tensor_of(k, n, s.kv_head_count, s.k_head_dim),
                                         tensor_of(v, n, s.kv_head_count, s.v_head_dim)));
            queries_.push_back(rows_.make(n, shape_.q_head_count, s.k_head_dim));
        }
    }

    Status attend(uint32_t layer, std::vector<float>& out) {
        const uint32_t n = count_ - first_;
        const uint32_t offsets[2] = {0, n};
        std::vector<uint32_t> range_offsets(n + 1);
        std::iota(range_offsets.begin(), range_offsets.end(), 0U);
        std::vector<SlotRange> ranges;
        for (uint32_t i = 0; i < n; ++i) ranges.push_back({0, first_ + i + 1});
        const uint32_t dim = shape_.layers[layer].v_head_dim;
        out.assign(size_t{n} * shape_.q_head_count * dim, 0.0F);
        const Tensor to{out.data(), n, shape_.q_head_count, dim,
                        size_t{shape_.q_head_count} * dim * 4, size_t{dim} * 4};
        return session_->attend({layer}, tensor_of(queries_[layer], n, shape_.q_head_count, dim),
                                {offsets, range_offsets, ranges, count_}, to, nullptr);
    }

    void end() { ASSERT_TRUE(session_->end_step()); }
    Session& session() { return *session_; }

private:
    ModelShape shape_;
    testing::RandomRows rows_;
    std::unique_ptr<Session> session_;
    StoreId store_;
    uint32_t first_ = 0;
    uint32_t count_ = 0;
    std::vector<std::vector<float>> queries_;
};

// A prompt and three tokens; memory is refused at the given request of the first attend.
std::vector<std::vector<float>> read(int granted_before_refusal) {
    Reader reader;
    std::vector<std::vector<float>> outs;
    for (const uint32_t n : {kPrompt, 1U, 1U, 1U}) {
        reader.begin(n);
        for (uint32_t layer = 0; layer < 2; ++layer) {
            outs.emplace_back();
            const bool tries = n == kPrompt && layer == 0 && granted_before_refusal >= 0;
            if (tries) {
                refused = 0;
                granted = granted_before_refusal;
                const Status status = reader.attend(layer, outs.back());
                granted = -1;
                if (refused == 0) {
                    EXPECT_TRUE(status) << status.message();
                    continue;  // it asked for less than that
                }
                EXPECT_EQ(status.code(), StatusCode::out_of_memory) << status.message();
            }
            const Status status = reader.attend(layer, outs.back());
            EXPECT_TRUE(status) << status.message();
        }
        reader.end();
    }
    EXPECT_GT(reader.session().stats().queries_sparse, 0U);
    return outs;
}

TEST(MemoryFault, LabelsStartAgainWhereMemoryWasRefused) {
    const auto want = read(-1);
    int refusals = 0;
    for (int granted_before = 0; granted_before < 64; ++granted_before) {
        SCOPED_TRACE("refused after " + std::to_string(granted_before));
        ASSERT_EQ(want, read(granted_before));
        if (refused == 0) break;
        ++refusals;
    }
    // The open span's and the labels' of the first layer's group.
    EXPECT_GE(refusals, 2);
    EXPECT_EQ(refused, 0) << "more requests than were tried";
}

}  // namespace
}  // namespace shoal
