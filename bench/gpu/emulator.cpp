#include "bench/gpu/emulator.hpp"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/convert.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define SHOAL_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHOAL_EMULATOR_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define SHOAL_EMULATOR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHOAL_EMULATOR_TSAN 1
#endif
#endif
#ifdef SHOAL_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace shoal::gpu {
namespace {

constexpr size_t kStackBytes = size_t{160} << 10;
// Stacks lie a multiple of 4 KiB apart: without a shift the tops of a thousand of them share a few
// sets of every cache, and each switch of fibers waits for memory.
constexpr size_t kStackShift = 576;
constexpr size_t kStackShifts = 64;
constexpr size_t kSharedBytes = size_t{228} << 10;

enum class State : uint8_t { ready, at_block_barrier, at_warp_exchange, polling, done };

struct Copy {
    void* to;
    const void* from;
    uint32_t bytes;
};

// Where something stopped. swapcontext() asks the kernel for the signal mask, which takes ten times
// as long as a jump: it only begins a fiber. The thread sanitizer knows no jump to another stack.
struct Place {
    ucontext_t context{};
    jmp_buf jump{};
    bool begun = false;
};
void go(Place& from, Place& to) {
#ifdef SHOAL_EMULATOR_TSAN
    swapcontext(&from.context, &to.context);
#else
    from.begun = true;
    if (_setjmp(from.jump) != 0) return;
    if (to.begun) _longjmp(to.jump, 1);
    setcontext(&to.context);
#endif
}

// Kept from launch to launch; between two bodies it waits in fiber_main().
struct Fiber {
    Place place;
    std::unique_ptr<char[]> stack;
    State state = State::ready;
    uint64_t value = 0;
    uint32_t mask = 0;
    std::array<uint64_t, 32> received{};
    std::vector<Copy> stores;                // since the last commit
    std::vector<std::vector<Copy>> groups;   // committed, not yet done; oldest first
    void* fake_stack = nullptr;
};

struct CopyBarrier {
    uint32_t arrivals = 0;  // of a phase
    uint32_t pending = 0;
    uint64_t expected_bytes = 0;
    uint32_t phase = 0;
    std::vector<Copy> loads;
};

// The block that runs. Blocks run one after another.
struct Block {
    std::deque<Fiber>& fibers;  // the first thread_count
    uint32_t thread_count;
    std::vector<unsigned char> shared{};
    size_t shared_used = 0;
    std::map<const std::type_info*, void*> objects{};
    std::map<const uint64_t*, CopyBarrier> barriers{};
    const std::function<void()>* body = nullptr;
    Place scheduler{};
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    void* scheduler_fake_stack = nullptr;
    uint32_t current = 0;
    std::exception_ptr error{};
};
Block* block = nullptr;

void copy_all(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
    copies.clear();
}

void to_scheduler(State state) {
    Fiber& fiber = block->fibers[block->current];
    fiber.state = state;
#ifdef SHOAL_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&fiber.fake_stack, block->scheduler_stack,
                                   block->scheduler_stack_bytes);
#endif
    go(fiber.place, block->scheduler);
#ifdef SHOAL_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &block->scheduler_stack,
                                    &block->scheduler_stack_bytes);
#endif
}

void fiber_main() {
#ifdef SHOAL_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack,
                                    &block->scheduler_stack_bytes);
#endif
    while (true) {
        try {
            (*block->body)();
        } catch (...) {
            if (!block->error) block->error = std::current_exception();
        }
        to_scheduler(State::done);
    }
}

void resume(uint32_t thread) {
    Fiber& fiber = block->fibers[thread];
    block->current = thread;
    threadIdx = {thread, 0, 0};
    fiber.state = State::ready;
#ifdef SHOAL_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
    go(block->scheduler, fiber.place);
#ifdef SHOAL_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
#endif
}

std::vector<uint32_t> order_of(uint32_t count, uint32_t seed, uint32_t salt) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0U);
    if (seed == 1) std::reverse(order.begin(), order.end());
    if (seed > 1) std::shuffle(order.begin(), order.end(), std::minstd_rand(seed * 977 + salt + 1));
    return order;
}

