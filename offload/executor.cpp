#include "offload/executor.hpp"

#include <fmt/format.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_scheduler_observer.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <utility>

#include "offload/memory_limits.hpp"
#include "offload/topology.hpp"

namespace shoal::offload {

namespace {

constexpr uint32_t kThreadsMax = 1024;

// Binds workers when they enter the arena. task_arena::constraints would need tbbbind, and without
// it binds nothing and says nothing. oneTBB lends its threads to every arena of the process, so a
// worker gets its old affinity back when it leaves.
class PinningObserver : public tbb::task_scheduler_observer {
public:
    PinningObserver(tbb::task_arena& arena, std::vector<Processor> processors)
        : tbb::task_scheduler_observer(arena), processors_(std::move(processors)) {}
    ~PinningObserver() override { observe(false); }

    void on_scheduler_entry(bool is_worker) override {
        if (!is_worker) return;
        const auto slot = static_cast<size_t>(tbb::this_task_arena::current_thread_index());
        affinity_before_ = current_affinity();
        if (!pin_current_thread(processors_[slot % processors_.size()].os_index)) refused_ += 1;
    }
    void on_scheduler_exit(bool is_worker) override {
        if (!is_worker || affinity_before_.empty()) return;
        if (!set_affinity(affinity_before_)) refused_ += 1;
        affinity_before_.clear();
    }
    uint32_t refused() const { return refused_.load(); }

private:
    static thread_local std::vector<uint32_t> affinity_before_;
    std::vector<Processor> processors_;
    std::atomic<uint32_t> refused_{0};
};
thread_local std::vector<uint32_t> PinningObserver::affinity_before_;

uint32_t default_thread_count(const Topology& topology) {
    const double quota = read_memory_limits().cpu_quota;
    if (quota <= 0) return topology.core_count;
    return std::clamp(static_cast<uint32_t>(std::ceil(quota)), 1U, topology.core_count);
}

}  // namespace

class OwnExecutor::Impl {
public:
    Impl(uint32_t thread_count, bool pin, const Topology& topology)
        : thread_count_(thread_count),
          arena_(static_cast<int>(thread_count), 1, tbb::task_arena::priority::high) {
        // The arena itself caps its workers. A global_control is process-wide, and is only needed
        // to have more of them than there are cores.
        if (static_cast<int>(thread_count) > tbb::info::default_concurrency()) {
            more_.emplace(tbb::global_control::max_allowed_parallelism, thread_count);
        }
        if (pin && thread_count > 1) {
            observer_.emplace(arena_, topology.processors);
            observer_->observe(true);
        }
    }

    void run(uint32_t count, Executor::Body body, void* context) {
        if (count == 0) return;
        if (count == 1 || thread_count_ == 1) {
            for (uint32_t i = 0; i < count; ++i) body(context, i, 0);
            return;
        }
        std::atomic<uint32_t> next{0};
        const auto take_all = [&](uint32_t) {
            const auto worker = static_cast<uint32_t>(tbb::this_task_arena::current_thread_index());
            for (uint32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
                body(context, i, worker);
            }
        };
        arena_.execute([&] {
            tbb::parallel_for(0U, std::min(thread_count_, count), take_all,
                              tbb::static_partitioner());
        });
    }

    uint32_t thread_count() const { return thread_count_; }
    uint32_t pins_refused() const { return observer_ ? observer_->refused() : 0; }

private:
    const uint32_t thread_count_;
    std::optional<tbb::global_control> more_;
    tbb::task_arena arena_;
    std::optional<PinningObserver> observer_;
};

OwnExecutor::OwnExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OwnExecutor::~OwnExecutor() = default;

Result<std::unique_ptr<OwnExecutor>> OwnExecutor::create(const ExecutorOptions& options) {
    if (options.threads > kThreadsMax) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("host.threads = {}: must be {} or less (0: every core)",
                                         options.threads, kThreadsMax));
    }
    const Topology topology = read_topology();
    const uint32_t threads =
        options.threads != 0 ? options.threads : default_thread_count(topology);
    auto impl = std::make_unique<Impl>(threads, options.pin, topology);
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
