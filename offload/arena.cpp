// Growth step and huge pages, and why they are as they are.
//
// RSS must stay within 3 % of what the rows and labels of an 8,192-token context take. With a
// region for each layer of a model of 30 layers, 768 B a token and layer, that is 189 KiB of slack
// a region; so both ways of touching more than is used are bounded by what a region already has:
//   growth step   1/64 of what is committed (1.6 %), at most 64 MiB; a quarter in regions so
//                 small that it is below 64 KiB;
//   huge pages    only for 2 MiB parts that are committed whole, before their first touch. Rows,
//                 which are most of the memory, always come so (offload/block_pool.hpp). The rest
//                 is advised against, or a system set to "always" would spend 2 MiB on every first
//                 touch. A part that filled up in small steps is advised too late; the kernel may
//                 make it huge when it finds time. Asking for that at once (MADV_COLLAPSE) was
//                 measured: 8 ms a part at best and 20 in the median of a busy 2-core machine,
//                 in the middle of a step.
#include "offload/arena.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "offload/block_pool.hpp"
#include "offload/executor.hpp"
#include "offload/memory_limits.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace shoal::offload {

namespace {

constexpr uint64_t kSmallStepMax = uint64_t{64} << 10;
constexpr uint64_t kGrowthStepMax = uint64_t{64} << 20;
// Below this much, waking a second thread costs more than it saves.
constexpr uint64_t kParallelTouchMin = uint64_t{8} << 20;
constexpr uint64_t kTouchPartBytes = uint64_t{4} << 20;

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }
uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }

// One write a page where the kernel cannot populate (before Linux 5.14), of what is there.
void touch_by_writing(std::byte* begin, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; at += kPageBytes) {
        volatile std::byte* const byte = begin + at;
        *byte = *byte;
    }
}

