#include "kernels/cpu/prefill_call.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cpu/cpu.hpp"
#include "shoal/status.hpp"

namespace shoal::kernels::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = std::numbers::log2e_v<float>;
constexpr float kLn2 = std::numbers::ln2_v<float>;

// A finished row: `max` in units of log2, `values` not yet divided by `sum`.
void store_row(const PrefillCall& call, uint32_t kv_head, uint32_t row, float max, float sum,
               const float* values) {
    const PieceFormat& format = call.in->kv.format;
    const uint32_t query = row / call.in->q_per_kv;
    const uint32_t head = kv_head * call.in->q_per_kv + row % call.in->q_per_kv;
    float* out = call.out->out + query * call.out->out_stride + head * call.out->out_head_stride;
    const float inverse = max == kNone ? 0.0F : 1.0F / sum;
    for (uint32_t c = 0; c < format.v_head_dim; ++c) out[c] = values[c] * inverse;
    if (call.out->lse == nullptr) return;
    const size_t q_head_count = size_t{format.kv_head_count} * call.in->q_per_kv;
    call.out->lse[query * q_head_count + head] =
        max == kNone ? kNone : (max + std::log2(sum)) * kLn2;
}

// States of the parts of one row, in part order, into the first part's place.
void merge_row(const PrefillCall& call, uint32_t kv_head, uint32_t row) {
    const uint32_t v_head_dim = call.in->kv.format.v_head_dim;
    float max = kNone;
    for (uint32_t part = 0; part < call.plan.part_count; ++part) {
        max = std::max(max, call.part_state(part, kv_head, row)[0]);
    }
    float* total = call.part_state(0, kv_head, row);
    for (uint32_t part = 0; part < call.plan.part_count && max != kNone; ++part) {
        const float* state = call.part_state(part, kv_head, row);
        const float factor = std::exp2(state[0] - max);
        if (part == 0) {
            for (uint32_t c = 1; c < v_head_dim + 2; ++c) total[c] *= factor;
        } else {
            for (uint32_t c = 1; c < v_head_dim + 2; ++c) total[c] += factor * state[c];
        }
    }
    store_row(call, kv_head, row, max, total[1], total + 2);
}

void run_item(void* context, uint32_t index, uint32_t worker) {
    prefill_item(make_prefill_item(*static_cast<const PrefillCall*>(context), index, worker));
}

void run_merge(void* context, uint32_t kv_head, uint32_t) {
    const PrefillCall& call = *static_cast<const PrefillCall*>(context);
    for (uint32_t row = 0; row < call.plan.row_count; ++row) merge_row(call, kv_head, row);
}

// Calls body(at, row): `at` in the item's buffers, `row` of the KV head.
template <typename Body>
void for_each_row(const PrefillItem& item, const Body& body) {
    for (uint32_t index = 0; index < item.row_tile_count; ++index) {
        const RowSpan span = item.call->rows_of(item.row_tile(index));
        for (uint32_t r = 0; r < span.count; ++r) {
            body(size_t{index} * kRowTile + r, span.first + r);
        }
    }
}

}  // namespace

RowSpan PrefillCall::rows_of(uint32_t row_tile) const {
    RowSpan span;
    span.first = row_tile * kRowTile;
    span.count = std::min(plan.row_count - span.first, kRowTile);
    span.query_first = span.first / in->q_per_kv;
    span.query_count = (span.first + span.count - 1) / in->q_per_kv - span.query_first + 1;
    return span;
}

float* PrefillCall::part_state(uint32_t part, uint32_t kv_head, uint32_t row) const {
    const PieceFormat& format = in->kv.format;
    const size_t index = (size_t{part} * format.kv_head_count + kv_head) * plan.row_count + row;
    return states + index * state_floats;
}

PrefillItem make_prefill_item(const PrefillCall& call, uint32_t index, uint32_t worker) {
    const PrefillPlan& plan = call.plan;
    PrefillItem item;
    item.call = &call;
    item.group = index % plan.row_groups;
    item.kv_head = index / plan.row_groups % call.in->kv.format.kv_head_count;
    item.part = plan.parts.begin + index / plan.items_per_part;
    while (item.row_tile_count < plan.tiles_per_group() &&
           row_tile_of_group(plan, item.group, item.row_tile_count) < plan.row_tile_count) {
        ++item.row_tile_count;
    }
    const uint32_t part_begin = plan.slot_begin + item.part * plan.part_slots;
    const uint32_t part_end = std::min(part_begin + plan.part_slots, plan.slot_end);
    item.slot_begin = std::max(part_begin, plan.pass.begin);
    item.slot_end = std::min(part_end, plan.pass.end);
    item.begins = item.slot_begin == part_begin;
    item.ends = item.slot_end == part_end;
    float* base = call.workspace + worker * call.layout.worker_floats;
    item.q = base + call.layout.q;
    item.acc = base + call.layout.acc;
    item.max = base + call.layout.max;
    item.sum = base + call.layout.sum;
    item.k_packed = base + call.layout.k_packed;
    item.v_packed = base + call.layout.v_packed;
    item.scores = base + call.layout.scores;
    return item;
}

