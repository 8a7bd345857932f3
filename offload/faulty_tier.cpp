#include "offload/faulty_tier.hpp"

#include <algorithm>
#include <utility>

namespace shoal::offload {

FaultyTier::FaultyTier(std::unique_ptr<Tier> inner, std::vector<Fault> plan, uint64_t seed)
    : TierWrapper(std::move(inner)), plan_(std::move(plan)), seed_(seed) {}

FaultyTier::~FaultyTier() {
    close();
    release();
}

const Fault* FaultyTier::match(const Transfer& transfer) {
    const uint64_t index = started_count_++;
    for (Fault& fault : plan_) {
        if (fault.times == 0) continue;
        if (fault.at != Fault::kAny && fault.at != index) continue;
        if (fault.offset != Fault::kAny && fault.offset != transfer.offset) continue;
        --fault.times;
        ++fired_[static_cast<size_t>(fault.kind)];
        return &fault;
    }
    return nullptr;
}

// The same bits of the same place, so that flipping twice restores.
void FaultyTier::flip(Transfer& transfer, uint32_t bits) {
    std::mt19937_64 random(seed_ ^ transfer.offset);
    std::vector<uint64_t> chosen;
    while (chosen.size() < std::min<uint64_t>(bits, uint64_t{8} * transfer.bytes)) {
        const uint64_t bit = random() % (uint64_t{8} * transfer.bytes);
        if (std::find(chosen.begin(), chosen.end(), bit) == chosen.end()) chosen.push_back(bit);
    }
    for (const uint64_t bit : chosen) transfer.data[bit / 8] ^= std::byte{1} << (bit % 8);
}

void FaultyTier::do_start(std::span<Transfer* const> transfers) {
    for (Transfer* transfer : transfers) {
        const Fault* fault = nullptr;
        {
            const std::lock_guard lock(mutex_);
            fault = match(*transfer);
            if (fault != nullptr) active_.push_back({transfer, fault, transfer->offset});
        }
        const bool is_write = transfer->kind == TransferKind::write;
        switch (fault == nullptr ? FaultKind::hold : fault->kind) {
            case FaultKind::fail: do_finish(*transfer, fault->error); continue;
            case FaultKind::lose: do_finish(*transfer, 0); continue;
            case FaultKind::misdirect: transfer->offset = fault->other_offset; break;
            case FaultKind::flip_bits:
                if (is_write) flip(*transfer, fault->bits);
                break;
            case FaultKind::hold: break;
        }
        start_in(inner(), {&transfer, 1});
    }
}

// The fault that befell it; the transfer is as its owner made it again.
const Fault* FaultyTier::take_active(Transfer& transfer) {
    const auto found = std::find_if(active_.begin(), active_.end(), [&](const Active& active) {
        return active.transfer == &transfer;
    });
    if (found == active_.end()) return nullptr;
    const Fault* fault = found->fault;
    transfer.offset = found->offset;
    *found = active_.back();
    active_.pop_back();
    return fault;
}

void FaultyTier::do_finish(Transfer& transfer, int error) {
    std::vector<Held> due;
    {
        const std::lock_guard lock(mutex_);
        const Fault* fault = take_active(transfer);
        if (fault != nullptr && fault->kind == FaultKind::flip_bits) flip(transfer, fault->bits);
        if (fault != nullptr && fault->kind == FaultKind::hold) {
            const bool ends = fault->after != Fault::kAny;
            const uint64_t until = ends ? finished_count_ + fault->after : Fault::kAny;
            held_.push_back({&transfer, error, until});
            return;
        }
        ++finished_count_;
        due = take_held(false);
    }
    finish(transfer, error);
    for (const Held& held : due) finish(*held.transfer, held.error);
}

std::vector<FaultyTier::Held> FaultyTier::take_held(bool all) {
    std::vector<Held> due;
    const auto is_due = [&](const Held& held) { return all || held.until <= finished_count_; };
    std::copy_if(held_.begin(), held_.end(), std::back_inserter(due), is_due);
    held_.erase(std::remove_if(held_.begin(), held_.end(), is_due), held_.end());
    return due;
}

void FaultyTier::release() {
    std::vector<Held> due;
    {
        const std::lock_guard lock(mutex_);
        due = take_held(true);
    }
    for (const Held& held : due) finish(*held.transfer, held.error);
}

uint64_t FaultyTier::fired(FaultKind kind) const {
    const std::lock_guard lock(mutex_);
    return fired_[static_cast<size_t>(kind)];
}

size_t FaultyTier::held_count() const {
    const std::lock_guard lock(mutex_);
    return held_.size();
}

}  // namespace shoal::offload
