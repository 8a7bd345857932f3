// Scores of every slot of a layer from its labels, for one query each of its 32 heads.
//
// A block takes spans one after another; each of its 8 warps is one KV head. A lane scores 4
// neighbouring slots for 4 query heads: 16 B loads of the codes, integer weights made once a span,
// dp4a. The heads' weights 2^(s - lse) meet in shared memory and are added in head order.
// Bytes: span_bytes a KV head and span, 2,304 for 128 bits of mixed labels (18 B a token).
#pragma once

#include "bench/gpu/plan.hpp"
#include "bench/gpu/scan_format.hpp"
#include "bench/gpu/select.cuh"
#include "bench/gpu/simt.cuh"

namespace shoal::gpu {

inline constexpr uint32_t kScanThreads = kKvHeads * kWarp;

struct ScanArgs {
    const ScanHead* heads = nullptr;     // [kKvHeads]
    const ScanQuery* queries = nullptr;  // [batch, kKvHeads]
    const std::byte* spans = nullptr;    // [batch, span_count, kKvHeads, span_bytes]
    const ScanMask* masks = nullptr;     // [batch, span_count]
    uint32_t span_count = 0;
    uint32_t span_bytes = 0;
    uint32_t parameter_count = 0;        // label_parameter_count()
    float* scores = nullptr;             // [batch, span_count * 128]; -inf: not selectable
    float* head_sums = nullptr;          // [batch, gridDim.x, kQueryHeads] of 2^(s - lse), visible
    uint32_t* histogram = nullptr;       // [batch, kHistogramBins], added to
};

// Where the dwords of lane `lane`'s four slots of one plane begin, in dwords from the codes.
__host__ __device__ inline uint32_t scan_dword(uint32_t lane, uint32_t plane) {
    return ((lane / 4) * kScanPlanes + plane) * 16 + (lane % 4) * 4;
}

enum class ScanCombine : uint8_t { sum, max };

struct LabelScratch {
    ScanHead heads[kKvHeads];
    alignas(16) uint32_t weights[kKvHeads][kScanOpsMax][kQueryPerKv];
    alignas(16) float parts[2][kKvHeads][kSpanTokens];
    uint32_t bins[kHistogramBins];
};

// What a warp reads of one span.
struct ScanLoad {
    uint4 codes[kScanPlanes];
    uint32_t scales;      // two f16
    uint32_t centers;     // two f16
    uint32_t visible;     // bits 0 .. 3: the lane's four slots
    uint32_t selectable;  // bit 0: slot threadIdx.x of the span
};

// A lane's share of its head's query: parameters 2 * lane and 2 * lane + 1.
struct ScanLane {
    float weight[kQueryPerKv][2];
    float q[kQueryPerKv][2];
    float step[kQueryPerKv];
    float lse[kQueryPerKv];
    float half_code;
    uint32_t parameter;  // in the span; kScanParametersMax: none
};

__device__ __forceinline__ ScanLane scan_lane(const ScanHead& head, const ScanQuery& query,
                                              uint32_t lane) {
    ScanLane own;
    const uint32_t op = lane / 2;
    const bool used = op < head.op_count;
    own.parameter = used ? head.op_source[op] * 4 + (lane % 2) * 2 : kScanParametersMax;
    own.half_code = used ? head.half_code[op] : 0.0F;
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        for (uint32_t b = 0; b < 2; ++b) {
            own.weight[g][b] = used ? query.weight[g][2 * lane + b] : 0.0F;
            own.q[g][b] = used ? query.q[g][2 * lane + b] : 0.0F;
        }
        own.step[g] = query.step[g];
        own.lse[g] = query.lse[g];
    }
    return own;
}

__device__ __forceinline__ ScanLoad scan_load(const ScanArgs& args, const std::byte* span,
                                              const ScanMask* mask, const ScanLane& own,
                                              uint32_t lane) {
    ScanLoad load;
    const auto* codes = span + args.parameter_count * 4;
    SHOAL_UNROLL
    for (uint32_t p = 0; p < kScanPlanes; ++p) {
        load.codes[p] =
            load_once(reinterpret_cast<const uint4*>(codes + size_t{scan_dword(lane, p)} * 4));
    }
    // A pair of f16 each: parameters are even here.
    load.scales = 0;
    load.centers = 0;
    if (own.parameter < kScanParametersMax) {
        const auto* pairs = reinterpret_cast<const uint32_t*>(span);
        load.scales = pairs[own.parameter / 2];
        load.centers = pairs[(args.parameter_count + own.parameter) / 2];
    }
    const uint32_t t = threadIdx.x % kSpanTokens;
    load.visible = static_cast<uint32_t>(mask->visible[lane / 16] >> (4 * (lane % 16))) & 15U;
    load.selectable = static_cast<uint32_t>(mask->selectable[t / 64] >> (t % 64)) & 1U;
    return load;
}

