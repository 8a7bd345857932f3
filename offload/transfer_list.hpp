// First in, first out, through Transfer::next: a queue of any length that allocates nothing. A
// transfer is in one list at a time.
#pragma once

#include <utility>

#include "offload/tier.hpp"

namespace shoal::offload {

class TransferList {
public:
    bool empty() const { return first_ == nullptr; }
    Transfer* front() const { return first_; }

    void push(Transfer& transfer) {
        transfer.next = nullptr;
        (first_ == nullptr ? first_ : last_->next) = &transfer;
        last_ = &transfer;
    }
    Transfer& pop() {
        Transfer& transfer = *first_;
        first_ = std::exchange(transfer.next, nullptr);
        return transfer;
    }
    // Puts all of `other` behind what is here; `other` is empty then.
    void take(TransferList& other) {
        if (other.empty()) return;
        (empty() ? first_ : last_->next) = other.first_;
        last_ = other.last_;
        other.first_ = nullptr;
    }
    // Moves those that `wanted` says to the end of `to`; both keep their order.
    template <typename Wanted>
    void move_if(const Wanted& wanted, TransferList& to) {
        TransferList kept;
        while (!empty()) {
            Transfer& transfer = pop();
            (wanted(transfer) ? to : kept).push(transfer);
        }
        take(kept);
    }

private:
    Transfer* first_ = nullptr;
    Transfer* last_ = nullptr;  // of a list that is not empty
};

}  // namespace shoal::offload
