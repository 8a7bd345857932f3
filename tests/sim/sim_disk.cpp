#include "tests/sim/sim_disk.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <vector>

#include "offload/tier_wrappers.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace shoal::sim {

using offload::IoCompletion;
using offload::IoOperation;
using offload::IoQueue;
using offload::Transfer;
using offload::TransferKind;

const char* fault_name(Fault fault) {
    constexpr const char* kNames[kFaultKinds] = {
        "none",     "refused", "short",       "twice", "foreign", "errors",
        "no space", "corrupt", "misdirected", "torn",  "late"};
    return kNames[static_cast<size_t>(fault)];
}

bool Disk::draw(Fault fault) {
    const double chance = plan_.chance[static_cast<size_t>(fault)];
    return chance > 0 && static_cast<double>(random_() >> 11) * 0x1p-53 < chance;
}

bool Disk::inject(Fault fault) {
    if (!draw(fault)) return false;
    ++injected_[fault];
    return true;
}

void Disk::pass_time() { now_ns_ += random_() % (2 * plan_.latency_most_ns); }

void Disk::note(uint64_t event) {
    digest_ = (digest_ ^ event) * 0x9e3779b97f4a7c15;
    digest_ ^= digest_ >> 29;
}

// Operations wait here until the clock, which moves when somebody waits, has passed their time.
class SimQueue final : public IoQueue {
public:
    explicit SimQueue(Disk& disk) : disk_(disk) {}