void load_queries(const PrefillItem& item) {
    const PrefillInput& in = *item.call->in;
    const PieceFormat& format = in.kv.format;
    const float scale = in.scale * kLog2E;
    for (uint32_t index = 0; index < item.row_tile_count; ++index) {
        const RowSpan span = item.call->rows_of(item.row_tile(index));
        for (uint32_t r = 0; r < kRowTile; ++r) {
            float* to = item.q + (size_t{index} * kRowTile + r) * format.k_head_dim;
            if (r >= span.count) {
                std::fill_n(to, format.k_head_dim, 0.0F);
                continue;
            }
            const uint32_t query = (span.first + r) / in.q_per_kv;
            const uint32_t head = item.kv_head * in.q_per_kv + (span.first + r) % in.q_per_kv;
            const float* q = in.q + query * in.q_stride + head * in.q_head_stride;
            for (uint32_t c = 0; c < format.k_head_dim; ++c) to[c] = q[c] * scale;
        }
    }
}

void start_states(const PrefillItem& item) {
    const PrefillCall& call = *item.call;
    const uint32_t v_head_dim = call.in->kv.format.v_head_dim;
    const size_t rows = size_t{item.row_tile_count} * kRowTile;
    std::fill_n(item.max, rows, kNone);
    std::fill_n(item.sum, rows * kLanesMax, 0.0F);
    std::fill_n(item.acc, rows * v_head_dim, 0.0F);
    if (item.begins) return;
    for_each_row(item, [&](size_t at, uint32_t row) {
        const float* state = call.part_state(item.part, item.kv_head, row);
        item.max[at] = state[0];
        std::copy_n(state + 1, kLanesMax, item.sum + at * kLanesMax);
        std::copy_n(state + 1 + kLanesMax, v_head_dim, item.acc + at * v_head_dim);
    });
}

void save_states(const PrefillItem& item) {
    const PrefillCall& call = *item.call;
    const uint32_t v_head_dim = call.in->kv.format.v_head_dim;
    for_each_row(item, [&](size_t at, uint32_t row) {
        float* state = call.part_state(item.part, item.kv_head, row);
        state[0] = item.max[at];
        std::copy_n(item.sum + at * kLanesMax, kLanesMax, state + 1);
        std::copy_n(item.acc + at * v_head_dim, v_head_dim, state + 1 + kLanesMax);
    });
}

void store_results(const PrefillItem& item) {
    const PrefillCall& call = *item.call;
    const uint32_t v_head_dim = call.in->kv.format.v_head_dim;
    for_each_row(item, [&](size_t at, uint32_t row) {
        const float* lanes = item.sum + at * kLanesMax;
        float sum = 0.0F;
        for (uint32_t lane = 0; lane < kLanesMax; ++lane) sum += lanes[lane];
        const float* values = item.acc + at * v_head_dim;
        if (call.plan.part_count == 1) {
            store_row(call, item.kv_head, row, item.max[at], sum, values);
            return;
        }
        float* state = call.part_state(item.part, item.kv_head, row);
        state[0] = item.max[at];
        state[1] = sum;
        std::copy_n(values, v_head_dim, state + 2);
    });
}

void prefill(const PrefillInput& in, const PrefillOutput& out, void* workspace,
             const Executor& executor) {
    if (in.query_count == 0) return;
    const uint32_t threads = executor.thread_count(executor.self);
    PrefillCall call;
    call.in = &in;
    call.out = &out;
    call.plan = plan_prefill(in, threads);
    call.layout = lay_out_prefill(in.kv.format, call.plan.tiles_per_group(), threads,
                                  call.plan.part_count, call.plan.row_count);
    call.workspace = static_cast<float*>(workspace);
    call.states = call.workspace + call.layout.parts;
    call.state_floats = in.kv.format.v_head_dim + 2U;
    if (call.plan.item_count() == 0) return;
    if (!call.plan.is_whole()) {
        SHOAL_ASSERT(out.state != nullptr);
        call.states = static_cast<float*>(out.state);
        call.state_floats = pass_state_floats(in.kv.format.v_head_dim);
    }
    SHOAL_ASSERT(call.plan.tiles_per_group() <= kGroupTilesMax);
    executor.run(executor.self, call.plan.item_count(), run_item, &call);
    if (call.plan.part_count == 1 || !call.plan.ends) return;
    executor.run(executor.self, in.kv.format.kv_head_count, run_merge, &call);
}

}  // namespace shoal::kernels::cpu
