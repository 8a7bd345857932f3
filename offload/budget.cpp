#include "offload/budget.hpp"

#include <fmt/format.h>

#include <utility>

#include "offload/memory_limits.hpp"

namespace shoal::offload {

const char* memory_tag_name(MemoryTag tag) {
    switch (tag) {
        case MemoryTag::kv: return "kv";
        case MemoryTag::labels: return "labels";
        case MemoryTag::index: return "index";
        case MemoryTag::workspace: return "workspace";
    }
    return "unknown";
}

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      tag_(other.tag_),
      bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
    if (this == &other) return *this;
    if (budget_ != nullptr) budget_->give_back(tag_, bytes_);
    budget_ = std::exchange(other.budget_, nullptr);
    tag_ = other.tag_;
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
}

Reservation::~Reservation() {
    if (budget_ != nullptr) budget_->give_back(tag_, bytes_);
}

Status Reservation::grow(uint64_t more_bytes) {
    SHOAL_ASSERT(budget_ != nullptr);
    SHOAL_TRY(budget_->take(tag_, more_bytes));
    bytes_ += more_bytes;
    return Status::ok();
}

void Reservation::shrink(uint64_t fewer_bytes) {
    SHOAL_ASSERT(fewer_bytes <= bytes_);
    if (fewer_bytes == 0) return;
    budget_->give_back(tag_, fewer_bytes);
    bytes_ -= fewer_bytes;
}

Budget::Budget(std::string field, uint64_t total_bytes)
    : field_(std::move(field)), total_bytes_(total_bytes) {}

Budget::~Budget() { SHOAL_ASSERT(used_bytes_ == 0); }

Result<Reservation> Budget::reserve(MemoryTag tag, uint64_t bytes) {
    SHOAL_TRY(take(tag, bytes));
    return Reservation(this, tag, bytes);
}

uint64_t Budget::used_bytes() const {
    const std::lock_guard lock(mutex_);
    return used_bytes_;
}

uint64_t Budget::used_bytes(MemoryTag tag) const {
    const std::lock_guard lock(mutex_);
    return used_by_tag_[static_cast<size_t>(tag)];
}

Status Budget::take(MemoryTag tag, uint64_t bytes) {
    uint64_t left_bytes = 0;
    {
        const std::lock_guard lock(mutex_);
        left_bytes = total_bytes_ - used_bytes_;
        if (bytes <= left_bytes) {
            used_bytes_ += bytes;
            used_by_tag_[static_cast<size_t>(tag)] += bytes;
            return Status::ok();
        }
    }
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("{} = {}: {} more wanted for {} ({} B), {} left ({} B)", field_,
                    bytes_text(total_bytes_), bytes_text(bytes), memory_tag_name(tag), bytes,
                    bytes_text(left_bytes), left_bytes));
}

void Budget::give_back(MemoryTag tag, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    SHOAL_ASSERT(bytes <= used_by_tag_[static_cast<size_t>(tag)]);
    used_bytes_ -= bytes;
    used_by_tag_[static_cast<size_t>(tag)] -= bytes;
}

}  // namespace shoal::offload
