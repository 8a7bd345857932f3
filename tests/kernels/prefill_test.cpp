// Prefill attention against ref: ragged ranges, holes, queries that see nothing.
#include "tests/kernels/support.hpp"
#include "tests/kernels/test_executor.hpp"

namespace shoal::kernels::test {
namespace {

enum class Ranges {
    causal,        // query i sees [0, past + i]
    everything,    // all see [0, past + queries)
    window,        // query i sees the last 100 slots up to its own
    two_stores,    // even queries see one half, odd ones the other, each causal
    holes,         // causal, every third run of 7 slots left out
    ragged,        // lengths and starts at random
    some_nothing,  // causal, but every third query sees nothing
    nothing,
};

struct PrefillCase {
    uint32_t queries = 7;
    uint32_t past = 0;
    Ranges ranges = Ranges::causal;
    uint32_t kv_heads = 2;
    uint32_t q_per_kv = 3;
    uint32_t k_dim = 64;
    uint32_t v_dim = 64;
    DType k = DType::f16;
    DType v = DType::f16;
    uint32_t block_log2 = 4;
    uint32_t padding = 0;       // floats between heads, of q and of the output
    bool lse = true;
    float q_spread = 1.0F;
    float tolerance = 3e-6F;    // of the largest output of a row
};

std::ostream& operator<<(std::ostream& out, const PrefillCase& c) {
    return out << c.queries << " queries after " << c.past << ", ranges "
               << static_cast<int>(c.ranges) << ", " << c.kv_heads << " x " << c.q_per_kv
               << " heads, " << c.k_dim << "/" << c.v_dim << ", " << dtype_name(c.k) << "/"
               << dtype_name(c.v);
}

std::vector<SlotRange> ranges_of(const PrefillCase& c, uint32_t i) {
    const uint32_t end = c.past + i + 1;
    const uint32_t all = c.past + c.queries;
    switch (c.ranges) {
        case Ranges::causal: return {{0, end}};
        case Ranges::everything: return {{0, all}};
        case Ranges::window: return {{end > 100 ? end - 100 : 0, end}};
        case Ranges::two_stores:
            if (i % 2 == 0) return {{0, all / 2 / c.queries * (i + 1) + 1}};
            return {{all / 2 + 1, all / 2 + 1 + (all / 2 - 1) / c.queries * i}};
        case Ranges::holes: {
            std::vector<SlotRange> ranges;
            for (uint32_t at = 0; at < end; at += 21)
                ranges.push_back({at, std::min(at + 14, end)});
            return ranges;
        }
        case Ranges::ragged: {
            const uint32_t begin = (i * 37U) % all;
            const uint32_t middle = begin + (i * 101U) % (all - begin) + 1;
            if (middle + 3 >= all) return {{begin, middle}};
            return {{begin, middle}, {middle + 2, all}};
        }
        case Ranges::some_nothing:
            if (i % 3 == 0) return {};
            return {{0, end}};
        case Ranges::nothing: return {};
    }
    return {};
}

struct PrefillFixture {
    explicit PrefillFixture(const PrefillCase& c)
        : rows(make_piece_format(c.kv_heads, c.k_dim, c.v_dim, c.k, c.v), c.past + c.queries + 70,
               c.block_log2),
          q(random_normal(size_t{c.queries} * c.kv_heads * c.q_per_kv * (c.k_dim + c.padding), 9,
                          c.q_spread)) {
        std::vector<bool> seen(rows.slot_count());
        for (uint32_t i = 0; i < c.queries; ++i) {
            offsets.push_back(static_cast<uint32_t>(ranges.size()));
            for (const SlotRange& range : ranges_of(c, i)) {
                if (range.begin >= range.end) continue;
                ranges.push_back(range);
                for (uint32_t slot = range.begin; slot < range.end; ++slot) seen[slot] = true;
            }
        }
        offsets.push_back(static_cast<uint32_t>(ranges.size()));
        for (uint32_t slot = 0; slot < seen.size(); ++slot) {
            if (seen[slot]) rows.fill(slot, 1, 5);  // the others stay NaN
        }
        heads = c.kv_heads * c.q_per_kv;
        head_stride = c.v_dim + c.padding;
        in.kv = rows.view();
        in.q = q.data();
        in.q_head_stride = c.k_dim + c.padding;
        in.q_stride = heads * in.q_head_stride;
        in.query_count = c.queries;
        in.q_per_kv = c.q_per_kv;
        in.ranges = ranges.data();
        in.range_offsets = offsets.data();
        in.scale = 1.0F / std::sqrt(static_cast<float>(c.k_dim));
    }

