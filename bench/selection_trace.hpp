// Which slots each step attends in each layer, as recorded from a model by bench_llama_trace: a
// file that replays without the model.
//
// Little-endian: the magic, then u32 slot_count (at the first step), layer_count, step_count, rows;
// then for each step and layer, in order, a varint: 0 for a layer that attends all that is visible,
// or 1 + the number of slots, and for each slot, ascending, a varint of
// (distance from the one before) * 4 + rank.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace shoal::bench {

// How good the score of a slot was: 0 in the first quarter of the rows, 1 in the first half, 2 in
// the rest, 3: of the safety set (no score).
struct TraceSlot {
    uint32_t slot = 0;
    uint8_t rank = 0;
};

struct SelectionTrace {
    static constexpr char kMagic[] = "shoal selections 1\n";

    uint32_t slot_count = 0;   // visible in the first step; one more in each after it
    uint32_t layer_count = 0;
    uint32_t step_count = 0;
    uint32_t rows = 0;         // budget.rows when it was recorded
    struct Set {
        bool everything = false;
        std::vector<TraceSlot> slots;  // ascending
    };
    std::vector<Set> sets;     // [step_count, layer_count]

    const Set& set(uint32_t step, uint32_t layer) const {
        return sets[size_t{step} * layer_count + layer];
    }
};

[[noreturn]] inline void trace_failed(const std::string& path, const char* what) {
    std::fprintf(stderr, "%s: %s\n", path.c_str(), what);
    std::exit(1);
}

inline void write_trace(const SelectionTrace& trace, const std::string& path) {
    std::string out = SelectionTrace::kMagic;
    const auto put_u32 = [&out](uint32_t value) {
        for (int i = 0; i < 4; ++i) out += static_cast<char>(value >> (8 * i));
    };
    const auto put = [&out](uint32_t value) {
        for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
        out += static_cast<char>(value);
    };
    for (const uint32_t value : {trace.slot_count, trace.layer_count, trace.step_count,
                                 trace.rows}) {
        put_u32(value);
    }
    for (const SelectionTrace::Set& set : trace.sets) {
        put(set.everything ? 0 : 1 + static_cast<uint32_t>(set.slots.size()));
        uint32_t last = 0;
        for (const TraceSlot& slot : set.slots) {
            put((slot.slot - last) * 4 + slot.rank);
            last = slot.slot;
        }
    }
    std::ofstream file(path, std::ios::binary);
    if (!file.write(out.data(), static_cast<std::streamsize>(out.size()))) {
        trace_failed(path, "could not be written");
    }
}

inline SelectionTrace read_trace(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string in{std::istreambuf_iterator<char>(file), {}};
    const std::string magic = SelectionTrace::kMagic;
    if (in.compare(0, magic.size(), magic) != 0) trace_failed(path, "not a selection trace");
    size_t at = magic.size();
    const auto byte = [&]() -> uint32_t {
        if (at >= in.size()) trace_failed(path, "cut short");
        return static_cast<unsigned char>(in[at++]);
    };
    const auto take_u32 = [&] {
        uint32_t value = 0;
        for (int i = 0; i < 4; ++i) value |= byte() << (8 * i);
        return value;
    };
    const auto take = [&] {
        uint32_t value = 0;
        for (int shift = 0;; shift += 7) {
            const uint32_t next = byte();
            value |= (next & 127) << shift;
            if (next < 128) return value;
            if (shift == 28) trace_failed(path, "a number that is too long");
        }
    };
    SelectionTrace trace;
    trace.slot_count = take_u32();
    trace.layer_count = take_u32();
    trace.step_count = take_u32();
    trace.rows = take_u32();
    for (uint64_t i = 0; i < uint64_t{trace.layer_count} * trace.step_count; ++i) {
        SelectionTrace::Set set;
        const uint32_t count = take();
        set.everything = count == 0;
        uint32_t last = 0;
        for (uint32_t j = 1; j < count; ++j) {
            const uint32_t coded = take();
            last += coded / 4;
            if (last > trace.slot_count + trace.step_count) trace_failed(path, "a wrong slot");
            set.slots.push_back({last, static_cast<uint8_t>(coded % 4)});
        }
        trace.sets.push_back(std::move(set));
    }
    return trace;
}

}  // namespace shoal::bench
