// Slot tables on the device: `sets` of them (layers, or requests of a batch one after another).
#pragma once

#include "bench/gpu/cuda.cuh"
#include "bench/gpu/resolve.cuh"

namespace shoal::gpu {

struct ResolveBuffers {
    ResolveBuffers(uint32_t set_count, uint32_t token_count_log2, uint32_t hot_slot_count,
                   uint32_t id_count_per_set)
        : sets(set_count), token_log2(token_count_log2), hot_slots(hot_slot_count),
          id_count(id_count_per_set), step(1), table(size_t{set_count} << token_count_log2),
          owner(size_t{set_count} * hot_slot_count), stamp(owner.count()), hand(set_count),
          ids(size_t{set_count} * id_count), slots(ids.count()), miss_from(ids.count()),
          miss_to(ids.count()), miss_count(set_count) {
        clear();
    }
    void clear() {
        step.fill_bytes(0);
        table.fill_bytes(0xff);
        owner.fill_bytes(0xff);
        stamp.fill_bytes(0);
        hand.fill_bytes(0);
        slots.fill_bytes(0x55);
        miss_count.fill_bytes(0);
    }
    // Of set `first` and those behind it. Without `with_ids`: synthetic ones.
    ResolveArgs args(uint32_t first, bool with_ids, uint32_t synthetic_hits) const {
        ResolveArgs args;
        args.ids = with_ids ? ids.data() : nullptr;
        args.synthetic_hits = synthetic_hits;
        args.id_count = id_count;
        args.token_count_log2 = token_log2;
        args.hot_slot_count = hot_slots;
        args.step = step.data();
        args.table = table.data();
        args.owner = owner.data();
        args.stamp = stamp.data();
        args.hand = hand.data();
        args.slots = slots.data();
        args.miss_from = miss_from.data();
        args.miss_to = miss_to.data();
        args.miss_count = miss_count.data();
        return resolve_request(args, first);
    }
    static void enqueue(const ResolveArgs& args, uint32_t batch, cudaStream_t stream) {
        launch(stream, {batch, kResolveThreads}, resolve<kResolveThreads>, args);
    }
    void enqueue_advance(cudaStream_t stream) const {
        launch(stream, {1, 32}, advance_step<32>, step.data());
    }

    uint32_t sets;
    uint32_t token_log2;
    uint32_t hot_slots;
    uint32_t id_count;
    DeviceArray<uint32_t> step;
    DeviceArray<int32_t> table;
    DeviceArray<int32_t> owner;
    DeviceArray<uint32_t> stamp;
    DeviceArray<uint32_t> hand;
    DeviceArray<int32_t> ids;
    DeviceArray<int32_t> slots;
    DeviceArray<uint32_t> miss_from;
    DeviceArray<uint32_t> miss_to;
    DeviceArray<uint32_t> miss_count;
};

}  // namespace shoal::gpu