// Integer weights of the span into shared memory; returns each query head's constant:
// q . centres, less half the largest codes as the rounded weights count them.
__device__ __forceinline__ float4 scan_weights(const ScanLoad& load, const ScanLane& own,
                                               uint32_t (*weights)[kQueryPerKv], uint32_t lane) {
    float constant[kQueryPerKv] = {0, 0, 0, 0};
    uint32_t packed[kQueryPerKv] = {0, 0, 0, 0};
    SHOAL_UNROLL
    for (uint32_t b = 0; b < 2; ++b) {
        const float scale = half_bits_to_float((load.scales >> (16 * b)) & 0xffffU);
        const float center = half_bits_to_float((load.centers >> (16 * b)) & 0xffffU);
        SHOAL_UNROLL
        for (uint32_t g = 0; g < kQueryPerKv; ++g) {
            const int weight = max(-127, min(127, __float2int_rn(own.weight[g][b] * scale)));
            packed[g] |= (static_cast<uint32_t>(weight) & 255U) << (8 * b);
            constant[g] += own.q[g][b] * center -
                           own.step[g] * own.half_code * static_cast<float>(weight);
        }
    }
    // Lanes 2 j and 2 j + 1 hold the low and the high half of op j.
    auto* halves = reinterpret_cast<uint16_t*>(&weights[lane / 2][0]);
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        halves[2 * g + lane % 2] = static_cast<uint16_t>(packed[g]);
    }
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
            constant[g] += __shfl_xor_sync(kAllLanes, constant[g], flip);
        }
    }
    return make_float4(constant[0], constant[1], constant[2], constant[3]);
}

// dots[t][g]: slot 4 * lane + t, query head g.
__device__ __forceinline__ void scan_dots(const ScanLoad& load, const ScanHead& head,
                                          const uint32_t (*weights)[kQueryPerKv],
                                          int (&dots)[4][kQueryPerKv]) {
    uint32_t op = 0;
    SHOAL_UNROLL
    for (uint32_t p = 0; p < kScanPlanes; ++p) {
        const uint4 c = load.codes[p];
        const uint32_t end = head.plane_end[p];
        for (; op < end; ++op) {
            const ScanOp how = head.ops[op];
            const uint4 w = *reinterpret_cast<const uint4*>(&weights[op][0]);
            const uint32_t x[4] = {__funnelshift_r(c.x, c.x, how.rotate) & how.mask,
                                   __funnelshift_r(c.y, c.y, how.rotate) & how.mask,
                                   __funnelshift_r(c.z, c.z, how.rotate) & how.mask,
                                   __funnelshift_r(c.w, c.w, how.rotate) & how.mask};
            SHOAL_UNROLL
            for (uint32_t t = 0; t < 4; ++t) {
                const int codes = static_cast<int>(x[t]);
                dots[t][0] = __dp4a(codes, static_cast<int>(w.x), dots[t][0]);
                dots[t][1] = __dp4a(codes, static_cast<int>(w.y), dots[t][1]);
                dots[t][2] = __dp4a(codes, static_cast<int>(w.z), dots[t][2]);
                dots[t][3] = __dp4a(codes, static_cast<int>(w.w), dots[t][3]);
            }
        }
    }
}

// Scores of this warp's KV head for the lane's four slots, query heads combined.
template <ScanCombine kCombine>
__device__ __forceinline__ float4 scan_combine(const int (&dots)[4][kQueryPerKv],
                                               const float4& constant, const ScanLane& own,
                                               uint32_t visible, float (&sums)[kQueryPerKv]) {
    const float base[kQueryPerKv] = {constant.x - own.lse[0], constant.y - own.lse[1],
                                     constant.z - own.lse[2], constant.w - own.lse[3]};
    float total[4];
    SHOAL_UNROLL
    for (uint32_t t = 0; t < 4; ++t) {
        const bool is_visible = ((visible >> t) & 1U) != 0;
        float sum = 0.0F;
        float best = -INFINITY;
        SHOAL_UNROLL
        for (uint32_t g = 0; g < kQueryPerKv; ++g) {
            const float s = static_cast<float>(dots[t][g]) * own.step[g] + base[g];
            if (kCombine == ScanCombine::max) {
                best = fmaxf(best, s);
                continue;
            }
            const float weight = exp2_fast(fminf(s, 100.0F));
            sum += weight;
            if (is_visible) sums[g] += weight;
        }
        total[t] = kCombine == ScanCombine::max ? best : sum;
    }
    return make_float4(total[0], total[1], total[2], total[3]);
}