    TestRows rows;
    std::vector<float> q;
    std::vector<SlotRange> ranges;
    std::vector<uint32_t> offsets;
    uint32_t heads = 0;
    size_t head_stride = 0;
    PrefillInput in;
};

struct PrefillResult {
    std::vector<float> out;
    std::vector<float> lse;
};

PrefillResult run_prefill(const Backend& backend, const PrefillFixture& f, uint32_t threads,
                          bool with_lse = true) {
    Guarded<float> out(f.in.query_count * f.heads * f.head_stride, 0);
    Guarded<float> lse(size_t{f.in.query_count} * f.heads);
    Guarded<std::byte> workspace(prefill_workspace_bytes(f.in.kv.format, f.in.q_per_kv,
                                                         f.in.query_count, threads));
    TestExecutor executor(threads);
    backend.prefill(f.in,
                    {out.data(), f.heads * f.head_stride, f.head_stride,
                     with_lse ? lse.data() : nullptr},
                    workspace.data(), executor.get());
    EXPECT_TRUE(out.intact());
    EXPECT_TRUE(lse.intact());
    EXPECT_TRUE(workspace.intact());
    return {{out.data(), out.data() + f.in.query_count * f.heads * f.head_stride},
            {lse.data(), lse.data() + size_t{f.in.query_count} * f.heads}};
}

class PrefillTest : public ::testing::TestWithParam<std::tuple<BackendCase, PrefillCase>> {};

TEST_P(PrefillTest, MatchesRef) {
    const auto& [backend, c] = GetParam();
    const TargetScope scope(backend);
    const PrefillFixture f(c);
    const PrefillResult want = run_prefill(ref_backend(), f, 1);
    const PrefillResult got = run_prefill(*backend.backend, f, 2, c.lse);
    for (size_t row = 0; row < want.lse.size(); ++row) {
        float most = 1e-3F;
        float error = 0.0F;
        for (size_t i = row * f.head_stride; i < (row + 1) * f.head_stride; ++i) {
            ASSERT_TRUE(std::isfinite(got.out[i])) << "row " << row;
            most = std::max(most, std::abs(want.out[i]));
            error = std::max(error, std::abs(got.out[i] - want.out[i]));
        }
        ASSERT_LE(error, c.tolerance * most) << "row " << row;
        if (!c.lse) continue;
        if (std::isinf(want.lse[row])) {
            ASSERT_EQ(got.lse[row], want.lse[row]);
        } else {
            ASSERT_NEAR(got.lse[row], want.lse[row],
                        c.tolerance * (1.0F + std::abs(want.lse[row])));
        }
    }
}

std::vector<PrefillCase> cases() {
    std::vector<PrefillCase> cases;
    for (uint32_t queries : {1, 3, 7, 64, 65}) {
        for (uint32_t past : {0, 1, 127, 300}) cases.push_back({.queries = queries, .past = past});
    }
    cases.push_back({.queries = 512, .kv_heads = 1});
    cases.push_back({.queries = 3, .past = 2500, .kv_heads = 3});
    cases.push_back({.queries = 16, .past = 9000, .kv_heads = 1, .q_per_kv = 4});
    for (Ranges ranges : {Ranges::everything, Ranges::window, Ranges::two_stores, Ranges::holes,
                          Ranges::ragged, Ranges::some_nothing, Ranges::nothing}) {
        cases.push_back({.queries = 3, .past = 1300, .ranges = ranges});
        cases.push_back({.queries = 90, .past = 500, .ranges = ranges});
    }
    for (uint32_t q_per_kv : {1, 2, 4, 5, 8, 16}) {
        cases.push_back({.queries = 30, .past = 50, .q_per_kv = q_per_kv});
    }
    for (uint32_t dim = 32; dim <= 256; dim += 16) {
        cases.push_back({.queries = 20, .past = 150, .kv_heads = 1, .k_dim = dim, .v_dim = dim});
    }
    cases.push_back({.queries = 20, .past = 90, .k_dim = 192, .v_dim = 128});
    cases.push_back({.queries = 20, .past = 90, .k_dim = 48, .v_dim = 112});
    cases.push_back({.queries = 20, .past = 150, .kv_heads = 3, .k_dim = 80, .v_dim = 176,
                     .k = DType::q8, .v = DType::q8});
    for (DType k : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
        for (DType v : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
            cases.push_back({.queries = 20, .past = 90, .k = k, .v = v});
        }
    }
    for (uint32_t log2 = 0; log2 <= 5; ++log2) {
        cases.push_back({.queries = 20, .past = 90, .block_log2 = log2});
    }
    cases.push_back({.queries = 20, .past = 90, .padding = 16});
    cases.push_back({.queries = 20, .past = 90, .padding = 3, .lse = false});
    // Scores of +-1e4: weights are off by what 1e4 rounds to.
    cases.push_back({.queries = 40, .past = 90, .q_spread = 8e3F, .tolerance = 2e-2F});
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Backends, PrefillTest,
                         ::testing::Combine(::testing::ValuesIn(all_backends()),
                                            ::testing::ValuesIn(cases())),
                         [](const auto& instance) {
                             return case_name(std::get<0>(instance.param)) + "_" +
                                    std::to_string(instance.index);
                         });

class PrefillBackendTest : public ::testing::TestWithParam<BackendCase> {};

TEST_P(PrefillBackendTest, ThreadCountDoesNotChangeABit) {
    const TargetScope scope(GetParam());
    for (const PrefillCase& c : {PrefillCase{.queries = 150, .past = 300},
                                 PrefillCase{.queries = 5, .past = 3000},
                                 PrefillCase{.queries = 70, .past = 40, .ranges = Ranges::holes}}) {
        const PrefillFixture f(c);
        const PrefillResult one = run_prefill(*GetParam().backend, f, 1);
        for (uint32_t threads : {2U, 3U, 7U}) {
            const PrefillResult many = run_prefill(*GetParam().backend, f, threads);
            EXPECT_EQ(one.out, many.out) << c << ", " << threads << " threads";
            EXPECT_EQ(one.lse, many.lse) << c << ", " << threads << " threads";
        }
    }
}

// Where the slots are cut into passes.
enum class Cuts {
    every_tile,    // a pass of 128 slots after another
    uneven,        // passes of 128, 256, ... 640 slots
    middle,        // once
    part_ends,     // every 1,024 slots from the first visible tile on
    spare_passes,  // the first and the last pass see nothing
};

std::vector<uint32_t> pass_ends(const PrefillFixture& f, Cuts cuts) {
    uint32_t first = f.rows.slot_count();
    for (const SlotRange& range : f.ranges) first = std::min(first, range.begin);
    first = first / kSpanSlots * kSpanSlots;
    const uint32_t last = f.rows.slot_count();
    std::vector<uint32_t> ends{cuts == Cuts::part_ends ? first : 0};
    if (cuts == Cuts::middle) ends.push_back(last / 2 / kSpanSlots * kSpanSlots);
    if (cuts == Cuts::spare_passes && first > 0) ends.push_back(first);
    for (uint32_t i = 0; cuts == Cuts::every_tile || cuts == Cuts::uneven ||
                         cuts == Cuts::part_ends; ++i) {
        const uint32_t slots = cuts == Cuts::every_tile ? kSpanSlots
                               : cuts == Cuts::uneven   ? (i % 5 + 1) * kSpanSlots
                                                        : 1024;
        if (ends.back() + slots >= last) break;
        ends.push_back(ends.back() + slots);
    }
    ends.push_back(last);
    if (cuts != Cuts::spare_passes) return ends;
    ends.back() = (last + kSpanSlots - 1) / kSpanSlots * kSpanSlots;
    ends.push_back(UINT32_MAX);
    return ends;
}

// What lies where a pass must not look.
enum class Elsewhere { null_blocks, nan_rows };

// The rows of one pass; those of all other slots are NaN, blocks without any may be null.
struct PassRows {
    PassRows(const TestRows& all, const SlotRange& pass, Elsewhere elsewhere)
        : rows(all.view().format, all.slot_count(), all.view().block_tokens_log2) {
        const KvView& from = all.view();
        const uint32_t end = std::min(pass.end, all.slot_count());
        for (uint32_t slot = pass.begin; slot < end; ++slot) {
            std::memcpy(rows.view().piece(slot), from.piece(slot),
                        from.format.piece_stride_bytes);
            if (from.scales == nullptr) continue;
            std::memcpy(rows.view().scales_of(slot), from.scales_of(slot),
                        from.format.scale_bytes());
        }
        const uint32_t block_tokens = 1U << from.block_tokens_log2;
        for (uint32_t slot = 0, b = 0; slot < all.slot_count(); slot += block_tokens, ++b) {
            const bool touched = slot < pass.end && slot + block_tokens > pass.begin;
            const bool kept = touched || elsewhere == Elsewhere::nan_rows;
            blocks.push_back(kept ? rows.view().blocks[b] : nullptr);
        }
        view = KvView{from.format, blocks.data(), from.block_tokens_log2, rows.view().scales};
    }
    TestRows rows;
    std::vector<std::byte*> blocks;
    KvView view;
};

// As run_prefill, in passes, each with other threads and a workspace of its own.
PrefillResult run_passes(const Backend& backend, const PrefillFixture& f,
                         const std::vector<uint32_t>& ends, Elsewhere elsewhere) {
    const size_t out_floats = f.in.query_count * f.heads * f.head_stride;
    Guarded<float> out(out_floats, 0);
    Guarded<float> lse(size_t{f.in.query_count} * f.heads);
    Guarded<std::byte> state(
        prefill_state_bytes(f.in.kv.format, f.in.q_per_kv, f.in.query_count));
    for (size_t pass = 0; pass + 1 < ends.size(); ++pass) {
        const auto threads = static_cast<uint32_t>(pass % 3 + 1);
        Guarded<std::byte> workspace(prefill_workspace_bytes(f.in.kv.format, f.in.q_per_kv,
                                                             f.in.query_count, threads));
        TestExecutor executor(threads);
        PrefillInput in = f.in;
        in.pass = {ends[pass], ends[pass + 1]};
        const PassRows rows(f.rows, in.pass, elsewhere);
        in.kv = rows.view;
        backend.prefill(in,
                        {out.data(), f.heads * f.head_stride, f.head_stride, lse.data(),
                         state.data()},
                        workspace.data(), executor.get());
        EXPECT_TRUE(workspace.intact());
        EXPECT_TRUE(state.intact());
    }
    EXPECT_TRUE(out.intact());
    EXPECT_TRUE(lse.intact());
    return {{out.data(), out.data() + out_floats},
            {lse.data(), lse.data() + size_t{f.in.query_count} * f.heads}};
}

std::vector<PrefillCase> pass_cases() {
    std::vector<PrefillCase> cases{{.queries = 150, .past = 300},
                                   {.queries = 1, .past = 127},
                                   {.queries = 5, .past = 3000, .kv_heads = 1},
                                   {.queries = 2, .past = 9000, .kv_heads = 1},
                                   {.queries = 600, .past = 70, .kv_heads = 1, .q_per_kv = 4,
                                    .k_dim = 32, .v_dim = 32}};
    for (Ranges ranges : {Ranges::everything, Ranges::window, Ranges::two_stores, Ranges::holes,
                          Ranges::ragged, Ranges::some_nothing, Ranges::nothing}) {
        cases.push_back({.queries = 3, .past = 1300, .ranges = ranges});
        cases.push_back({.queries = 80, .past = 500, .ranges = ranges, .kv_heads = 1});
    }
    for (uint32_t q_per_kv : {1, 2, 5, 16}) {
        cases.push_back({.queries = 20, .past = 300, .kv_heads = 1, .q_per_kv = q_per_kv});
    }
    for (DType dtype : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
        cases.push_back({.queries = 20, .past = 300, .k_dim = 48, .v_dim = 112, .k = dtype,
                         .v = dtype});
    }
    for (uint32_t log2 : {0, 7, 9}) {
        cases.push_back({.queries = 20, .past = 900, .block_log2 = log2});
    }
    cases.push_back({.queries = 20, .past = 300, .padding = 3});
    return cases;
}

TEST_P(PrefillBackendTest, PassesDoNotChangeABit) {
    const TargetScope scope(GetParam());
    for (const PrefillCase& c : pass_cases()) {
        const PrefillFixture f(c);
        const PrefillResult whole = run_prefill(*GetParam().backend, f, 2);
        for (const auto& [cuts, elsewhere] :
             {std::pair{Cuts::every_tile, Elsewhere::null_blocks},
              std::pair{Cuts::uneven, Elsewhere::nan_rows},
              std::pair{Cuts::uneven, Elsewhere::null_blocks},
              std::pair{Cuts::middle, Elsewhere::null_blocks},
              std::pair{Cuts::part_ends, Elsewhere::null_blocks},
              std::pair{Cuts::spare_passes, Elsewhere::null_blocks}}) {
            const PrefillResult cut =
                run_passes(*GetParam().backend, f, pass_ends(f, cuts), elsewhere);
            EXPECT_EQ(whole.out, cut.out) << c << ", cuts " << static_cast<int>(cuts);
            EXPECT_EQ(whole.lse, cut.lse) << c << ", cuts " << static_cast<int>(cuts);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, PrefillBackendTest, ::testing::ValuesIn(all_backends()),
                         [](const auto& instance) { return case_name(instance.param); });

}  // namespace
}  // namespace shoal::kernels::test