void begin_fiber(Fiber& fiber, size_t index) {
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
#ifdef SHOAL_EMULATOR_ASAN
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
    getcontext(&fiber.place.context);
    fiber.place.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.place.context.uc_stack.ss_size = kStackBytes - index % kStackShifts * kStackShift;
    fiber.place.context.uc_link = nullptr;
    fiber.place.begun = false;
    makecontext(&fiber.place.context, fiber_main, 0);
}

// Lanes whose whole mask waits go on, each with a copy of what all of them passed.
bool finish_exchanges(uint32_t warp) {
    const auto lanes = block->fibers.begin() + warp * 32;
    bool progress = false;
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (lanes[lane].state != State::at_warp_exchange) continue;
        const uint32_t mask = lanes[lane].mask;
        bool complete = true;
        for (uint32_t other = 0; other < 32; ++other) {
            if (((mask >> other) & 1U) == 0) continue;
            complete = complete && lanes[other].state == State::at_warp_exchange &&
                       lanes[other].mask == mask;
        }
        if (!complete) continue;
        std::array<uint64_t, 32> values;
        for (uint32_t i = 0; i < 32; ++i) values[i] = lanes[i].value;
        for (uint32_t other = 0; other < 32; ++other) {
            if (((mask >> other) & 1U) == 0) continue;
            lanes[other].received = values;
            lanes[other].state = State::ready;
        }
        progress = true;
    }
    return progress;
}

bool finish_block_barrier() {
    bool any = false;
    for (uint32_t t = 0; t < block->thread_count; ++t) {
        const State state = block->fibers[t].state;
        if (state == State::done) continue;
        if (state != State::at_block_barrier) return false;
        any = true;
    }
    for (uint32_t t = 0; t < block->thread_count; ++t) {
        State& state = block->fibers[t].state;
        if (state == State::at_block_barrier) state = State::ready;
    }
    return any;
}

void run_block(uint32_t seed) {
    const uint32_t count = block->thread_count;
    uint32_t idle_rounds = 0;
    for (uint32_t round = 0;; ++round) {
        bool ran = false;
        bool all_done = true;
        for (const uint32_t thread : order_of(count, seed, round)) {
            const State state = block->fibers[thread].state;
            all_done = all_done && state == State::done;
            if (state != State::ready && state != State::polling) continue;
            ran = ran || state == State::ready;
            resume(thread);
        }
        if (block->error) std::rethrow_exception(block->error);
        if (all_done) return;
        for (uint32_t warp = 0; warp < count / 32; ++warp) ran = finish_exchanges(warp) || ran;
        ran = ran || finish_block_barrier();
        idle_rounds = ran ? 0 : idle_rounds + 1;
        if (idle_rounds > 3) throw std::runtime_error("emulator: threads wait for ever");
    }
}

CopyBarrier& barrier_at(const uint64_t* barrier) {
    const auto found = block->barriers.find(barrier);
    if (found == block->barriers.end()) throw std::runtime_error("emulator: barrier not set up");
    return found->second;
}

// A phase ends when all have arrived and exactly the expected bytes were asked for.
void try_complete(CopyBarrier& barrier) {
    uint64_t bytes = 0;
    for (const Copy& load : barrier.loads) bytes += load.bytes;
    if (barrier.pending != 0 || bytes != barrier.expected_bytes) return;
    copy_all(barrier.loads);
    barrier.pending = barrier.arrivals;
    barrier.expected_bytes = 0;
    barrier.phase ^= 1U;
}

void check_bulk(const void* a, const void* b, uint32_t bytes) {
    const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | bytes;
    if (bits % 16 != 0) throw std::runtime_error("emulator: bulk copy not aligned to 16 bytes");
}

}  // namespace