// One score per slot of the span from all heads. Threads 0 .. 127.
template <ScanCombine kCombine, bool kHistogram>
__device__ __forceinline__ void scan_finish_slot(const float (*parts)[kSpanTokens],
                                                 bool selectable, float* scores,
                                                 uint32_t* bins) {
    const uint32_t t = threadIdx.x;
    float score = parts[0][t];
    SHOAL_UNROLL
    for (uint32_t h = 1; h < kKvHeads; ++h) {
        score = kCombine == ScanCombine::max ? fmaxf(score, parts[h][t]) : score + parts[h][t];
    }
    if (!selectable) score = -INFINITY;
    scores[t] = score;
    if (!kHistogram) return;
    const uint32_t key = ordered_key(score);
    if (key > kHiddenKey) atomicAdd(&bins[histogram_bin(key)], 1U);
}

// Grid: (blocks, batch), any number of blocks. Threads: one warp per KV head.
template <ScanCombine kCombine, bool kHistogram>
__global__ void __launch_bounds__(kScanThreads, 2) label_scan(ScanArgs args) {
    SHOAL_SHARED(LabelScratch, scratch);
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t warp = threadIdx.x / kWarp;
    const uint32_t request = blockIdx.y;
    auto* heads = reinterpret_cast<uint32_t*>(scratch.heads);
    for (uint32_t i = threadIdx.x; i < sizeof(scratch.heads) / 4; i += kScanThreads) {
        heads[i] = reinterpret_cast<const uint32_t*>(args.heads)[i];
    }
    if (kHistogram) {
        for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kScanThreads) scratch.bins[b] = 0;
    }
    __syncthreads();
    const ScanHead& head = scratch.heads[warp];
    const ScanLane own = scan_lane(head, args.queries[request * kKvHeads + warp], lane);
    const size_t stride = size_t{kKvHeads} * args.span_bytes;
    const std::byte* spans =
        args.spans + size_t{request} * args.span_count * stride + warp * args.span_bytes;
    const ScanMask* masks = args.masks + size_t{request} * args.span_count;
    float* scores = args.scores + size_t{request} * args.span_count * kSpanTokens;
    float sums[kQueryPerKv] = {0, 0, 0, 0};

    uint32_t span = blockIdx.x;
    ScanLoad next;
    if (span < args.span_count) {
        next = scan_load(args, spans + span * stride, masks + span, own, lane);
    }
    for (uint32_t turn = 0; span < args.span_count; ++turn) {
        const ScanLoad load = next;
        const uint32_t after = span + gridDim.x;
        if (after < args.span_count) {
            next = scan_load(args, spans + after * stride, masks + after, own, lane);
        }
        const float4 constant = scan_weights(load, own, scratch.weights[warp], lane);
        __syncwarp();
        int dots[4][kQueryPerKv] = {};
        scan_dots(load, head, scratch.weights[warp], dots);
        float(*parts)[kSpanTokens] = scratch.parts[turn & 1U];
        *reinterpret_cast<float4*>(&parts[warp][4 * lane]) = scan_combine<kCombine>(
            dots, constant, own, load.visible, sums);
        // Whoever still reads the other half of `parts` comes here before it is written again.
        __syncthreads();
        if (threadIdx.x < kSpanTokens) {
            scan_finish_slot<kCombine, kHistogram>(parts, load.selectable != 0,
                                                   scores + size_t{span} * kSpanTokens,
                                                   scratch.bins);
        }
        span = after;
    }
    SHOAL_UNROLL
    for (uint32_t g = 0; g < kQueryPerKv; ++g) {
        for (uint32_t flip = kWarp / 2; flip > 0; flip /= 2) {
            sums[g] += __shfl_xor_sync(kAllLanes, sums[g], flip);
        }
        if (lane == 0) {
            args.head_sums[(size_t{request} * gridDim.x + blockIdx.x) * kQueryHeads +
                           warp * kQueryPerKv + g] = sums[g];
        }
    }
    if (!kHistogram) return;
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < kHistogramBins; b += kScanThreads) {
        if (scratch.bins[b] != 0) {
            atomicAdd(&args.histogram[size_t{request} * kHistogramBins + b], scratch.bins[b]);
        }
    }
}

}  // namespace shoal::gpu