int populate(std::byte* begin, uint64_t bytes) {
    if (madvise(begin, bytes, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL && errno != EAGAIN) return errno;
    touch_by_writing(begin, bytes);
    return 0;
}

std::byte* map_anonymous(uint64_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

// Maps a huge page more than is needed and unmaps what lies outside the aligned run.
std::byte* map_aligned(uint64_t bytes, uint64_t alignment) {
    if (alignment <= kPageBytes) return map_anonymous(bytes);
    std::byte* raw = map_anonymous(bytes + alignment);
    if (raw == nullptr) return nullptr;
    const uint64_t address = reinterpret_cast<uintptr_t>(raw);
    const uint64_t head = round_up(address, alignment) - address;
    if (head > 0) munmap(raw, head);
    if (head < alignment) munmap(raw + head + bytes, alignment - head);
    return raw + head;
}

}  // namespace

Region::Region(Region&& other) noexcept { *this = std::move(other); }

Region& Region::operator=(Region&& other) noexcept {
    if (this == &other) return *this;
    reset();
    arena_ = std::exchange(other.arena_, nullptr);
    tag_ = other.tag_;
    reservation_ = std::move(other.reservation_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    committed_bytes_ = std::exchange(other.committed_bytes_, 0);
    huge_pages_ = other.huge_pages_;
    return *this;
}

Region::~Region() { reset(); }

void Region::reset() {
    if (data_ == nullptr) return;
    munmap(data_, bytes_);
    arena_->committed_[static_cast<size_t>(tag_)] -= committed_bytes_;
    arena_->reserved_[static_cast<size_t>(tag_)] -= reservation_.bytes();
    reservation_ = Reservation();
    data_ = nullptr;
    bytes_ = 0;
    committed_bytes_ = 0;
}

uint64_t Region::growth_step() const {
    const uint64_t step = std::max(committed_bytes_ / 64, std::min(committed_bytes_ / 4,
                                                                   kSmallStepMax));
    const uint64_t unit = huge_pages_ && step >= kHugePageBytes ? kHugePageBytes : kPageBytes;
    return std::clamp(round_down(step, unit), kPageBytes, kGrowthStepMax);
}

Status Region::touch_until(uint64_t bytes, const Executor* executor, uint64_t growth_end) {
    if (bytes <= committed_bytes_) return Status::ok();
    SHOAL_ASSERT(data_ != nullptr && bytes <= bytes_);
    const uint64_t with_step =
        std::max(bytes, std::min(committed_bytes_ + growth_step(), growth_end));
    const uint64_t target = std::min(round_up(with_step, kPageBytes), bytes_);
    SHOAL_TRY(commit(committed_bytes_, target, executor));
    arena_->committed_[static_cast<size_t>(tag_)] += target - committed_bytes_;
    committed_bytes_ = target;
    return Status::ok();
}

Status Region::commit(uint64_t begin, uint64_t end, const Executor* executor) {
    const uint64_t huge_begin = round_down(begin, kHugePageBytes);
    const uint64_t huge_end = round_down(end, kHugePageBytes);
    if (huge_pages_ && huge_begin < huge_end &&
        madvise(data_ + huge_begin, huge_end - huge_begin, MADV_HUGEPAGE) != 0) {
        arena_->huge_pages_refused_ += (huge_end - huge_begin) / kHugePageBytes;
    }

    // Parts end at multiples of their size, so that no two threads touch one huge page.
    const Executor inline_only;
    const bool in_parallel = executor != nullptr && end - begin >= kParallelTouchMin;
    const uint64_t first_part = begin / kTouchPartBytes;
    const uint64_t part_count = (end - 1) / kTouchPartBytes - first_part + 1;
    std::atomic<int> error{0};
    run_on(in_parallel ? *executor : inline_only, static_cast<uint32_t>(part_count),
           [&](uint32_t i, uint32_t) {
               const uint64_t part = (first_part + i) * kTouchPartBytes;
               const uint64_t from = std::max(part, begin);
               const uint64_t to = std::min(part + kTouchPartBytes, end);
               if (const int failed = populate(data_ + from, to - from)) error = failed;
           });
    if (error != 0) {
        madvise(data_ + begin, end - begin, MADV_DONTNEED);
        return Status::error(StatusCode::out_of_memory,
                             fmt::format("the system refused {} more for {}: {}",
                                         bytes_text(end - begin), memory_tag_name(tag_),
                                         std::strerror(error)));
    }
    return Status::ok();
}

void Region::release_from(uint64_t bytes) {
    const uint64_t unit = huge_pages_ ? kHugePageBytes : kPageBytes;  // split no huge page
    const uint64_t kept = bytes == 0 ? 0 : round_up(bytes + growth_step(), unit);
    if (kept >= committed_bytes_) return;
    madvise(data_ + kept, committed_bytes_ - kept, MADV_DONTNEED);
    if (huge_pages_) madvise(data_ + kept, bytes_ - kept, MADV_NOHUGEPAGE);
    arena_->committed_[static_cast<size_t>(tag_)] -= committed_bytes_ - kept;
    committed_bytes_ = kept;
}

Arena::Arena(Budget* budget, HugePages huge_pages) : budget_(budget), huge_pages_(huge_pages) {}

Arena::~Arena() {
    pool_.reset();
    SHOAL_ASSERT(is_counting() || reserved_bytes() == 0);
}

Result<Region> Arena::region(MemoryTag tag, uint64_t bytes) {
    bytes = round_up(bytes, kPageBytes);
    if (bytes == 0 || is_counting()) {
        reserved_[static_cast<size_t>(tag)] += bytes;
        return Region(tag, bytes);
    }
    Result<Reservation> reservation = budget_->reserve(tag, bytes);
    if (!reservation) return reservation.status();
    Result<Region> region = map(tag, bytes);
    if (!region) return region.status();
    region->reservation_ = std::move(*reservation);
    reserved_[static_cast<size_t>(tag)] += bytes;
    return region;
}

Result<Region> Arena::map(MemoryTag tag, uint64_t bytes) {
    const bool huge_pages = huge_pages_ == HugePages::advise && bytes >= kHugePageBytes;
    std::byte* data = map_aligned(bytes, huge_pages ? kHugePageBytes : kPageBytes);
    if (data == nullptr) {
        return Status::error(
            StatusCode::out_of_memory,
            fmt::format("the system refused {} of address space for {}: {} (see ulimit -v and "
                        "vm.overcommit_memory)",
                        bytes_text(bytes), memory_tag_name(tag), std::strerror(errno)));
    }
    madvise(data, bytes, MADV_NOHUGEPAGE);
    Region region(tag, bytes);
    region.arena_ = this;
    region.data_ = data;
    region.huge_pages_ = huge_pages;
    return region;
}

BlockPool& Arena::block_pool() {
    if (!pool_) pool_ = std::make_unique<BlockPool>(*this);
    return *pool_;
}

uint64_t Arena::reserved_bytes() const {
    uint64_t sum = 0;
    for (const auto& bytes : reserved_) sum += bytes;
    return sum;
}

uint64_t Arena::committed_bytes() const {
    uint64_t sum = 0;
    for (const auto& bytes : committed_) sum += bytes;
    return sum;
}

}  // namespace shoal::offload
