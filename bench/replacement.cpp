// Hit rates of replacement policies on a recorded selection trace (bench/llama_trace.cpp,
// bench/selection_trace.hpp), at several sizes of RAM.
//
//   bench_replacement TRACE [BLOCK_TOKENS [WARM_STEPS]]
//
// BLOCK_TOKENS (16): slots in a block. A wave is what a layer attends in a step, in parts that fit
// in RAM: blocks that are there are held, then the others are read in place of blocks that the wave
// does not hold. The first WARM_STEPS (8) are not counted.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>

#include "bench/selection_trace.hpp"
#include "bench/support.hpp"
#include "offload/block_cache.hpp"
#include "offload/memory_tier.hpp"

namespace shoal::bench {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

struct Access {
    uint32_t block = 0;
    uint32_t layer = 0;
    uint8_t rank = 3;       // the best of its slots
    bool everything = false;  // of a layer that attends all
};

struct Wave {
    uint32_t step = 0;
    std::vector<Access> accesses;
};

// Which blocks are in RAM. The cache calls: use() for each block of a wave, when it is in RAM;
// victim() when there is no room, with what the wave holds.
class Policy {
public:
    virtual ~Policy() = default;
    virtual void begin(uint32_t frames, uint32_t blocks) = 0;
    virtual void use(const Access& access, uint32_t step, bool loaded) = 0;
    // A block to give up for `block`, not one for which held() is true; it is gone then.
    virtual uint32_t victim(uint32_t block, const std::vector<char>& held) = 0;
};

// Gives up the block of the lowest key.
class KeyPolicy : public Policy {
public:
    void begin(uint32_t, uint32_t blocks) override {
        keys_.assign(blocks, 0);
        order_.clear();
    }
    void use(const Access& access, uint32_t step, bool loaded) override {
        if (!loaded) order_.erase({keys_[access.block], access.block});
        keys_[access.block] = key(keys_[access.block], access, step, loaded);
        order_.insert({keys_[access.block], access.block});
    }
    uint32_t victim(uint32_t, const std::vector<char>& held) override {
        auto at = order_.begin();
        while (held[at->second] != 0) ++at;
        const uint32_t block = at->second;
        order_.erase(at);
        return block;
    }

protected:
    virtual double key(double before, const Access& access, uint32_t step, bool loaded) = 0;

private:
    std::vector<double> keys_;
    std::set<std::pair<double, uint32_t>> order_;
};

class Lru final : public KeyPolicy {
    double key(double, const Access&, uint32_t, bool) override { return ++now_; }
    double now_ = 0;
};

// A use is worth `worth` by its rank, half as much after `half_life` steps. With a memory, also
// uses before the block was given up.
class Frequency final : public KeyPolicy {
public:
    Frequency(double half_life, bool remembers, std::array<double, 4> worth)
        : half_life_(half_life), remembers_(remembers), worth_(worth) {}

private:
    double key(double before, const Access& access, uint32_t step, bool loaded) override {
        const double gain = worth_[access.rank] * std::exp2(step / half_life_);
        return (loaded && !remembers_ ? 0 : before) + gain;
    }
    double half_life_;
    bool remembers_;
    std::array<double, 4> worth_;
};

// The hand goes round, takes heat from what it passes, and stops at a cold block. `heat_of`: the
// new heat, from that before and the uses that are remembered of the block.
struct ClockRule {
    uint32_t first = 1;          // heat of a block that was read
    uint32_t more = 1;           // with each wave that uses it
    uint32_t most = 7;
    bool everything_is_cold = false;
    uint32_t remembered = 0;     // most uses remembered of a block, halved every 8 steps: its heat
};

class Clock final : public Policy {
public:
    explicit Clock(const ClockRule& rule) : rule_(rule) {}
    void begin(uint32_t frames, uint32_t blocks) override {
        frame_of_.assign(blocks, kNone);
        uses_.assign(blocks, 0);
        halved_.assign(blocks, 0);
        frames_.assign(frames, {});
        filled_ = hand_ = free_ = 0;
    }
    void use(const Access& access, uint32_t step, bool loaded) override {
        uint8_t& uses = uses_[access.block];
        uint32_t& halved = halved_[access.block];
        uses = static_cast<uint8_t>(uses >> std::min(7U, step / 8 - halved));
        halved = step / 8;
        if (uses < rule_.remembered) ++uses;
        if (loaded) {
            frame_of_[access.block] = filled_ < frames_.size() ? filled_++ : free_;
            frames_[frame_of_[access.block]] = {access.block, 0};
        }
        uint32_t& heat = frames_[frame_of_[access.block]].heat;
        if (rule_.everything_is_cold && access.everything) return;
        heat = std::min(rule_.most, loaded ? rule_.first : heat + rule_.more);
        heat = std::max<uint32_t>(heat, uses);
    }
    uint32_t victim(uint32_t, const std::vector<char>& held) override {
        for (;;) {
            const uint32_t index = hand_;
            hand_ = (hand_ + 1) % static_cast<uint32_t>(frames_.size());
            Frame& frame = frames_[index];
            if (held[frame.block] != 0) continue;
            if (frame.heat > 0) {
                --frame.heat;
                continue;
            }
            frame_of_[frame.block] = kNone;
            free_ = index;
            return frame.block;
        }
    }

private:
    struct Frame {
        uint32_t block = 0;
        uint32_t heat = 0;
    };
    const ClockRule rule_;
    std::vector<Frame> frames_;
    std::vector<uint32_t> frame_of_, halved_;
    std::vector<uint8_t> uses_;
    uint32_t filled_ = 0, hand_ = 0, free_ = 0;
};

// Keeps what is used in most steps: of each block, in RAM or not, the share of the last steps (some
// 1 / `gain`) that used it, up to the last step that came to its layer. Of `looked_at` frames in a
// row the one of the lowest share goes; of equal ones the one used last, since its layer comes
// again last.
class Share final : public Policy {
public:
    Share(double gain, uint32_t looked_at, std::array<double, 4> worth, bool remembers = true)
        : gain_(gain), looked_at_(looked_at), worth_(worth), remembers_(remembers) {}
    void begin(uint32_t frames, uint32_t blocks) override {
        frame_of_.assign(blocks, kNone);
        state_.assign(blocks, {});
        layer_step_.clear();
        frames_.assign(frames, kNone);
        filled_ = hand_ = free_ = 0;
    }
    void use(const Access& access, uint32_t step, bool loaded) override {
        State& state = state_[access.block];
        layer_step_[access.layer] = step;
        state.layer = access.layer;
        if (loaded && !remembers_) state.share = 0;
        state.share = share(state, step) + gain_ * worth_[access.rank];
        state.step = step;
        state.used = ++now_;
        if (!loaded) return;
        frame_of_[access.block] = filled_ < frames_.size() ? filled_++ : free_;
        frames_[frame_of_[access.block]] = access.block;
    }
    uint32_t victim(uint32_t, const std::vector<char>& held) override {
        uint32_t best = kNone;
        double best_share = 0;
        for (uint32_t seen = 0; seen < looked_at_ || best == kNone; ++seen) {
            const uint32_t index = hand_;
            hand_ = (hand_ + 1) % static_cast<uint32_t>(frames_.size());
            const uint32_t block = frames_[index];
            if (held[block] != 0) continue;
            const double now = share(state_[block], layer_step_[state_[block].layer]);
            const bool is_lower = best == kNone || now < best_share - 1e-9;
            const bool is_newer = best != kNone && now < best_share + 1e-9 &&
                                  state_[block].used > state_[frames_[best]].used;
            if (!is_lower && !is_newer) continue;
            best = index;
            best_share = now;
        }
        free_ = best;
        frame_of_[frames_[best]] = kNone;
        return frames_[best];
    }

private:
    struct State {
        double share = 0;
        uint32_t step = 0;
        uint32_t layer = 0;
        uint64_t used = 0;
    };
    double share(const State& state, uint32_t step) const {
        return state.share * std::pow(1 - gain_, step - state.step);
    }
    const double gain_;
    const uint32_t looked_at_;
    const std::array<double, 4> worth_;
    const bool remembers_;
    std::vector<State> state_;
    std::unordered_map<uint32_t, uint32_t> layer_step_;
    std::vector<uint32_t> frame_of_, frames_;
    uint32_t filled_ = 0, hand_ = 0, free_ = 0;
    uint64_t now_ = 0;
};

// Two queues: a tenth for what is new, the rest for what was used again while it was there, or
// comes back soon after it was given up.
class S3Fifo final : public Policy {
public:
    void begin(uint32_t frames, uint32_t blocks) override {
        frames_ = frames;
        uses_.assign(blocks, 0);
        ghost_.assign(blocks, 0);
        ghosts_ = 0;
        small_.clear();
        main_.clear();
    }
    void use(const Access& access, uint32_t, bool loaded) override {
        if (!loaded) {
            uses_[access.block] = static_cast<uint8_t>(std::min(3, uses_[access.block] + 1));
            return;
        }
        uses_[access.block] = 0;
        const uint64_t given_up = ghost_[access.block];
        const bool comes_back = given_up != 0 && ghosts_ - given_up < frames_;
        (comes_back ? main_ : small_).push_back(access.block);
    }
    uint32_t victim(uint32_t, const std::vector<char>& held) override {
        for (uint32_t tries = 0;; ++tries) {
            // All of a queue may be held: then the other.
            const bool prefers_small = small_.size() > frames_ / 10 || main_.empty();
            const bool from_small = prefers_small != (tries / (4 * frames_) % 2 == 1);
            std::list<uint32_t>& queue = from_small ? small_ : main_;
            if (queue.empty()) continue;
            const uint32_t block = queue.front();
            queue.pop_front();
            if (held[block] != 0) {
                queue.push_back(block);
            } else if (from_small && uses_[block] > 0) {
                uses_[block] = 0;
                main_.push_back(block);
            } else if (!from_small && uses_[block] > 0) {
                --uses_[block];
                main_.push_back(block);
            } else {
                if (from_small) ghost_[block] = ++ghosts_;
                return block;
            }
        }
    }

private:
    uint32_t frames_ = 0;
    std::list<uint32_t> small_, main_;
    std::vector<uint8_t> uses_;
    std::vector<uint64_t> ghost_;
    uint64_t ghosts_ = 0;
};

// The limit: gives up what is used again last.
class Optimum final : public KeyPolicy {
public:
    explicit Optimum(const std::vector<Wave>& waves) {
        uint64_t at = 0;
        for (const Wave& wave : waves) {
            for (const Access& access : wave.accesses) uses_[access.block].push_back(at);
            ++at;
        }
    }
    void begin(uint32_t frames, uint32_t blocks) override {
        KeyPolicy::begin(frames, blocks);
        next_.assign(blocks, 0);
    }

private:
    double key(double, const Access& access, uint32_t, bool) override {
        const std::vector<uint64_t>& uses = uses_[access.block];
        const size_t next = ++next_[access.block];
        return next < uses.size() ? -static_cast<double>(uses[next]) : -1e18;
    }
    std::unordered_map<uint32_t, std::vector<uint64_t>> uses_;
    std::vector<size_t> next_;
};

struct Hits {
    uint64_t hits = 0;
    uint64_t accesses = 0;
    double rate() const { return accesses == 0 ? 0 : 100.0 * double(hits) / double(accesses); }
};

struct Replayed {
    Hits all, selected;

