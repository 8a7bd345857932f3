// Queries, states and outputs of the attention kernel on the device.
#pragma once

#include <cmath>

#include "bench/gpu/attend.cuh"
#include "bench/gpu/cuda.cuh"
#include "bench/gpu/reference.hpp"

namespace shoal::gpu {

inline float attend_scale() { return 1.0F / std::sqrt(static_cast<float>(kHeadDim)); }

struct AttendBuffers {
    AttendBuffers(const DeviceFacts& facts, uint32_t batch_count, uint32_t row_count)
        : batch(batch_count), rows(row_count),
          rows_per_split(attend_rows_per_split(row_count, batch_count, facts.processor_count)),
          splits(attend_split_count(row_count, rows_per_split)),
          host_q(make_queries(batch_count, 4)), q(host_q),
          state(size_t{batch} * kQueryHeads * splits * 2),
          partial(size_t{batch} * kQueryHeads * splits * kHeadDim),
          arrived(size_t{batch} * kKvHeads), out(size_t{batch} * kQueryHeads * kHeadDim),
          lse(size_t{batch} * kQueryHeads) {
        arrived.fill_bytes(0);
        out.fill_bytes(0xff);
    }
    void enqueue(const std::byte* hot, uint32_t hot_slots, const int32_t* slots,
                 cudaStream_t stream) const {
        AttendArgs args;
        args.rows = hot;
        args.hot_slot_count = hot_slots;
        args.slots = slots;
        args.row_count = rows;
        args.rows_per_split = rows_per_split;
        args.q = q.data();
        args.scale_log2 = attend_scale() * 1.44269504F;
        args.state = state.data();
        args.partial = partial.data();
        args.arrived = arrived.data();
        args.out = out.data();
        args.lse = lse.data();
        launch(stream, {dim3(splits, batch * kKvHeads), kAttendThreads}, attend<kAttendThreads>,
               args);
    }
    // Error of request `r` against kernels/ref over `pieces`: outputs, and log-sum-exp.
    struct Error {
        double out;
        double lse;
        bool acceptable() const { return out < 1e-4 && lse < 1e-3; }
        std::string text() const {
            return "outputs " + std::to_string(out) + ", lse " + std::to_string(lse);
        }
    };
    Error compare(uint32_t r, const std::vector<std::byte*>& pieces) const {
        std::vector<float> want(size_t{kQueryHeads} * kHeadDim), want_lse(kQueryHeads);
        attend_reference(pieces, &host_q[size_t{r} * want.size()], attend_scale(), want.data(),
                         want_lse.data());
        const std::vector<float> got = out.download(r * want.size(), want.size());
        const std::vector<float> got_lse = lse.download(size_t{r} * kQueryHeads, kQueryHeads);
        return {relative_error(got.data(), want.data(), want.size()),
                relative_error(got_lse.data(), want_lse.data(), kQueryHeads)};
    }

    uint32_t batch;
    uint32_t rows;
    uint32_t rows_per_split;
    uint32_t splits;
    std::vector<float> host_q;
    DeviceArray<float> q;
    DeviceArray<float> state;
    DeviceArray<float> partial;
    DeviceArray<uint32_t> arrived;
    DeviceArray<float> out;
    DeviceArray<float> lse;
};

}  // namespace shoal::gpu
