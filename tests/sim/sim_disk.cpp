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

bool Disk::inject(Fault fault, const Place& place) {
    if (!draw(fault)) return false;
    count(fault, place);
    return true;
}

void Disk::count(Fault fault, const Place& place) {
    ++injected_[fault];
    if (fault >= Fault::error) events_.push_back({fault, place});
}

bool Disk::befell(Fault fault) const {
    const auto begin = events_.begin() + static_cast<std::ptrdiff_t>(call_first_);
    return std::any_of(begin, events_.end(),
                       [&](const Event& event) { return event.fault == fault; });
}

bool Disk::befell_twice(std::initializer_list<Fault> faults, const Place& place) const {
    uint64_t times = 0;
    bool in_this_call = false;
    for (size_t i = 0; i < events_.size(); ++i) {
        const bool is_one =
            std::find(faults.begin(), faults.end(), events_[i].fault) != faults.end();
        if (!is_one || !events_[i].place.overlaps(place)) continue;
        ++times;
        in_this_call |= i >= call_first_;
    }
    return times >= 2 && in_this_call;
}

bool Disk::is_damaged(const Place& place) const {
    const auto begin = damaged_.begin() + static_cast<std::ptrdiff_t>(place.offset / kUnit);
    return std::find(begin, begin + static_cast<std::ptrdiff_t>(place.bytes / kUnit), true) !=
           begin + static_cast<std::ptrdiff_t>(place.bytes / kUnit);
}

// A unit is whole again when it was written whole; a part of one is damage.
void Disk::set_damaged(const Place& to, bool damaged) {
    const uint64_t first = damaged ? to.offset / kUnit : (to.offset + kUnit - 1) / kUnit;
    const uint64_t end = to.offset + to.bytes;
    const uint64_t last = damaged ? (end + kUnit - 1) / kUnit : end / kUnit;
    for (uint64_t unit = first; unit < last; ++unit) damaged_[unit] = damaged;
}

void Disk::pass_time() { now_ns_ += random_() % (2 * plan_.latency_most_ns); }

void Disk::note(uint64_t event) {
    digest_ = (digest_ ^ event) * 0x9e3779b97f4a7c15;
    digest_ ^= digest_ >> 29;
}

void Disk::end_late(const Place& place, bool is_whole) {
    --late_count_;
    events_.push_back({Fault::late, place});
    if (!is_whole) overdue_.push_back(place);
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
        const Place place = place_of(operation);
        if (!pending_.empty() && disk_.inject(Fault::refused, place)) return false;
        uint64_t due_ns = disk_.now_ns_ + disk_.random_() % (disk_.plan_.latency_most_ns + 1);
        const bool is_late = disk_.inject(Fault::late, place);
        if (is_late) {
            const bool is_hung = disk_.random_() % 8 == 0;
            due_ns += Disk::kDeadlineNs * (is_hung ? 100 : 1 + disk_.random_() % 3);
        }
        disk_.note(operation.offset << 1 | (operation.kind == TransferKind::read ? 1 : 0));
        disk_.note(due_ns);
        disk_.late_count_ += is_late ? 1 : 0;
        pending_.push_back({operation, due_ns, is_late});
        return true;
    }

    size_t reap(std::span<IoCompletion> completions) override {
        for (size_t i = 0; i < pending_.size();) {
            if (pending_[i].due_ns > disk_.now_ns_) {
                ++i;
                continue;
            }
            const Pending ended = pending_[i];
            pending_[i] = pending_.back();
            pending_.pop_back();
            complete(ended);
        }
        const size_t count = std::min(completions.size(), ready_.size());
        for (size_t i = 0; i < count; ++i) {
            completions[i] = ready_[i].completion;
            if (ready_[i].fault != Fault::none) disk_.count(ready_[i].fault, {});
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
        bool is_late;
    };
    // The fault, if it is one of what the completion says: counted when the engine hears it.
    struct Ready {
        IoCompletion completion;
        Fault fault = Fault::none;
    };

    static Place place_of(const IoOperation& operation) {
        uint64_t bytes = 0;
        for (const iovec& piece : operation.pieces) bytes += piece.iov_len;
        return {operation.offset, bytes};
    }

    void complete(const Pending& ended) {
        const IoOperation& operation = ended.operation;
        Ready ready{{operation.tag, -error_of(operation)}, Fault::none};
        if (ready.completion.result == 0) {
            uint64_t bytes = place_of(operation).bytes;
            if (disk_.draw(Fault::short_result)) {
                ready.fault = Fault::short_result;
                bytes = disk_.random_() % bytes;
            }
            move(operation, bytes);
            ready.completion.result = static_cast<int64_t>(bytes);
        }
        settle(ended, ready.completion.result);
        put_anywhere(ready);
        if (disk_.draw(Fault::duplicate)) put_anywhere({ready.completion, Fault::duplicate});
        if (disk_.draw(Fault::foreign)) {
            put_anywhere({{disk_.random_() | uint64_t{1} << 62, Disk::kUnit}, Fault::foreign});
        }
    }

    void settle(const Pending& ended, int64_t result) {
        const Place place = place_of(ended.operation);
        const bool is_whole = result == static_cast<int64_t>(place.bytes);
        if (is_whole) {
            std::erase_if(disk_.overdue_, [&](const Place& overdue) {
                return overdue.overlaps(place) &&
                       overdue.offset + overdue.bytes <= place.offset + place.bytes;
            });
        }
        if (ended.is_late) disk_.end_late(place, is_whole);
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
            disk_.count(Fault::error, place_of(operation));
            return kErrors[disk_.random_() % 3];
        }
        if (operation.kind == TransferKind::write && disk_.full_left_ > 0) {
            --disk_.full_left_;
            disk_.count(Fault::full, place_of(operation));
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
            if (offset != operation.offset) {
                disk_.count(Fault::misdirected, place_of(operation));
                if (operation.kind == TransferKind::write) {
                    disk_.set_damaged({operation.offset, bytes}, true);
                }
            }
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
        if (bytes == 0 || !disk_.inject(Fault::corrupt, place_of(operation))) return;
        const iovec& piece = operation.pieces[0];
        const uint64_t reach = std::min<uint64_t>(bytes, piece.iov_len);
        for (uint64_t bits = 1 + disk_.random_() % 8; bits > 0; --bits) {
            static_cast<std::byte*>(piece.iov_base)[disk_.random_() % reach] ^=
                std::byte{1} << (disk_.random_() % 8);
        }
    }

    void write(const IoOperation& operation, uint64_t offset, uint64_t bytes) {
        uint64_t kept = bytes;
        if (bytes != 0 && disk_.inject(Fault::torn, place_of(operation))) {
            kept = disk_.random_() % bytes;
        }
        disk_.set_damaged({offset, bytes}, offset != operation.offset);
        if (kept < bytes) disk_.set_damaged({offset + kept, bytes - kept}, true);
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
    damaged_.assign(bytes / kUnit, false);
    offload::TierOptions options;
    options.deadline_ns = kDeadlineNs;
    options.clock = [this] { return now_ns_; };
    auto tier = std::make_unique<PoisoningTier>(offload::DiskTier::create_driven(
        std::make_unique<SimQueue>(*this), bytes, kUnit, plan_.depth, std::move(options)));
    tier_ = tier.get();
    return tier;
}

}  // namespace shoal::sim
