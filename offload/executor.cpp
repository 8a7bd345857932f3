// Workers are oneTBB's, the loop they run is ours. A worker that has been called takes a seat: it
// takes parts of the current loop, then looks for the next loop for warm_us before it goes back to
// oneTBB to sleep. Between calls that follow each other closely nothing wakes or sleeps.
//
// Pinning. task_arena::constraints would need tbbbind; without it it binds nothing and says
// nothing. A task_scheduler_observer binds a thread for as long as it stays in the arena, which on
// a busy machine was 0.2 s after its last task and past the arena's end, so that other arenas of
// the process got bound threads. So a worker is bound when it takes its seat, and gets its old
// affinity back when it leaves it. Worker w gets the w-th processor after the one that the caller
// ran on when it called: with fixed places a caller that happens to sit on worker 1's processor
// shares it for milliseconds, until the system moves the caller.
//
// tbb::parallel_for alone was measured first (2 cores of a server VM, bench/executor): of loops of
// 100 us that follow each other at once, its worker took 5 %, because it was still leaving the last
// loop; of loops 150 us apart and 20 us long, 3 %, and waking it made them take 35 us. With seats
// the worker takes half of both.
#include "offload/executor.hpp"

#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/task_arena.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "offload/memory_limits.hpp"
#include "offload/topology.hpp"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHOAL_SHOW_HANDOFF
#endif
#elif defined(__SANITIZE_THREAD__)
#define SHOAL_SHOW_HANDOFF
#endif
#if defined(SHOAL_SHOW_HANDOFF)
#include <sanitizer/tsan_interface.h>
#endif

namespace shoal::offload {

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kThreadsMax = 1024;
constexpr size_t kCacheLine = 64;
constexpr std::chrono::milliseconds kLeaveMax{200};

// One look of a spinning thread, cheap for the core's other hardware thread.
void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

// oneTBB hands tasks from thread to thread out of ThreadSanitizer's sight; these two show it. They
// cover the task object only: what loops read and write is ordered by Loop, in plain sight.
#if defined(SHOAL_SHOW_HANDOFF)
char handoff;
void give_task() { __tsan_release(&handoff); }
void take_task() { __tsan_acquire(&handoff); }
#else
void give_task() {}
void take_task() {}
#endif

// Gives the thread a processor of its own and, on destruction, the affinity it had.
class Pinned {
public:
    Pinned(uint32_t os_index, std::atomic<uint32_t>& refused_count) : before_(current_affinity()) {
        if (!pin_current_thread(os_index)) refused_count += 1;
    }
    ~Pinned() { (void)set_affinity(before_).is_ok(); }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;

private:
    const std::vector<uint32_t> before_;
};

// The loop of the moment. `ticket` is count << 32 | next index: whoever raises it by one owns that
// index, and the loop cannot be replaced before that index is done, so `body` read after that
// belongs to it, even for a worker that comes late from an earlier loop.
class Loop {
public:
    void publish(uint32_t count, Executor::Body body, void* context) {
        body_ = body;
        context_ = context;
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(uint64_t{count} << 32, std::memory_order_seq_cst);
    }
    bool has_parts() const {
        const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
        return static_cast<uint32_t>(ticket) < static_cast<uint32_t>(ticket >> 32);
    }
    void take_parts(uint32_t worker) {
        uint64_t ticket = ticket_.load(std::memory_order_relaxed);
        for (;;) {
            const auto index = static_cast<uint32_t>(ticket);
            if (index >= static_cast<uint32_t>(ticket >> 32)) return;
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                               std::memory_order_relaxed)) {
                continue;
            }
            body_(context_, index, worker);
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_relaxed);
        }
    }
    bool is_done(uint32_t count) const { return done_.load(std::memory_order_acquire) == count; }

private:
    alignas(kCacheLine) std::atomic<uint64_t> ticket_{0};
    Executor::Body body_ = nullptr;
    void* context_ = nullptr;
    alignas(kCacheLine) std::atomic<uint32_t> done_{0};
};

