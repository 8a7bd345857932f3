// Frames of the cache: which one is given up for another block, and how what changed gets to disk.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "offload/block_cache.hpp"

namespace shoal::offload {

namespace {

// Passes of the hand that a block survives: one more with each wave that used it, up to a most. So
// what a scan brings in goes before what several steps have used, and layers that attend everything
// keep what fits.
constexpr uint8_t kHeatMax = 7;

}  // namespace

void BlockCache::hold(uint32_t index) {
    Frame& frame = frames_[index];
    frame.wave = wave_;
    frame.heat = std::min<uint8_t>(frame.heat + 1, kHeatMax);
    ++held_count_;
}

// A frame for a block, waiting for dirty ones to be written, or for what was read ahead, if need
// be; kNoFrame when this wave holds all.
uint32_t BlockCache::take_frame() {
    uint32_t frame = take_frame_at_once();
    if (frame != kNoFrame) return frame;
    start_queued();
    const uint64_t started = now_ns();
    start_writes(dirty_count_);
    wait_for(writing_.all());
    frame = take_frame_at_once();
    if (frame == kNoFrame) frame = take_frame_read_ahead();
    if (frame == kNoFrame) {
        wait_for(aside_.all());
        frame = take_frame_at_once();
    }
    counters_.write_wait_ns += now_ns() - started;
    return frame;
}

uint32_t BlockCache::take_frame_read_ahead() {
    for (uint32_t index = 0; index < options_.frame_count; ++index) {
        const Frame& frame = frames_[index];
        if (frame.state != FrameState::reading || frame.wave == wave_) continue;
        if (frame.owner == nullptr) continue;
        wait_for({&index, 1});
        if (frame.transfer.in_flight()) continue;
        disown(index);
        return index;
    }
    return kNoFrame;
}

uint32_t BlockCache::take_frame_at_once() {
    uint32_t frame = take_free_frame();
    if (frame == kNoFrame) frame = find_victim();
    if (frame != kNoFrame) return frame;
    end_writes(false);
    frame = take_free_frame();
    return frame == kNoFrame ? find_victim() : frame;
}

uint32_t BlockCache::take_free_frame() {
    const uint32_t frame = free_first_;
    if (frame == kNoFrame) return frame;
    free_first_ = frames_[frame].next;
    --free_count_;
    frames_[frame].next = kNoFrame;
    return frame;
}

// CLOCK: the hand goes round, takes heat from what it passes, and stops at a cold block that disk
// holds and that is not of this wave.
uint32_t BlockCache::find_victim() {
    const uint64_t steps = uint64_t{options_.frame_count} * (kHeatMax + 1);
    for (uint64_t step = 0; step < steps; ++step) {
        const uint32_t index = hand_;
        hand_ = hand_ + 1 == options_.frame_count ? 0 : hand_ + 1;
        Frame& frame = frames_[index];
        if (frame.wave == wave_ || frame.owner == nullptr) continue;
        const bool arrived = frame.state == FrameState::reading && frame.prefetched &&
                             frame.transfer.ended();
        if (frame.state != FrameState::clean && !arrived) continue;
        if (frame.heat > 0) {
            --frame.heat;
            continue;
        }
        ++counters_.evictions;
        disown(index);
        return index;
    }
    return kNoFrame;
}

void BlockCache::own(uint32_t index, const BlockRef& ref) {
    Frame& frame = frames_[index];
    frame.owner = ref.owner;
    frame.block = ref.block;
    ref.owner->entries[ref.block].frame_plus_1 = index + 1;
}

void BlockCache::disown(uint32_t index) {
    Frame& frame = frames_[index];
    if (frame.prefetched) ++counters_.prefetched_wasted;
    frame.prefetched = false;
    entry_of(frame).frame_plus_1 = 0;
    frame.owner->table[frame.block] = nullptr;
    frame.owner = nullptr;
    frame.heat = 0;
    frame.wave = 0;
}

void BlockCache::free_frame(uint32_t index) {
    frames_[index].state = FrameState::free;
    frames_[index].next = free_first_;
    free_first_ = index;
    ++free_count_;
}

void BlockCache::mark_dirty(uint32_t index) {
    Frame& frame = frames_[index];
    entry_of(frame).on_disk = false;
    if (frame.state == FrameState::dirty) return;
    frame.state = FrameState::dirty;
    frame.previous = dirty_last_;
    frame.next = kNoFrame;
    (dirty_last_ == kNoFrame ? dirty_first_ : frames_[dirty_last_].next) = index;
    dirty_last_ = index;
    ++dirty_count_;
}

void BlockCache::unlink_dirty(uint32_t index) {
    Frame& frame = frames_[index];
    (frame.previous == kNoFrame ? dirty_first_ : frames_[frame.previous].next) = frame.next;
    (frame.next == kNoFrame ? dirty_last_ : frames_[frame.next].previous) = frame.previous;
    frame.next = frame.previous = kNoFrame;
    --dirty_count_;
}

void BlockCache::write_behind() {
    end_writes(false);
    if (dirty_count_ > options_.dirty_high && !write_refused_) {
        start_writes(dirty_count_ - options_.dirty_low);
    }
}

void BlockCache::start_writes(uint32_t count) {
    for (; count > 0 && dirty_first_ != kNoFrame; --count) {
        const uint32_t index = dirty_first_;
        unlink_dirty(index);
        Frame& frame = frames_[index];
        frame.state = FrameState::writing;
        Transfer& transfer = frame.transfer;
        transfer.kind = TransferKind::write;
        const BlockOwner& owner = *frame.owner;
        transfer.offset = owner.file_offset + uint64_t{frame.block} * owner.block_bytes;
        transfer.data = memory_of(index);
        transfer.bytes = frame.owner->block_bytes;
        transfer.identity = frame.owner->identity + frame.block;
        transfer.checksum = &entry_of(frame).checksum;
        writing_.add(index);
        queued_.add(&transfer);
    }
    start_queued();
}

// Looks after writes, and after transfers that nobody waits for any more.
void BlockCache::end_writes(bool wait) {
    if (wait) wait_for(writing_.all());
    uint32_t kept = 0;
    for (const uint32_t index : writing_.all()) {
        if (frames_[index].transfer.in_flight()) writing_.items[kept++] = index;
        else end_write(index);
    }
    writing_.count = kept;
    kept = 0;
    for (const uint32_t index : aside_.all()) {
        if (frames_[index].transfer.in_flight()) aside_.items[kept++] = index;
        else free_frame(index);
    }
    aside_.count = kept;
}

void BlockCache::end_write(uint32_t index) {
    Frame& frame = frames_[index];
    frame.state = FrameState::clean;
    if (frame.transfer.state.load(std::memory_order_acquire) == TransferState::done) {
        entry_of(frame).on_disk = true;
        ++counters_.blocks_written;
        write_refused_ = false;
        return;
    }
    ++counters_.write_failures;
    if (!write_refused_ && options_.warn) {
        options_.warn(fmt::format("{}: could not be written to disk: {}; it stays in RAM",
                                  frame.owner->block_name(frame.block),
                                  std::strerror(frame.transfer.error)));
    }
    write_refused_ = true;
    mark_dirty(index);
}

Status BlockCache::flush() {
    start_writes(dirty_count_);
    end_writes(true);
    if (dirty_count_ == 0 && writing_.count == 0) return Status::ok();
    return Status::error(StatusCode::unavailable,
                         fmt::format("{} blocks could not be written to disk",
                                     dirty_count_ + writing_.count));
}

void BlockCache::forget_write(uint32_t index) {
    const std::span<uint32_t> all = writing_.all();
    *std::find(all.begin(), all.end(), index) = all.back();
    --writing_.count;
}

void BlockCache::drop(BlockOwner& owner, uint32_t block_begin, uint32_t block_end) {
    bool writes = false;
    for (uint32_t block = block_begin; block < block_end; ++block) {
        const BlockEntry& entry = owner.entries[block];
        writes |= entry.has_frame() && frames_[entry.frame()].state == FrameState::writing;
    }
    // The place on disk is written again later: not before this write has ended.
    if (writes) end_writes(true);
    for (uint32_t block = block_begin; block < block_end; ++block) {
        BlockEntry& entry = owner.entries[block];
        if (entry.has_frame()) {
            const uint32_t index = entry.frame();
            Frame& frame = frames_[index];
            if (frame.state == FrameState::dirty) unlink_dirty(index);
            if (frame.state == FrameState::writing) forget_write(index);
            disown(index);
            if (frame.transfer.in_flight()) put_aside(index);
            else free_frame(index);
        }
        entry = BlockEntry{};
    }
}

}  // namespace shoal::offload