    bool submit(const IoOperation& operation) override {
        if (pending_.size() >= disk_.plan_.capacity) {
            ++disk_.injected_[Fault::refused];
            return false;
        }
        if (!pending_.empty() && disk_.inject(Fault::refused)) return false;
        uint64_t due_ns = disk_.now_ns_ + disk_.random_() % (disk_.plan_.latency_most_ns + 1);
        if (disk_.inject(Fault::late)) {
            const bool is_hung = disk_.random_() % 8 == 0;
            due_ns += Disk::kDeadlineNs * (is_hung ? 100 : 1 + disk_.random_() % 3);
        }
        disk_.note(operation.offset << 1 | (operation.kind == TransferKind::read ? 1 : 0));
        disk_.note(due_ns);
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
        for (size_t i = 0; i < count; ++i) {
            completions[i] = ready_[i].completion;
            if (ready_[i].fault != Fault::none) ++disk_.injected_[ready_[i].fault];
            disk_.note(completions[i].tag);
            disk_.note(static_cast<uint64_t>(completions[i].result));
        }
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
    // The fault, if it is one of what the completion says: counted when the engine hears it.
    struct Ready {
        IoCompletion completion;
        Fault fault = Fault::none;
    };

    void complete(const IoOperation& operation) {
        Ready ready{{operation.tag, -error_of(operation)}, Fault::none};
        if (ready.completion.result == 0) {
            uint64_t bytes = 0;
            for (const iovec& piece : operation.pieces) bytes += piece.iov_len;
            if (disk_.draw(Fault::short_result)) {
                ready.fault = Fault::short_result;
                bytes = disk_.random_() % bytes;
            }
            move(operation, bytes);
            ready.completion.result = static_cast<int64_t>(bytes);
        }
        put_anywhere(ready);
        if (disk_.draw(Fault::duplicate)) put_anywhere({ready.completion, Fault::duplicate});
        if (disk_.draw(Fault::foreign)) {
            put_anywhere({{disk_.random_() | uint64_t{1} << 62, Disk::kUnit}, Fault::foreign});
        }
    }

    // 0: none.
    int error_of(const IoOperation& operation) {
        constexpr int kErrors[] = {EIO, EAGAIN, EINTR};
        if (disk_.draw(Fault::error)) {
            disk_.errors_left_ = disk_.random_() % 4 == 0 ? disk_.random_() % 300 : 1;
        }
        if (disk_.draw(Fault::full)) disk_.full_left_ = disk_.random_() % 400;
        if (disk_.errors_left_ > 0) {
            --disk_.errors_left_;
            ++disk_.injected_[Fault::error];
            return kErrors[disk_.random_() % 3];
        }
        if (operation.kind == TransferKind::write && disk_.full_left_ > 0) {
            --disk_.full_left_;
            ++disk_.injected_[Fault::full];
            return ENOSPC;
        }
        return 0;
    }

    void put_anywhere(const Ready& ready) {
        const auto at = static_cast<std::ptrdiff_t>(disk_.random_() % (ready_.size() + 1));
        ready_.insert(ready_.begin() + at, ready);
    }

    void move(const IoOperation& operation, uint64_t bytes) {
        uint64_t offset = operation.offset;
        if (disk_.draw(Fault::misdirected)) {
            const uint64_t places = (disk_.bytes_ - bytes) / Disk::kUnit + 1;
            offset = disk_.random_() % places * Disk::kUnit;
            if (offset != operation.offset) ++disk_.injected_[Fault::misdirected];
        }
        if (operation.kind == TransferKind::read) read(operation, offset, bytes);
        else write(operation, offset, bytes);
    }

    void read(const IoOperation& operation, uint64_t offset, uint64_t bytes) {
        const std::byte* from = disk_.memory_.get() + offset;
        uint64_t left = bytes;
        for (const iovec& piece : operation.pieces) {
            const uint64_t part = std::min<uint64_t>(left, piece.iov_len);
            ASAN_UNPOISON_MEMORY_REGION(piece.iov_base, part);
            std::memcpy(piece.iov_base, from, part);
            from += part;
            left -= part;
        }
        if (bytes == 0 || !disk_.inject(Fault::corrupt)) return;
        const iovec& piece = operation.pieces[0];
        const uint64_t reach = std::min<uint64_t>(bytes, piece.iov_len);
        for (uint64_t bits = 1 + disk_.random_() % 8; bits > 0; --bits) {
            static_cast<std::byte*>(piece.iov_base)[disk_.random_() % reach] ^=
                std::byte{1} << (disk_.random_() % 8);
        }
    }

    void write(const IoOperation& operation, uint64_t offset, uint64_t bytes) {
        uint64_t kept = bytes;
        if (bytes != 0 && disk_.inject(Fault::torn)) kept = disk_.random_() % bytes;
        std::byte* to = disk_.memory_.get() + offset;
        for (const iovec& piece : operation.pieces) {
            const uint64_t part = std::min<uint64_t>(kept, piece.iov_len);
            std::memcpy(to, piece.iov_base, part);
            to += part;
            kept -= part;
        }
    }

    Disk& disk_;
    std::vector<Pending> pending_;
    std::vector<Ready> ready_;
};

namespace {

// From start() on, what is read is poisoned; from its end on, it may be looked at.
class PoisoningTier final : public offload::TierWrapper {
public:
    explicit PoisoningTier(std::unique_ptr<Tier> inner) : TierWrapper(std::move(inner)) {}
    ~PoisoningTier() override { close(); }

private:
    void do_start(std::span<Transfer* const> transfers) override {
        for (const Transfer* transfer : transfers) {
            if (transfer->kind != TransferKind::read) continue;
            std::memset(transfer->data, 0xff, transfer->bytes);
            ASAN_POISON_MEMORY_REGION(transfer->data, transfer->bytes);
        }
        start_in(inner(), transfers);
    }
    void do_finish(Transfer& transfer, int error) override {
        ASAN_UNPOISON_MEMORY_REGION(transfer.data, transfer.bytes);
        finish(transfer, error);
    }
};

}  // namespace

std::unique_ptr<offload::Tier> Disk::make_tier(uint64_t bytes) {
    bytes_ = bytes;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kUnit, bytes)));
    std::memset(memory_.get(), 0xee, bytes);
    offload::TierOptions options;
    options.deadline_ns = kDeadlineNs;
    options.clock = [this] { return now_ns_; };
    auto tier = std::make_unique<PoisoningTier>(offload::DiskTier::create_driven(
        std::make_unique<SimQueue>(*this), bytes, kUnit, plan_.depth, std::move(options)));
    tier_ = tier.get();
    return tier;
}

}  // namespace shoal::sim
