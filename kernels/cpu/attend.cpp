// Decode attention over a list of slots: tiles of 16 rows, KV heads inside, online max.
//
// Rows lie anywhere, so the time goes into waiting for memory, and prefetching is most of the art
// (L = 32 query / 8 KV heads x 128, 1,024 random rows of 131,072, 2 threads, AVX-512):
//   - while a tile is computed the next one is prefetched into L2, piece by piece in address
//     order, spread evenly over QK and PV;
//   - first, one line of each of its pieces is prefetched at once: the 16 page walks overlap,
//     where one by one each would hold up the pipeline (376 -> 290 us); in a run of slots
//     it would only disturb the hardware's own prefetcher;
//   - entries of the block table are prefetched one tile earlier still.
// Scales of q8 rows go onto the scores and the weights of a tile: codes are used as they are.
// QK, softmax and PV each run over many heads, so that the chain from scores to weights of one
// head hides behind the others. A short tile repeats its last row with weight zero: no other row
// is ever touched.
// Bytes: one read of every piece in the list; states and queries stay in L1 or L2.
// Bench: bench/attend.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/attend_tile-inl.hpp"
#include "kernels/cpu/cpu.hpp"

HWY_BEFORE_NAMESPACE();
namespace shoal::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// KV heads [kv_first, kv_end) of list entries [begin, end).
class Batch {
public:
    Batch(const AttendInput& in, const TileFunctions& functions, uint32_t kv_first,
          uint32_t kv_end, const AttendPartial& out)
        : in_(in), functions_(functions), kv_first_(kv_first), kv_end_(kv_end),
          q_first_(kv_first * in.q_per_kv), q_count_((kv_end - kv_first) * in.q_per_kv),
          out_(out),
          prefetcher_(size_t{kv_first} * in.kv.format.row_stride_bytes,
                      size_t{kv_end - kv_first} * in.kv.format.row_stride_bytes,
                      // QK and PV of each KV head, in four steps, once per four query heads;
                      // and the softmax of every query head.
                      (kv_end - kv_first) *
                          (8 * ((in.q_per_kv + kHeadsAtOnce - 1) / kHeadsAtOnce) +
                           in.q_per_kv)) {
        std::fill_n(&state_.sums[0][0], size_t{q_count_} * kTileRows, 0.0F);
        std::fill_n(state_.max, q_count_, -std::numeric_limits<float>::infinity());
        std::fill_n(out.out + size_t{q_first_} * in.kv.format.v_head_dim,
                    size_t{q_count_} * in.kv.format.v_head_dim, 0.0F);
    }

    void walk(uint32_t begin, uint32_t end) {
        prefetch_block_table(in_, begin + kTileRows, end);
        Tile tile = make_tile(in_, begin, end);
        prefetcher_.start(tile);
        prefetcher_.finish();
        for (uint32_t at = begin; at < end; at += kTileRows) {
            const Tile next = make_tile(in_, at + kTileRows, end);
            prefetch_block_table(in_, at + 2 * kTileRows, end);
            prefetcher_.start(next);
            attend_tile(tile);
            prefetcher_.finish();
            tile = next;
        }
        finish();
    }

private:
    void attend_tile(const Tile& tile) {
        const F32Vec scale = hn::Set(F32Tag(), in_.scale);
        if (tile.scales[0] != nullptr) load_scales(tile, kv_first_, kv_end_, scales_[0]);
        const uint32_t v_head_dim = in_.kv.format.v_head_dim;
        for (uint32_t kv_head = kv_first_; kv_head < kv_end_; ++kv_head) {
            run(functions_.qk, tile, kv_head);
        }
        for (uint32_t g = 0; g < q_count_; ++g) {
            prefetcher_.step();
            softmax_head(weights_[g], tile.count, scale, state_.max[g], state_.sums[g],
                         out_.out + size_t{q_first_ + g} * v_head_dim, v_head_dim);
        }
        for (uint32_t kv_head = kv_first_; kv_head < kv_end_; ++kv_head) {
            run(functions_.pv, tile, kv_head);
        }
    }
    void run(const TileFunction* functions, const Tile& tile, uint32_t kv_head) {
        const PieceFormat& format = in_.kv.format;
        const uint32_t head = kv_head * in_.q_per_kv;
        HeadWork work;
        work.tile = &tile;
        work.k_offset = size_t{kv_head} * format.row_stride_bytes;
        work.v_offset = work.k_offset + format.v_offset_bytes;
        work.k_head_dim = format.k_head_dim;
        work.v_head_dim = format.v_head_dim;
        work.q = in_.q + head * in_.q_head_stride;
        work.q_head_stride = in_.q_head_stride;
        work.out = out_.out + size_t{head} * format.v_head_dim;
        work.weights = weights_[head - q_first_];
        work.scales = scales_[kv_head - kv_first_];
        work.prefetcher = &prefetcher_;
        for (uint32_t g = 0; g < in_.q_per_kv; g += kHeadsAtOnce) {
            functions[std::min(in_.q_per_kv - g, kHeadsAtOnce) - 1](work, g);
        }
    }
    void finish() {
        const F32Tag d;
        for (uint32_t g = 0; g < q_count_; ++g) {
            F32Vec total = hn::Load(d, state_.sums[g]);
            for (uint32_t i = 1; i < kTileVecs; ++i) {
                total = hn::Add(total, hn::Load(d, state_.sums[g] + i * kLanes));
            }
            out_.max[q_first_ + g] = state_.max[g];
            out_.sum[q_first_ + g] = hn::GetLane(hn::SumOfLanes(d, total));
        }
    }

    const AttendInput& in_;
    const TileFunctions& functions_;
    const uint32_t kv_first_;
    const uint32_t kv_end_;
    const uint32_t q_first_;
    const uint32_t q_count_;
    const AttendPartial& out_;
    Prefetcher prefetcher_;
    BatchState state_;
    HWY_ALIGN float weights_[kBatchHeads][kTileRows];
    HWY_ALIGN uint32_t scales_[kBatchHeads][kTileRows];
};

void attend_part_here(const AttendInput& in, uint32_t begin, uint32_t end,
                      const AttendPartial& out) {
    const TileFunctions functions = tile_functions(in.kv.format);
    const uint32_t kv_batch = kBatchHeads / in.q_per_kv;
    for (uint32_t kv = 0; kv < in.kv.format.kv_head_count; kv += kv_batch) {
        const uint32_t kv_end = std::min(kv + kv_batch, in.kv.format.kv_head_count);
        Batch(in, functions, kv, kv_end, out).walk(begin, end);
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace shoal::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shoal::kernels::cpu {

HWY_EXPORT(attend_part_here);
void attend_part(const AttendInput& in, uint32_t begin, uint32_t end, const AttendPartial& out) {
    HWY_DYNAMIC_DISPATCH(attend_part_here)(in, begin, end, out);
}

}  // namespace shoal::kernels::cpu
#endif