namespace emulator {

void launch(const Launch& shape, const std::function<void()>& body) {
    thread_local std::deque<Fiber> fibers;
    for (size_t t = fibers.size(); t < shape.threads; ++t) begin_fiber(fibers.emplace_back(), t);
    Block running{fibers, shape.threads};
    block = &running;
    running.body = &body;
    running.shared.resize(kSharedBytes + 128);
    blockDim = {shape.threads, 1, 1};
    gridDim = {shape.grid_x, shape.grid_y, 1};
    for (const uint32_t index : order_of(shape.grid_x * shape.grid_y, shape.seed, 0)) {
        blockIdx = {index % shape.grid_x, index / shape.grid_x, 0};
        std::fill(running.shared.begin(), running.shared.end(), static_cast<unsigned char>(0xcd));
        running.shared_used = 0;
        running.objects.clear();
        running.barriers.clear();
        for (uint32_t t = 0; t < shape.threads; ++t) {
            fibers[t].state = State::ready;
            fibers[t].stores.clear();
            fibers[t].groups.clear();
        }
        try {
            run_block(shape.seed);
        } catch (...) {
            fibers.clear();  // some are in the middle of the body
            block = nullptr;
            throw;
        }
    }
    block = nullptr;
}

void* shared_bytes(const std::type_info& type, size_t bytes) {
    void*& object = block->objects[&type];
    if (object == nullptr) {
        const auto base = reinterpret_cast<uintptr_t>(block->shared.data());
        const size_t begin = (base + 127) / 128 * 128 - base + block->shared_used;
        block->shared_used += (bytes + 127) / 128 * 128;
        if (block->shared_used > kSharedBytes) throw std::runtime_error("emulator: shared memory");
        object = block->shared.data() + begin;
    }
    return object;
}

const uint64_t* exchange(uint64_t value, uint32_t mask) {
    Fiber& fiber = block->fibers[block->current];
    fiber.value = value;
    fiber.mask = mask;
    to_scheduler(State::at_warp_exchange);
    return fiber.received.data();
}

}  // namespace emulator

void __syncthreads() { to_scheduler(State::at_block_barrier); }
void __trap() { throw std::runtime_error("emulator: trap"); }

float half_bits_to_float(uint32_t bits) {
    return kernels::f16_to_f32(static_cast<uint16_t>(bits));
}

uint64_t timer_ns() {
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                 std::chrono::nanoseconds(1));
}

unsigned char* dynamic_shared() {
    struct Dynamic {
        unsigned char bytes[size_t{96} << 10];
    };
    return emulator::shared_object<Dynamic>().bytes;
}

void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    CopyBarrier& state = block->barriers[barrier];
    state = {};
    state.arrivals = state.pending = arrivals;
}

void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    CopyBarrier& state = barrier_at(barrier);
    if (state.pending == 0) throw std::runtime_error("emulator: barrier armed twice in a phase");
    state.expected_bytes += bytes;
    --state.pending;
}

void barrier_wait(uint64_t* barrier, uint32_t parity) {
    for (;;) {
        CopyBarrier& state = barrier_at(barrier);
        if (state.phase != parity) return;
        try_complete(state);
        if (state.phase != parity) return;
        to_scheduler(State::polling);
    }
}

void bulk_load(void* to_shared, const void* from, uint32_t bytes, uint64_t* barrier) {
    check_bulk(to_shared, from, bytes);
    barrier_at(barrier).loads.push_back({to_shared, from, bytes});
}

void bulk_store(void* to, const void* from_shared, uint32_t bytes) {
    check_bulk(to, from_shared, bytes);
    block->fibers[block->current].stores.push_back({to, from_shared, bytes});
}

void bulk_commit() {
    Fiber& fiber = block->fibers[block->current];
    fiber.groups.push_back(std::move(fiber.stores));
    fiber.stores.clear();
}

void bulk_wait_read_but_one() {
    auto& groups = block->fibers[block->current].groups;
    while (groups.size() > 1) {
        copy_all(groups.front());
        groups.erase(groups.begin());
    }
}

void bulk_wait_all() {
    auto& groups = block->fibers[block->current].groups;
    for (auto& group : groups) copy_all(group);
    groups.clear();
}

}  // namespace shoal::gpu
