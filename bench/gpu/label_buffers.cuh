// Labels, queries, masks and scores on the device, for the scan and for the captured step.
#pragma once

#include <algorithm>

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/label_scan.cuh"
#include "bench/gpu/memory.cuh"
#include "bench/gpu/reference.hpp"

namespace shoal::gpu {

// Blocks that one scan takes: as many as are resident at once, shared by the requests.
inline uint32_t scan_blocks(const DeviceFacts& device, uint32_t span_count, uint32_t batch) {
    return std::clamp(2 * device.processor_count / batch, 1U, span_count);
}

struct LabelBuffers {
    // Room for `sets` times `batch` x `tokens`, and for what the caches would hold of them.
    LabelBuffers(const Context& context, uint32_t batch, uint32_t tokens, uint32_t sets,
                 cudaStream_t stream)
        : device(context.device), cold_bytes(context.plan.cold_bytes),
          model(make_label_model(batch, kLabelScaleMax, 3)),
          head_bytes(uint64_t{kKvHeads} * model.span_bytes), heads(model.scan_heads),
          queries(model.scan_queries) {
        const uint64_t set = uint64_t{tokens} / kSpanTokens * head_bytes * batch;
        words = DeviceArray<uint32_t>((sets * set + cold_bytes) / head_bytes * head_bytes / 4);
        scores = DeviceArray<float>(size_t{tokens} * batch);
        histogram = DeviceArray<uint32_t>(size_t{batch} * kHistogramBins);
        sums = DeviceArray<float>(size_t{batch} * 4 * device.processor_count * kQueryHeads);
        launch(stream, {8 * device.processor_count, 256}, fill_labels<256>,
               words.data(), words.count(), model.span_bytes / 4, model.parameter_count, 11U);
        SHOAL_CUDA(cudaStreamSynchronize(stream));
        clear();
    }
    void set_masks(uint32_t spans, uint32_t batch) {
        host_masks = make_scan_masks(spans);
        std::vector<ScanMask> all;
        for (uint32_t r = 0; r < batch; ++r) {
            all.insert(all.end(), host_masks.begin(), host_masks.end());
        }
        masks = DeviceArray<ScanMask>(all);
    }
    void clear() {
        histogram.fill_bytes(0);
        scores.fill_bytes(0xff);  // NaN: what is not written shows
    }
    // Different places in the buffer that a scan may be given before labels come from a cache.
    uint32_t set_count(uint32_t spans, uint32_t batch) const {
        const uint64_t set = spans * head_bytes * batch;
        const uint64_t fitting = words.bytes() / set;
        const uint64_t wanted = cold_bytes / set + 2;
        return static_cast<uint32_t>(std::clamp<uint64_t>(wanted, 1, fitting));
    }
    ScanArgs args(uint32_t set, uint32_t spans, uint32_t batch = 0) const {
        ScanArgs args;
        args.heads = heads.data();
        args.queries = queries.data();
        args.spans = reinterpret_cast<const std::byte*>(words.data()) +
                     uint64_t{set} * spans * head_bytes * batch;
        args.masks = masks.data();
        args.span_count = spans;
        args.span_bytes = model.span_bytes;
        args.parameter_count = model.parameter_count;
        args.scores = scores.data();
        args.head_sums = sums.data();
        args.histogram = histogram.data();
        return args;
    }
    dim3 grid(uint32_t spans, uint32_t batch) const {
        return dim3(scan_blocks(device, spans, batch), batch);
    }
    double bytes_of(uint32_t spans) const { return static_cast<double>(spans * head_bytes); }
    // All KV heads of the `at`-th span from the beginning of set 0.
    std::vector<std::byte> download_span(uint64_t first_bytes, uint64_t at) const {
        const std::vector<uint32_t> values =
            words.download((first_bytes + at * head_bytes) / 4, head_bytes / 4);
        std::vector<std::byte> bytes(head_bytes);
        std::memcpy(bytes.data(), values.data(), head_bytes);
        return bytes;
    }

    const DeviceFacts& device;
    uint64_t cold_bytes;
    LabelModel model;
    uint64_t head_bytes;  // one span of all KV heads
    DeviceArray<ScanHead> heads;
    DeviceArray<ScanQuery> queries;
    DeviceArray<uint32_t> words;
    DeviceArray<ScanMask> masks;
    DeviceArray<float> scores;
    DeviceArray<uint32_t> histogram;
    DeviceArray<float> sums;
    std::vector<ScanMask> host_masks;
};

}  // namespace shoal::gpu