// Whether a worker is at work for one worker id. `called`: a task that will is on its way.
struct alignas(kCacheLine) Seat {
    enum State : uint32_t { away, called, present };
    std::atomic<uint32_t> state{away};
};

// Outlives the executor while a task that oneTBB never found a thread for still points at it.
struct Shared {
    Shared(const ExecutorOptions& options, uint32_t thread_count, const Topology& topology)
        : seats(thread_count), warm(std::chrono::microseconds(options.warm_us)) {
        const bool one_each = thread_count <= topology.processors.size();
        if (options.pin && one_each) processors = topology.processors;
    }
    Loop loop;
    std::vector<Seat> seats;            // [thread_count]; 0 is the caller's and stays unused
    const Clock::duration warm;
    std::vector<Processor> processors;  // to pin workers to; empty: unbound
    std::atomic<uint32_t> caller{0};    // index in processors of where the caller was
    std::atomic<uint32_t> pins_refused{0};
    std::atomic<bool> stop{false};
};

// Looks for parts until there are some (true), or for `warm` (false).
bool wait_for_parts(const Shared& shared) {
    constexpr int kLooksPerClock = 32;
    const Clock::time_point deadline = Clock::now() + shared.warm;
    do {
        for (int i = 0; i < kLooksPerClock; ++i) {
            if (shared.loop.has_parts()) return true;
            if (shared.stop.load(std::memory_order_relaxed)) return false;
            pause();
        }
    } while (Clock::now() < deadline);
    return false;
}

void work_until_idle(Shared& shared, uint32_t worker) {
    std::optional<Pinned> pinned;
    if (!shared.processors.empty()) {
        const size_t index = (shared.caller + worker) % shared.processors.size();
        pinned.emplace(shared.processors[index].os_index, shared.pins_refused);
    }
    do {
        shared.loop.take_parts(worker);
    } while (wait_for_parts(shared));
}

void sit(Shared& shared, uint32_t worker) {
    Seat& seat = shared.seats[worker];
    uint32_t expected = Seat::called;
    while (seat.state.compare_exchange_strong(expected, Seat::present)) {
        work_until_idle(shared, worker);
        seat.state.store(Seat::away);
        // A loop published just before that found the seat taken and called nobody.
        if (!shared.loop.has_parts() || shared.stop.load()) return;
        expected = Seat::away;
    }
}

// The task that oneTBB runs. It makes the first and last touch of the task object in a thread.
class SitTask {
public:
    SitTask(std::shared_ptr<Shared> shared, uint32_t worker)
        : shared_(std::move(shared)), worker_(worker) {}
    SitTask(SitTask&& other) noexcept : shared_(std::move(other.shared_)), worker_(other.worker_) {
        give_task();
    }
    void operator()() const {
        take_task();
        sit(*shared_, worker_);
    }

private:
    struct GiveAtEnd {
        ~GiveAtEnd() { give_task(); }
    };
    GiveAtEnd give_at_end_;  // first member: goes last
    std::shared_ptr<Shared> shared_;
    uint32_t worker_;
};

uint32_t default_thread_count(const Topology& topology) {
    const double quota = read_memory_limits().cpu_quota;
    if (quota <= 0) return topology.core_count;
    return std::clamp(static_cast<uint32_t>(std::ceil(quota)), 1U, topology.core_count);
}

}  // namespace

class OwnExecutor::Impl {
public:
    Impl(const ExecutorOptions& options, uint32_t thread_count, const Topology& topology)
        : thread_count_(thread_count),
          shared_(std::make_shared<Shared>(options, thread_count, topology)),
          arena_(static_cast<int>(thread_count), 1) {
        // The arena itself caps its workers. A global_control is process-wide, and is only needed
        // to have more of them than there are cores.
        if (static_cast<int>(thread_count) > tbb::info::default_concurrency()) {
            more_threads_.emplace(tbb::global_control::max_allowed_parallelism, thread_count);
        }
        if (thread_count > 1) arena_.initialize();
    }