    void count(const Access& access, bool hit) {
        for (Hits* hits : {&all, access.everything ? nullptr : &selected}) {
            if (hits == nullptr) continue;
            hits->hits += hit ? 1 : 0;
            ++hits->accesses;
        }
    }
};

class Cache {
public:
    Cache(Policy& policy, uint32_t frames, uint32_t blocks)
        : policy_(policy), frames_(frames), in_ram_(blocks), held_(blocks) {
        policy.begin(frames, blocks);
    }
    void serve(const Wave& wave, bool counted, Replayed& replayed) {
        const size_t part = std::max<size_t>(1, frames_ * 9 / 10);
        for (size_t at = 0; at < wave.accesses.size(); at += part) {
            serve_part(std::span(wave.accesses).subspan(
                           at, std::min(part, wave.accesses.size() - at)),
                       wave.step, counted, replayed);
        }
    }

private:
    void serve_part(std::span<const Access> part, uint32_t step, bool counted,
                    Replayed& replayed) {
        for (const Access& access : part) {
            const bool hit = in_ram_[access.block] != 0;
            held_[access.block] = hit;
            if (hit) policy_.use(access, step, false);
            if (counted) replayed.count(access, hit);
        }
        for (const Access& access : part) {
            if (in_ram_[access.block] != 0) continue;
            if (count_ == frames_) in_ram_[policy_.victim(access.block, held_)] = 0;
            else ++count_;
            in_ram_[access.block] = held_[access.block] = 1;
            policy_.use(access, step, true);
        }
        for (const Access& access : part) held_[access.block] = 0;
    }

