// What the select kernel needs on the device, for its own part and for the captured step.
#pragma once

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/select.cuh"

namespace shoal::gpu {

struct SelectBuffers {
    SelectBuffers(uint32_t slot_count_max, uint32_t k_max, uint32_t batch)
        : scores(size_t{slot_count_max} * batch), guess(batch),
          histogram(size_t{batch} * kHistogramBins), candidates(size_t{slot_count_max} * batch),
          part_counts(size_t{select_part_count(slot_count_max)} * batch), arrived(batch),
          slots(size_t{k_max} * batch), result(batch) {
        arrived.fill_bytes(0);
        histogram.fill_bytes(0);
        guess.fill_bytes(0);
    }
    SelectArgs args(uint32_t n, uint32_t k, bool with_histogram) const {
        SelectArgs args;
        args.scores = scores.data();
        args.slot_count = n;
        args.k = k;
        args.histogram = with_histogram ? histogram.data() : nullptr;
        args.guess = guess.data();
        args.candidates = candidates.data();
        args.part_counts = part_counts.data();
        args.arrived = arrived.data();
        args.slots = slots.data();
        args.result = result.data();
        return args;
    }
    void enqueue_select(uint32_t n, uint32_t k, uint32_t batch, bool with_histogram,
                        cudaStream_t stream) const {
        enqueue_select(args(n, k, with_histogram), batch, stream);
    }
    static void enqueue_select(const SelectArgs& args, uint32_t batch, cudaStream_t stream) {
        launch(stream, {dim3(select_part_count(args.slot_count), batch), kSelectThreads},
               select_slots<kSelectThreads>, args);
    }
    void enqueue_count(uint32_t n, uint32_t batch, cudaStream_t stream) const {
        launch(stream, {dim3(select_part_count(n), batch), kSelectThreads},
               count_scores<kSelectThreads>, scores.data(), n, histogram.data());
    }

    DeviceArray<float> scores;
    DeviceArray<float> guess;
    DeviceArray<uint32_t> histogram;
    DeviceArray<uint32_t> candidates;
    DeviceArray<uint32_t> part_counts;
    DeviceArray<uint32_t> arrived;
    DeviceArray<int32_t> slots;
    DeviceArray<SelectResult> result;
};

}  // namespace shoal::gpu