    // Waits for tasks on their way too: with an arena that ended with a task pending, oneTBB 2021.8
    // kept its only worker yielding for good, and no later arena got it. Called off in the end, in
    // case the program leaves oneTBB no worker at all.
    ~Impl() {
        shared_->stop = true;
        const Clock::time_point deadline = Clock::now() + kLeaveMax;
        for (Seat& seat : shared_->seats) {
            while (seat.state.load() == Seat::called && Clock::now() < deadline) {
                std::this_thread::yield();
            }
            uint32_t expected = Seat::called;
            seat.state.compare_exchange_strong(expected, Seat::away);
            while (seat.state.load() == Seat::present) std::this_thread::yield();
        }
    }

    void run(uint32_t count, Executor::Body body, void* context) {
        if (count <= 1 || thread_count_ == 1) {
            for (uint32_t i = 0; i < count; ++i) body(context, i, 0);
            return;
        }
        Loop& loop = shared_->loop;
        loop.publish(count, body, context);
        call_workers(std::min(thread_count_, count));
        loop.take_parts(0);
        for (int looks = 0; !loop.is_done(count); ++looks) {
            if (looks < kLooksBeforeYield) {
                pause();
            } else if (looks < kLooksBeforeSleep) {
                std::this_thread::yield();
            } else {
                std::this_thread::sleep_for(kSleep);  // a worker has lost its processor
            }
        }
    }

    uint32_t thread_count() const { return thread_count_; }
    uint32_t pins_refused() const { return shared_->pins_refused.load(); }

private:
    static constexpr int kLooksBeforeYield = 2000;
    static constexpr int kLooksBeforeSleep = kLooksBeforeYield + 50;
    static constexpr std::chrono::microseconds kSleep{50};

    void call_workers(uint32_t wanted) {
        if (!shared_->processors.empty()) note_caller_processor();
        for (uint32_t worker = 1; worker < wanted; ++worker) {
            uint32_t expected = Seat::away;
            if (shared_->seats[worker].state.compare_exchange_strong(expected, Seat::called)) {
                take_task();
                arena_.enqueue(SitTask(shared_, worker));
            }
        }
    }

    // Not while a worker is at work: two of them could get one processor.
    void note_caller_processor() {
        for (const Seat& seat : shared_->seats) {
            if (seat.state.load() != Seat::away) return;
        }
        const int os_index = sched_getcpu();
        for (uint32_t i = 0; i < shared_->processors.size(); ++i) {
            if (static_cast<int>(shared_->processors[i].os_index) == os_index) {
                shared_->caller = i;
            }
        }
    }

    const uint32_t thread_count_;
    const std::shared_ptr<Shared> shared_;
    std::optional<tbb::global_control> more_threads_;
    tbb::task_arena arena_;
};

OwnExecutor::OwnExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OwnExecutor::~OwnExecutor() = default;

Result<uint32_t> OwnExecutor::planned_thread_count(const ExecutorOptions& options) {
    if (options.threads > kThreadsMax) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("host.threads = {}: must be {} or less (0: every core)",
                                         options.threads, kThreadsMax));
    }
    return options.threads != 0 ? options.threads : default_thread_count(read_topology());
}

Result<std::unique_ptr<OwnExecutor>> OwnExecutor::create(const ExecutorOptions& options) {
    const Result<uint32_t> threads = planned_thread_count(options);
    if (!threads) return threads.status();
    auto impl = std::make_unique<Impl>(options, *threads, read_topology());
    return std::unique_ptr<OwnExecutor>(new OwnExecutor(std::move(impl)));
}

Executor OwnExecutor::executor() {
    return {.self = impl_.get(),
            .run = [](void* self, uint32_t count, Executor::Body body,
                      void* context) { static_cast<Impl*>(self)->run(count, body, context); },
            .thread_count = [](const void* self) {
                return static_cast<const Impl*>(self)->thread_count();
            }};
}

uint32_t OwnExecutor::thread_count() const { return impl_->thread_count(); }
uint32_t OwnExecutor::pins_refused() const { return impl_->pins_refused(); }

}  // namespace shoal::offload