    Policy& policy_;
    const uint32_t frames_;
    uint32_t count_ = 0;
    std::vector<char> in_ram_, held_;
};

std::vector<Wave> waves_of(const SelectionTrace& trace, uint32_t block_tokens, uint32_t blocks) {
    std::vector<Wave> waves;
    for (uint32_t step = 0; step < trace.step_count; ++step) {
        for (uint32_t layer = 0; layer < trace.layer_count; ++layer) {
            const SelectionTrace::Set& set = trace.set(step, layer);
            Wave wave{step, {}};
            const uint32_t seen = trace.slot_count + step;
            for (uint32_t b = 0; set.everything && b * block_tokens < seen; ++b) {
                wave.accesses.push_back({layer * blocks + b, layer, 3, true});
            }
            uint32_t last = kNone;
            for (const TraceSlot& slot : set.slots) {
                const uint32_t block = slot.slot / block_tokens;
                if (block != last) {
                    wave.accesses.push_back({layer * blocks + block, layer, slot.rank});
                }
                Access& access = wave.accesses.back();
                access.rank = std::min(access.rank, slot.rank);
                last = block;
            }
            waves.push_back(std::move(wave));
        }
    }
    return waves;
}

// The same waves through Shoal's own cache, over a tier in memory.
class ShoalCache {
public:
    ShoalCache(uint32_t frames, uint32_t blocks, uint32_t layers)
        : memory_(size_t{blocks} * layers * kBlockBytes),
          tier_(std::span(memory_.data(), memory_.bytes()), kBlockBytes), blocks_(blocks),
          tables_(size_t{blocks} * layers), entries_(tables_.size()), owners_(layers) {
        offload::BlockCache::Options options;
        options.frame_count = frames;
        options.frame_bytes = kBlockBytes;
        options.dirty_low = frames / 8;
        options.dirty_high = frames / 4;
        auto cache = offload::BlockCache::create(arena_, &tier_, options);
        if (!cache) trace_failed("BlockCache", cache.status().message().c_str());
        cache_ = std::move(*cache);
        for (uint32_t layer = 0; layer < layers; ++layer) {
            offload::BlockOwner& owner = owners_[layer];
            owner.table = &tables_[size_t{layer} * blocks];
            owner.entries = &entries_[size_t{layer} * blocks];
            owner.file_offset = cache_->take_file_space(uint64_t{blocks} * kBlockBytes);
            owner.block_bytes = kBlockBytes;
            for (uint32_t block = 0; block < blocks; ++block) write(owner, block);
        }
        check(cache_->flush());
    }

