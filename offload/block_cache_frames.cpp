// Frames of the cache: which one is given up for another block, and how what changed gets to disk.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "offload/block_cache.hpp"

namespace shoal::offload {

namespace {

// A use weighs an eighth: after some eight rounds the share is what it was worth in them.
constexpr uint32_t kShareLog2 = 3;
constexpr uint32_t kShareMost = 255;
// Frames that are looked at for one to give up. 16 come within a tenth of the hits of looking at
// 64, and lie in some 30 cache lines in a row.
constexpr uint32_t kLookedAt = 16;

}  // namespace

// The share now: less by an eighth for each round that went by without it. The last one may still
// come to it.
uint8_t BlockCache::share_of(const Frame& frame) {
    uint32_t share = frame.share;
    for (auto rounds = static_cast<uint8_t>(frame.owner->round - frame.round);
         rounds > 1 && share > 0; --rounds) {
        share -= (share + 7) >> kShareLog2;
    }
    return static_cast<uint8_t>(share);
}

void BlockCache::hold(uint32_t index) {
    Frame& frame = frames_[index];
    frame.wave = wave_;
    if (frame.round != frame.owner->round || frame.share == 0) {
        const uint32_t share = share_of(frame);
        frame.share = static_cast<uint8_t>(share + ((kShareMost - share + 7) >> kShareLog2));
    }
    frame.round = frame.owner->round;
    frame.expected = false;
    ++held_count_;
}

void BlockCache::expect(Frame& frame) {
    frame.share = share_of(frame);
    frame.round = frame.owner->round;
    frame.expected = true;
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
    if (frame == kNoFrame) frame = take_expected_frame();
    if (frame == kNoFrame) {
        wait_for(aside_.all());
        frame = take_frame_at_once();
    }
    counters_.write_wait_ns += now_ns() - started;
    return frame;
}

// Of those that prefetch() named: they are not needed yet.
uint32_t BlockCache::take_expected_frame() {
    for (uint32_t index = 0; index < options_.frame_count; ++index) {
        const Frame& frame = frames_[index];
        if (frame.owner == nullptr || frame.wave == wave_) continue;
        if (frame.state == FrameState::reading) wait_for({&index, 1});
        else if (frame.state != FrameState::clean) continue;
        if (frame.transfer.in_flight()) continue;
        ++counters_.evictions;
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

// Whether a block may be given up: disk holds it, this wave does not, and it is not expected in
// this round of its owner or the next.
bool BlockCache::may_leave(const Frame& frame) const {
    if (frame.owner == nullptr || frame.wave == wave_) return false;
    const auto rounds = static_cast<uint8_t>(frame.owner->round - frame.round);
    if (frame.expected && rounds < 2) return false;
    return frame.state == FrameState::clean ||
           (frame.state == FrameState::reading && frame.prefetched && frame.transfer.ended());
}

// The hand goes round; of the next few that may leave, the block goes that the fewest rounds used.
// Of equals the one that was used last: rounds follow each other in the same order, so that it is
// needed last, and what a scan longer than RAM brings in leaves before what is there already.
uint32_t BlockCache::find_victim() {
    uint32_t best = kNoFrame;
    uint8_t best_share = 0;
    uint32_t looked_at = 0;
    for (uint32_t i = 0; i < options_.frame_count && looked_at < kLookedAt; ++i) {
        const uint32_t index = hand_;
        hand_ = hand_ + 1 == options_.frame_count ? 0 : hand_ + 1;
        const Frame& frame = frames_[index];
        if (!may_leave(frame)) continue;
        ++looked_at;
        const uint8_t share = share_of(frame);
        if (best != kNoFrame && (share > best_share ||
                                 (share == best_share && frame.wave <= frames_[best].wave))) {
            continue;
        }
        best = index;
        best_share = share;
    }
    if (best == kNoFrame) return kNoFrame;
    ++counters_.evictions;
    disown(best);
    return best;
}

void BlockCache::own(uint32_t index, const BlockRef& ref) {
    Frame& frame = frames_[index];
    frame.owner = ref.owner;
    frame.block = ref.block;
    BlockEntry& entry = entry_of(frame);
    entry.frame_plus_1 = index + 1;
    frame.share = entry.share;
    frame.round = entry.round;
}

void BlockCache::disown(uint32_t index) {
    Frame& frame = frames_[index];
    if (frame.prefetched) ++counters_.prefetched_wasted;
    frame.prefetched = false;
    BlockEntry& entry = entry_of(frame);
    entry.frame_plus_1 = 0;
    entry.share = frame.share;
    entry.round = frame.round;
    frame.owner->table[frame.block] = nullptr;
    frame.owner = nullptr;
    frame.expected = false;
    frame.share = 0;
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

// A write of a block that was dropped since, which missed its deadline, may come to the place at
// any time: what is written there now might be what is lost.
bool BlockCache::is_written_late(uint64_t offset) const {
    return std::any_of(aside_.items, aside_.items + aside_.count, [&](uint32_t index) {
        const Transfer& transfer = frames_[index].transfer;
        return transfer.kind == TransferKind::write && transfer.offset == offset &&
               transfer.in_flight();
    });
}

void BlockCache::start_writes(uint32_t count) {
    for (; count > 0 && dirty_first_ != kNoFrame; --count) {
        const uint32_t index = dirty_first_;
        unlink_dirty(index);
        Frame& frame = frames_[index];
        const uint64_t offset = frame.owner->offset_of(frame.block);
        if (is_written_late(offset)) {
            frame.state = FrameState::clean;
            mark_dirty(index);  // behind the others
            continue;
        }
        frame.state = FrameState::writing;
        Transfer& transfer = frame.transfer;
        transfer.kind = TransferKind::write;
        transfer.offset = offset;
        transfer.data = memory_of(index);
        transfer.bytes = frame.owner->block_bytes;
        transfer.identity = frame.owner->identity + frame.block;
        transfer.checksum = &entry_of(frame).checksum;
        writing_.add(index);
        queued_.add(&transfer);
    }
    // Neighbours may be of several layers.
    std::sort(queued_.items, queued_.items + queued_.count,
              [](const Transfer* a, const Transfer* b) { return a->offset < b->offset; });
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
