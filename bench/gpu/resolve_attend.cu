// Slot lookup with replacement, and attention over the slots it gives.
#include <algorithm>

#include "bench/gpu/attend_buffers.cuh"
#include "bench/gpu/limits.cuh"
#include "bench/gpu/parts.hpp"
#include "bench/gpu/resolve_buffers.cuh"

namespace shoal::gpu {
namespace {

// Ids that move on by a fifth a step, against the model, for several steps.
void check_resolve(Context& context, ResolveBuffers& buffers, uint32_t batch,
                   cudaStream_t stream) {
    const uint32_t k = buffers.id_count;
    std::vector<ResolveModel> models(
        batch, ResolveModel(1U << buffers.token_log2, buffers.hot_slots, kResolveGrace));
    buffers.clear();
    bool same = true;
    for (uint32_t step = 0; step < 6; ++step) {
        std::vector<int32_t> ids;
        for (uint32_t r = 0; r < batch; ++r) {
            for (uint32_t i = 0; i < k; ++i) {
                const uint32_t id = synthetic_id(i, k - k / 5, k, step + r, buffers.token_log2);
                ids.push_back(i % 97 == 5 ? -1 : static_cast<int32_t>(id));
            }
        }
        buffers.ids.upload(ids);
        ResolveBuffers::enqueue(buffers.args(0, true, 0), batch, stream);
        buffers.enqueue_advance(stream);
        SHOAL_CUDA(cudaStreamSynchronize(stream));
        const std::vector<int32_t> got = buffers.slots.download();
        const std::vector<uint32_t> counts = buffers.miss_count.download();
        const std::vector<uint32_t> to = buffers.miss_to.download();
        for (uint32_t r = 0; r < batch; ++r) {
            std::vector<int32_t> slots;
            const std::vector<int32_t> own(&ids[size_t{r} * k], &ids[size_t{r} * k] + k);
            const ResolveModel::Misses misses = models[r].step(own, slots);
            same = same && counts[r] == misses.to.size() &&
                   std::equal(slots.begin(), slots.end(), &got[size_t{r} * k]) &&
                   std::equal(misses.to.begin(), misses.to.end(), &to[size_t{r} * k]);
        }
    }
    context.report.check("resolve, batch " + std::to_string(batch), same, "6 steps");
}

void time_resolve(Context& context, cudaStream_t stream) {
    const uint32_t tokens = context.plan.tokens.back();
    const uint32_t k = context.plan.step_rows;
    for (const uint32_t batch : context.plan.batches) {
        ResolveBuffers buffers(batch, log2_of(tokens), context.plan.step_hot_slots, k);
        check_resolve(context, buffers, batch, stream);
        for (const uint32_t misses : {0U, k / 5, k}) {
            buffers.clear();
            // Steps advance inside: every call resolves ids of its own.
            const Summary us = time_captured(context, stream, context.calls(16),
                                             [&](cudaStream_t s, uint32_t) {
                ResolveBuffers::enqueue(buffers.args(0, false, k - misses), batch, s);
                buffers.enqueue_advance(s);
            });
            const std::vector<uint32_t> counts = buffers.miss_count.download();
            const bool as_meant = std::all_of(counts.begin(), counts.end(),
                                              [&](uint32_t count) { return count == misses; });
            context.report.check("resolve misses as many as meant", as_meant || us.count == 0,
                                 std::to_string(counts[0]) + " of " + std::to_string(misses));
            Row row = make_row("resolve",
                               {{"ids", std::to_string(k)},
                                {"misses", std::to_string(misses)},
                                {"batch", std::to_string(batch)}},
                               us, "us");
            row.note = "with the kernel that ends the step";
            context.add(row);
        }
    }
}

// Hot rows of every request, and different slots for each call until all of them were read: a call
// touches only what it selects, so it is the lists that must differ, not the memory behind them.
struct HotRows {
    HotRows(const Context& context, uint32_t batch, uint32_t slot_count, cudaStream_t stream)
        : slots(slot_count), rows(uint64_t{batch} * slot_count * kPieceBytes / 16) {
        enqueue_fill_rows(context.device, rows.data(), rows.bytes(), 21, stream);
        SHOAL_CUDA(cudaStreamSynchronize(stream));
    }
    const std::byte* data() const { return reinterpret_cast<const std::byte*>(rows.data()); }
    std::vector<uint4> download(uint32_t request, int32_t slot) const {
        const uint64_t at = uint64_t{request} * slots + static_cast<uint32_t>(slot);
        return rows.download(at * (kPieceBytes / 16), kPieceBytes / 16);
    }
    uint32_t slots;  // of one request; a power of 2
    DeviceArray<uint4> rows;
};

// [sets, batch, rows]: no slot of a request in two sets.
std::vector<int32_t> make_slot_sets(uint32_t sets, uint32_t batch, uint32_t rows,
                                    uint32_t slot_count) {
    std::vector<int32_t> slots(size_t{sets} * batch * rows);
    for (uint32_t r = 0; r < batch; ++r) {
        const auto all = make_indices(sets * rows, log2_of(slot_count), Order::random, r);
        for (size_t i = 0; i < all.size(); ++i) {
            slots[(i / rows * batch + r) * rows + i % rows] = static_cast<int32_t>(all[i]);
        }
    }
    return slots;
}

// The slots of one call, with padding among them.
void check_attend(Context& context, const AttendBuffers& buffers, const HotRows& hot,
                  std::vector<int32_t> slots, cudaStream_t stream) {
    for (size_t i = 7; i < slots.size(); i += 61) slots[i] = -1;
    const DeviceArray<int32_t> device_slots(slots);
    buffers.enqueue(hot.data(), hot.slots, device_slots.data(), stream);
    SHOAL_CUDA(cudaStreamSynchronize(stream));
    for (const uint32_t r : {0U, buffers.batch - 1}) {
        std::vector<std::vector<uint4>> rows;
        std::vector<std::byte*> pieces;
        for (uint32_t i = 0; i < buffers.rows; ++i) {
            const int32_t slot = slots[size_t{r} * buffers.rows + i];
            if (slot < 0) continue;
            rows.push_back(hot.download(r, slot));
            pieces.push_back(reinterpret_cast<std::byte*>(rows.back().data()));
        }
        const AttendBuffers::Error error = buffers.compare(r, pieces);
        context.report.check("attend, " + std::to_string(buffers.rows) + " rows, request " +
                                 std::to_string(r) + " of " + std::to_string(buffers.batch),
                             error.acceptable(), error.text());
    }
}

void time_attend(Context& context, double hbm_rate, cudaStream_t stream) {
    for (const uint32_t batch : context.plan.batches) {
        const HotRows hot(context, batch, attend_slots(context.plan, batch), stream);
        for (const uint32_t rows : context.plan.attend_rows) {
            const AttendBuffers buffers(context.device, batch, rows);
            const size_t call = size_t{batch} * rows;
            const uint32_t sets = hot.slots / rows;
            const std::vector<int32_t> slots = make_slot_sets(sets, batch, rows, hot.slots);
            check_attend(context, buffers, hot, {slots.begin(), slots.begin() + call}, stream);
            const DeviceArray<int32_t> device_slots(slots);
            const uint32_t inner = whole_rounds(sets, context.calls(4));
            const Summary us =
                time_captured(context, stream, inner, [&](cudaStream_t s, uint32_t i) {
                    buffers.enqueue(hot.data(), hot.slots, device_slots.data() + i % sets * call,
                                    s);
                });
            const Params params = {{"rows", std::to_string(rows)},
                                   {"batch", std::to_string(batch)},
                                   {"splits", std::to_string(buffers.splits)}};
            const double bytes = static_cast<double>(call) * kPieceBytes;
            context.add(make_row("attend time", params, us, "us"));
            context.add(with_percent(make_row("attend", params, gb_per_s(us, bytes), "GB/s"),
                                     hbm_rate, "hbm read"));
        }
    }
}

}  // namespace

void run_resolve_attend(Context& context) {
    const Stream stream;
    const Summary read = measure_read(context, stream);
    context.add(make_row("hbm read", {}, read, "GB/s"));
    time_resolve(context, stream);
    time_attend(context, read.median, stream);
}

}  // namespace shoal::gpu
