#include "tests/sim/sim_disk.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace shoal::sim {

using offload::IoCompletion;
using offload::IoOperation;
using offload::TransferKind;

// Operations wait here until the clock, which moves when somebody waits, has passed their time.
class Queue final : public offload::IoQueue {
public:
    explicit Queue(Disk& disk) : disk_(disk) {}

    bool submit(const IoOperation& operation) override {
        const Plan& plan = disk_.plan_;
        if (pending_.size() >= plan.capacity) return false;
        if (operation.kind == TransferKind::read) {
            for (const iovec& piece : operation.pieces) {
                std::memset(piece.iov_base, 0xff, piece.iov_len);  // NaN in every row format
            }
        }
        uint64_t due_ns = disk_.now_ns_ + disk_.random_() % (plan.latency_most_ns + 1);
        if (disk_.draw(plan.late_chance)) {
            ++disk_.injected_.late;
            due_ns += Disk::kDeadlineNs * (1 + disk_.random_() % 3);
        }
        pending_.push_back({operation, due_ns});
        return true;
    }

    size_t reap(std::span<IoCompletion> completions) override {
        for (size_t i = 0; i < pending_.size();) {
            if (pending_[i].due_ns > disk_.now_ns_) {
                ++i;
                continue;
            }
            const IoOperation operation = pending_[i].operation;
            pending_[i] = pending_.back();
            pending_.pop_back();
            complete(operation);
        }
        const size_t count = std::min(completions.size(), ready_.size());
        std::copy_n(ready_.begin(), count, completions.begin());
        ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(count));
        return count;
    }

    void wait(uint32_t, uint64_t timeout_ns) override {
        if (!ready_.empty()) return;
        uint64_t next_ns = UINT64_MAX;
        for (const Pending& pending : pending_) next_ns = std::min(next_ns, pending.due_ns);
        if (timeout_ns != kForever) next_ns = std::min(next_ns, disk_.now_ns_ + timeout_ns);
        if (next_ns != UINT64_MAX) disk_.now_ns_ = std::max(disk_.now_ns_, next_ns);
    }

    void wake() override {}

private:
    struct Pending {
        IoOperation operation;
        uint64_t due_ns;
    };

    void complete(const IoOperation& operation) {
        const Plan& plan = disk_.plan_;
        Injected& injected = disk_.injected_;
        uint64_t bytes = 0;
        for (const iovec& piece : operation.pieces) bytes += piece.iov_len;
        int64_t result = 0;
        if (disk_.draw(plan.error_chance)) {
            constexpr int kErrors[] = {EIO, EAGAIN, EINTR};
            ++injected.errors;
            result = -kErrors[disk_.random_() % 3];
        } else {
            if (disk_.draw(plan.short_chance)) {
                ++injected.shorts;
                bytes = disk_.random_() % bytes;
            }
            if (operation.kind == TransferKind::read) read(operation, bytes);
            else write(operation, bytes);
            result = static_cast<int64_t>(bytes);
        }
        put_anywhere({operation.tag, result});
        if (disk_.draw(plan.duplicate_chance)) {
            ++injected.duplicates;
            put_anywhere({operation.tag, result});
        }
        if (disk_.draw(plan.foreign_chance)) {
            ++injected.foreign;
            put_anywhere({disk_.random_() | uint64_t{1} << 62, Disk::kUnit});
        }
    }

    void put_anywhere(const IoCompletion& completion) {
        const auto at = static_cast<std::ptrdiff_t>(disk_.random_() % (ready_.size() + 1));
        ready_.insert(ready_.begin() + at, completion);
    }

    void read(const IoOperation& operation, uint64_t bytes) {
        uint64_t offset = operation.offset;
        if (disk_.draw(disk_.plan_.misdirect_chance)) {
            const uint64_t units = (disk_.bytes_ - bytes) / Disk::kUnit + 1;
            const uint64_t other = disk_.random_() % units * Disk::kUnit;
            if (other != offset) ++disk_.injected_.misdirected;
            offset = other;
        }
        const std::byte* from = disk_.memory_.get() + offset;
        uint64_t left = bytes;
        for (const iovec& piece : operation.pieces) {
            const uint64_t part = std::min<uint64_t>(left, piece.iov_len);
            std::memcpy(piece.iov_base, from, part);
            from += part;
            left -= part;
        }
        if (bytes == 0 || !disk_.draw(disk_.plan_.corrupt_chance)) return;
        ++disk_.injected_.corrupt;
        const iovec& piece = operation.pieces[0];
        const uint64_t reach = std::min<uint64_t>(bytes, piece.iov_len);
        for (uint64_t bit = 0; bit <= disk_.random_() % 8; ++bit) {
            static_cast<std::byte*>(piece.iov_base)[disk_.random_() % reach] ^=
                std::byte{1} << (disk_.random_() % 8);
        }
    }

    void write(const IoOperation& operation, uint64_t bytes) {
        uint64_t kept = bytes;
        if (bytes != 0 && disk_.draw(disk_.plan_.torn_chance)) {
            ++disk_.injected_.torn;
            kept = disk_.random_() % bytes;
        }
        std::byte* to = disk_.memory_.get() + operation.offset;
        for (const iovec& piece : operation.pieces) {
            const uint64_t part = std::min<uint64_t>(kept, piece.iov_len);
            std::memcpy(to, piece.iov_base, part);
            to += part;
            kept -= part;
        }
    }

    Disk& disk_;
    std::vector<Pending> pending_;
    std::vector<IoCompletion> ready_;
};

std::unique_ptr<offload::Tier> Disk::make_tier(uint64_t bytes) {
    bytes_ = bytes;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kUnit, bytes)));
    std::memset(memory_.get(), 0xee, bytes);
    offload::TierOptions options;
    options.deadline_ns = kDeadlineNs;
    options.clock = [this] { return now_ns_; };
    return offload::DiskTier::create_driven(std::make_unique<Queue>(*this), bytes, kUnit,
                                            1 + static_cast<uint32_t>(random_() % 128),
                                            std::move(options));
}

}  // namespace shoal::sim