    void serve(const Wave& wave, bool counted, Replayed& replayed) {
        const size_t part = std::max<size_t>(1, cache_->wave_blocks_max());
        for (size_t at = 0; at < wave.accesses.size(); at += part) {
            cache_->begin_wave();
            const size_t end = std::min(at + part, wave.accesses.size());
            for (size_t i = at; i < end; ++i) {
                const Access& access = wave.accesses[i];
                offload::BlockOwner& owner = owners_[access.layer];
                const uint32_t block = access.block % blocks_;
                if (counted) replayed.count(access, owner.entries[block].has_frame());
                cache_->want(owner, block);
            }
            check(cache_->acquire());
        }
    }

private:
    static constexpr uint32_t kBlockBytes = 4096;
    static void check(const Status& status) {
        if (!status) trace_failed("BlockCache", status.message().c_str());
    }
    void write(offload::BlockOwner& owner, uint32_t block) {
        cache_->begin_wave();
        cache_->want(owner, block);
        check(cache_->acquire());
        check(cache_->make_dirty(owner, block));
        cache_->write_behind();
    }

    HugeBuffer memory_;
    offload::MemoryTier tier_;
    offload::Budget budget_{"bench", uint64_t{1} << 40};
    offload::Arena arena_ = offload::Arena::real(budget_, offload::HugePages::off);
    uint32_t blocks_;
    std::vector<std::byte*> tables_;
    std::vector<offload::BlockEntry> entries_;
    std::vector<offload::BlockOwner> owners_;
    std::unique_ptr<offload::BlockCache> cache_;
};

struct Candidate {
    const char* name;
    std::function<std::unique_ptr<Policy>(const std::vector<Wave>&)> make;
};

template <typename P, typename... A>
Candidate candidate(const char* name, const A&... arguments) {
    return {name, [=](const std::vector<Wave>&) -> std::unique_ptr<Policy> {
                return std::make_unique<P>(arguments...);
            }};
}

std::vector<Candidate> candidates() {
    constexpr std::array<double, 4> kEqual{1, 1, 1, 1};
    constexpr std::array<double, 4> kByScore{4, 2, 1, 4};
    return {
        candidate<Lru>("LRU"),
        candidate<Clock>("CLOCK, one pass", ClockRule{1, 1, 1}),
        candidate<Clock>("CLOCK, two passes", ClockRule{2, 2, 2}),
        candidate<Clock>("CLOCK, heat by use, 7", ClockRule{}),
        candidate<Clock>("CLOCK, heat by use, dense layers cold",
                         ClockRule{.everything_is_cold = true}),
        candidate<Clock>("CLOCK, heat by uses remembered, 15",
                         ClockRule{.most = 15, .remembered = 15}),
        candidate<S3Fifo>("S3-FIFO"),
        candidate<Frequency>("frequency, half-life 4 steps", 4.0, false, kEqual),
        candidate<Frequency>("frequency remembered, 4 steps", 4.0, true, kEqual),
        candidate<Frequency>("frequency remembered, 16 steps", 16.0, true, kEqual),
        candidate<Frequency>("label score, 4 steps", 4.0, false, kByScore),
        candidate<Frequency>("label score remembered, 4 steps", 4.0, true, kByScore),
        candidate<Frequency>("label score remembered, 16 steps", 16.0, true, kByScore),
        candidate<Share>("share of steps, 1/8, of 16", 0.125, 16U, kEqual),
        candidate<Share>("share of steps in RAM alone, 1/8, of 16", 0.125, 16U, kEqual, false),
        candidate<Share>("share of steps, 1/8, of 8", 0.125, 8U, kEqual),
        candidate<Share>("share of steps, 1/8, of 64", 0.125, 64U, kEqual),
        candidate<Share>("share of steps by score, 1/8, of 16", 0.125, 16U,
                         std::array<double, 4>{1, .7, .4, 1}),
        {"the optimum (needs the future)",
         [](const std::vector<Wave>& waves) -> std::unique_ptr<Policy> {
             return std::make_unique<Optimum>(waves);
         }},
    };
}

// It holds all blocks in memory, at 4 KiB each.
constexpr uint32_t kShoalBlocksMost = 1 << 18;

uint32_t frames_of(uint32_t blocks, uint32_t percent) {
    return std::max(1U, blocks / 100 * percent);
}

template <typename C>
void print_rates(C&& cache, const std::vector<Wave>& waves, uint32_t warm_steps) {
    Replayed replayed;
    for (const Wave& wave : waves) cache.serve(wave, wave.step >= warm_steps, replayed);
    std::printf(" %.1f, %.1f |", replayed.all.rate(), replayed.selected.rate());
}

void replay(const SelectionTrace& trace, uint32_t block_tokens, uint32_t warm_steps) {
    constexpr uint32_t kPercent[] = {5, 10, 20, 40};
    const uint32_t slots = trace.slot_count + trace.step_count;
    const uint32_t blocks = (slots + block_tokens - 1) / block_tokens;
    const uint32_t all = blocks * trace.layer_count;
    const std::vector<Wave> waves = waves_of(trace, block_tokens, blocks);
    uint64_t selected = 0;
    uint64_t whole = 0;
    for (const Wave& wave : waves) {
        for (const Access& access : wave.accesses) ++(access.everything ? whole : selected);
    }
    std::printf("%u slots, %u layers, %u rows; blocks of %u slots: %u; a step wants %.0f of them "
                "in layers that select, %.0f in layers that attend everything\n\n",
                trace.slot_count, trace.layer_count, trace.rows, block_tokens, all,
                double(selected) / trace.step_count, double(whole) / trace.step_count);
    std::printf("hits, %% of the blocks wanted, and of those that were selected, by RAM\n\n");
    std::printf("| policy |");
    for (const uint32_t percent : kPercent) std::printf(" %u %% |", percent);
    std::printf("\n|---|---|---|---|---|\n");
    for (const Candidate& one : candidates()) {
        std::printf("| %s |", one.name);
        for (const uint32_t percent : kPercent) {
            const std::unique_ptr<Policy> policy = one.make(waves);
            print_rates(Cache(*policy, frames_of(all, percent), all), waves, warm_steps);
        }
        std::printf("\n");
        std::fflush(stdout);
    }
    if (all > kShoalBlocksMost) return;
    std::printf("| Shoal's cache |");
    for (const uint32_t percent : kPercent) {
        print_rates(ShoalCache(frames_of(all, percent), blocks, trace.layer_count), waves,
                    warm_steps);
    }
    std::printf("\n");
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: %s TRACE [BLOCK_TOKENS [WARM_STEPS]]\n", argv[0]);
        return 2;
    }
    const auto number = [&](int i, int otherwise) {
        return static_cast<uint32_t>(argc > i ? std::max(1, std::atoi(argv[i])) : otherwise);
    };
    shoal::bench::replay(shoal::bench::read_trace(argv[1]), number(2, 16), number(3, 8));
}
