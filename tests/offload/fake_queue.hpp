// A device made of memory and a seed: what is late, short, refused, repeated or never said is drawn
// from it. Time is a number that waiting moves. What is read arrives when it completes, not before.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "offload/io_queue.hpp"
#include "tests/offload/tier_support.hpp"

namespace shoal::offload {

// Chances are of each completion. `injected` counts what was done, by kind.
struct FakePlan {
    uint64_t seed = 1;
    double short_chance = 0;        // any length below what was asked for, 0 and odd ones included
    double error_chance = 0;
    int error = EIO;
    double duplicate_chance = 0;    // completed twice
    double foreign_chance = 0;      // completions with a tag that nobody gave
    double hang_chance = 0;         // not completed before release()
    std::set<uint64_t> bad_units;   // operations that touch these fail with EIO, always
    uint64_t latency_least_ns = 10'000;
    uint64_t latency_most_ns = 100'000;
    uint32_t capacity = UINT32_MAX; // operations taken at a time

    struct Injected {
        uint64_t shorts = 0, errors = 0, duplicates = 0, foreign = 0, hung = 0, refused = 0;
    } injected;
};

// State outlives the queue, which belongs to the tier.
struct FakeDevice {
    explicit FakeDevice(uint64_t bytes) : memory(bytes), random(1) {}
    AlignedMemory memory;
    FakePlan plan;
    std::mt19937_64 random;
    uint64_t now_ns = 1;
    bool is_released = false;

    bool draw(double chance) {
        return chance > 0 && std::uniform_real_distribution<double>(0, 1)(random) < chance;
    }
};

class FakeQueue final : public IoQueue {
public:
    explicit FakeQueue(FakeDevice& device) : device_(device) {
        device.random.seed(device.plan.seed);
    }

    bool submit(const IoOperation& operation) override {
        FakePlan& plan = device_.plan;
        if (pending_.size() >= plan.capacity) {
            ++plan.injected.refused;
            return false;
        }
        const bool hangs = device_.draw(plan.hang_chance);
        plan.injected.hung += hangs ? 1 : 0;
        const uint64_t spread = plan.latency_most_ns - plan.latency_least_ns + 1;
        pending_.push_back({operation, device_.now_ns + plan.latency_least_ns +
                                           device_.random() % spread, hangs});
        return true;
    }

    size_t reap(std::span<IoCompletion> completions) override {
        finish_due();
        const size_t count = std::min(completions.size(), ready_.size());
        std::copy_n(ready_.begin(), count, completions.begin());
        ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(count));
        return count;
    }

    void wait(uint32_t, uint64_t timeout_ns) override {
        if (!ready_.empty()) return;
        uint64_t next_ns = UINT64_MAX;
        for (const Pending& pending : pending_) {
            if (!is_hung(pending)) next_ns = std::min(next_ns, pending.due_ns);
        }
        if (timeout_ns == kForever) device_.is_released |= next_ns == UINT64_MAX;
        else next_ns = std::min(next_ns, device_.now_ns + timeout_ns);
        if (next_ns != UINT64_MAX) device_.now_ns = std::max(device_.now_ns, next_ns);
    }

    void wake() override {}

private:
    struct Pending {
        IoOperation operation;
        uint64_t due_ns;
        bool hangs;
    };

    bool is_hung(const Pending& pending) const { return pending.hangs && !device_.is_released; }

    void finish_due() {
        for (size_t i = 0; i < pending_.size();) {
            if (is_hung(pending_[i]) || pending_[i].due_ns > device_.now_ns) {
                ++i;
                continue;
            }
            const IoOperation operation = pending_[i].operation;
            pending_[i] = pending_.back();
            pending_.pop_back();
            complete(operation);
        }
    }

    bool touches_bad(const IoOperation& operation, uint64_t bytes) const {
        const auto bad = device_.plan.bad_units.lower_bound(operation.offset / kUnit);
        return bad != device_.plan.bad_units.end() && *bad * kUnit < operation.offset + bytes;
    }

    void complete(const IoOperation& operation) {
        FakePlan& plan = device_.plan;
        uint64_t bytes = 0;
        for (const iovec& piece : operation.pieces) bytes += piece.iov_len;
        int64_t result = 0;
        if (touches_bad(operation, bytes)) {
            ++plan.injected.errors;
            result = -EIO;
        } else if (device_.draw(plan.error_chance)) {
            ++plan.injected.errors;
            result = -plan.error;
        } else {
            if (device_.draw(plan.short_chance)) {
                ++plan.injected.shorts;
                bytes = device_.random() % bytes;
            }
            move(operation, bytes);
            result = static_cast<int64_t>(bytes);
        }
        const IoCompletion completion{operation.tag, result};
        put_anywhere(completion);
        if (device_.draw(plan.duplicate_chance)) {
            ++plan.injected.duplicates;
            put_anywhere(completion);
        }
        if (device_.draw(plan.foreign_chance)) {
            ++plan.injected.foreign;
            put_anywhere({device_.random() | uint64_t{1} << 62, static_cast<int64_t>(kUnit)});
        }
    }

    void put_anywhere(const IoCompletion& completion) {
        const auto at = static_cast<std::ptrdiff_t>(device_.random() % (ready_.size() + 1));
        ready_.insert(ready_.begin() + at, completion);
    }

    void move(const IoOperation& operation, uint64_t bytes) {
        std::byte* at = device_.memory.data() + operation.offset;
        for (const iovec& piece : operation.pieces) {
            const uint64_t part = std::min<uint64_t>(bytes, piece.iov_len);
            const bool is_read = operation.kind == TransferKind::read;
            std::memcpy(is_read ? piece.iov_base : at, is_read ? at : piece.iov_base, part);
            at += part;
            bytes -= part;
        }
    }

    FakeDevice& device_;
    std::vector<Pending> pending_;
    std::vector<IoCompletion> ready_;
};

inline std::unique_ptr<DiskTier> make_fake_tier(FakeDevice& device, uint32_t depth,
                                                uint64_t deadline_ns = TierOptions::kNoDeadline) {
    TierOptions options{deadline_ns, [&device] { return device.now_ns; }};
    return DiskTier::create_driven(std::make_unique<FakeQueue>(device), device.memory.bytes(),
                                   kUnit, depth, std::move(options));
}

}  // namespace shoal::offload
