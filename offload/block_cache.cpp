#include "offload/block_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace shoal::offload {

namespace {

// Passes of the hand that a block survives: one more with each wave that used it, up to a most, and
// two while it is read ahead. So what a scan brings in goes before what several steps have used, and
// layers that attend everything keep what fits.
constexpr uint8_t kHeatAhead = 2;
constexpr uint8_t kHeatMax = 7;

// The simulation must find what a forgotten wait does (tests/sim): it is built once with one.
#ifdef SHOAL_BUG_MISSING_WAIT
constexpr bool kWaitIsMissing = true;
#else
constexpr bool kWaitIsMissing = false;
#endif

std::string block_name(const BlockOwner& owner, uint32_t block) {
    return fmt::format("{}, block {}", owner.name, block);
}

}  // namespace

uint64_t BlockCache::frame_overhead_bytes() {
    return sizeof(Frame) + sizeof(BlockRef) + 2 * sizeof(Transfer*) + 3 * sizeof(uint32_t);
}

Result<std::unique_ptr<BlockCache>> BlockCache::create(Arena& arena, Tier* tier,
                                                       const Options& options) {
    SHOAL_ASSERT(options.frame_bytes % kPageBytes == 0);
    auto cache = std::unique_ptr<BlockCache>(new BlockCache(tier, options));
    const uint64_t count = options.frame_count;
    Result<Region> region = arena.region(MemoryTag::kv, count * options.frame_bytes);
    if (!region) return region.status();
    cache->rows_ = std::move(*region);
    region = arena.region(MemoryTag::index, count * frame_overhead_bytes());
    if (!region) return region.status();
    cache->index_ = std::move(*region);
    if (arena.is_counting() || count == 0) return cache;
    SHOAL_ASSERT(tier != nullptr);
    SHOAL_TRY(cache->index_.touch_all());
    cache->use_memory();
    return cache;
}

void BlockCache::use_memory() {
    const uint32_t count = options_.frame_count;
    std::byte* memory = index_.data();
    const auto next = [&memory](uint64_t bytes) { return std::exchange(memory, memory + bytes); };
    frames_ = reinterpret_cast<Frame*>(next(count * sizeof(Frame)));
    wanted_.items = reinterpret_cast<BlockRef*>(next(count * sizeof(BlockRef)));
    queued_.items = reinterpret_cast<Transfer**>(next(count * sizeof(Transfer*)));
    waited_.items = reinterpret_cast<Transfer**>(next(count * sizeof(Transfer*)));
    waiting_.items = reinterpret_cast<uint32_t*>(next(count * sizeof(uint32_t)));
    writing_.items = reinterpret_cast<uint32_t*>(next(count * sizeof(uint32_t)));
    aside_.items = reinterpret_cast<uint32_t*>(next(count * sizeof(uint32_t)));
    for (uint32_t frame = count; frame-- > 0;) {
        new (&frames_[frame]) Frame();
        free_frame(frame);
    }
}

BlockCache::~BlockCache() {
    for (uint32_t frame = 0; frames_ != nullptr && frame < options_.frame_count; ++frame) {
        Transfer* transfer = &frames_[frame].transfer;
        if (transfer->in_flight()) tier_->cancel({&transfer, 1});
        while (transfer->in_flight()) (void)tier_->wait({&transfer, 1});
        frames_[frame].~Frame();
    }
}

uint64_t BlockCache::take_file_space(uint64_t bytes) {
    return std::exchange(file_bytes_, file_bytes_ + bytes);
}

void BlockCache::begin_wave() {
    ++wave_;
    held_count_ = 0;
    want_only(0);
}

void BlockCache::want_only(uint32_t wanted_count) {
    for (const BlockRef& ref : wanted_.all().subspan(wanted_count)) {
        ref.owner->entries[ref.block].wanted = false;
    }
    wanted_.count = wanted_count;
    wants_too_much_ = false;
}

uint32_t BlockCache::wave_blocks_max() const {
    return options_.frame_count - std::min(options_.frame_count, options_.dirty_low);
}

void BlockCache::want(BlockOwner& owner, uint32_t block) {
    BlockEntry& entry = owner.entries[block];
    if (entry.wanted || (entry.has_frame() && frames_[entry.frame()].wave == wave_)) return;
    if (wanted_.count == options_.frame_count) {
        wants_too_much_ = true;
        return;
    }
    entry.wanted = true;
    wanted_.add({&owner, block});
}

Status BlockCache::acquire() {
    if (wants_too_much_) return too_little_memory({});
    const Status status = acquire_blocks();
    want_only(0);
    return status;
}

Status BlockCache::make_dirty(BlockOwner& owner, uint32_t block) {
    const uint32_t frame = owner.entries[block].frame();
    SHOAL_ASSERT(frames_[frame].wave == wave_);
    if (frames_[frame].state == FrameState::writing) {
        const uint64_t started = now_ns();
        wait_for({&frame, 1});
        end_writes(false);
        counters_.write_wait_ns += now_ns() - started;
    }
    if (frames_[frame].state == FrameState::writing) {
        return Status::error(StatusCode::unavailable,
                             fmt::format("{}: writing it to disk does not end (disk.deadline_ms)",
                                         block_name(owner, block)));
    }
    mark_dirty(frame);
    return Status::ok();
}

Status BlockCache::too_little_memory(const BlockRef& ref) const {
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("{}: {} blocks of {} B are too few for what is needed at once: give "
                    "host.kv_bytes more",
                    ref.owner == nullptr ? "disk" : block_name(*ref.owner, ref.block),
                    options_.frame_count, options_.frame_bytes));
}

Status BlockCache::acquire_blocks() {
    waiting_.count = 0;
    Status status = Status::ok();
    for (const BlockRef& ref : wanted_.all()) {
        status = acquire_block(ref);
        if (!status) break;
    }
    start_queued();
    const Status read = await_reads();
    return status ? read : status;
}

Status BlockCache::acquire_block(const BlockRef& ref) {
    BlockEntry& entry = ref.owner->entries[ref.block];
    if (entry.has_frame()) {
        Frame& frame = frames_[entry.frame()];
        if (frame.wave == wave_) return Status::ok();
        if (frame.state == FrameState::reading) {
            ++(frame.transfer.in_flight() ? counters_.prefetched_late : counters_.prefetched_used);
            waiting_.add(entry.frame());
        } else {
            ++counters_.hits;
        }
        frame.prefetched = false;
        hold(entry.frame());
        return Status::ok();
    }
    const uint32_t index = take_frame();
    if (index == kNoFrame) return too_little_memory(ref);
    own(index, ref);
    hold(index);
    if (entry.on_disk) {
        ++counters_.misses;
        start_read(index, ref);
        waiting_.add(index);
        return Status::ok();
    }
    std::memset(memory_of(index), 0, ref.owner->block_bytes);
    frames_[index].state = FrameState::clean;
    ref.owner->table[ref.block] = memory_of(index);
    return Status::ok();
}

void BlockCache::prefetch(std::span<const BlockRef> blocks) {
    for (const BlockRef& ref : blocks) {
        const BlockEntry& entry = ref.owner->entries[ref.block];
        if (entry.has_frame()) {
            // Not to be given up for another one that is read ahead.
            Frame& frame = frames_[entry.frame()];
            frame.heat = std::max<uint8_t>(frame.heat, 1);
            continue;
        }
        if (!entry.on_disk) continue;
        const uint32_t index = take_frame_at_once();
        if (index == kNoFrame) break;
        own(index, ref);
        Frame& frame = frames_[index];
        frame.prefetched = true;
        frame.heat = kHeatAhead;
        ++counters_.prefetched;
        start_read(index, ref);
    }
    start_queued();
}

void BlockCache::start_read(uint32_t index, const BlockRef& ref) {
    Frame& frame = frames_[index];
    frame.state = FrameState::reading;
    Transfer& transfer = frame.transfer;
    transfer.state.store(TransferState::idle, std::memory_order_relaxed);  // until it is started
    transfer.kind = TransferKind::read;
    transfer.offset = ref.owner->file_offset + uint64_t{ref.block} * ref.owner->block_bytes;
    transfer.data = memory_of(index);
    transfer.bytes = ref.owner->block_bytes;
    transfer.identity = ref.owner->identity + ref.block;
    transfer.checksum = &entry_of(frame).checksum;
    queued_.add(&transfer);
}

void BlockCache::start_queued() {
    if (queued_.count != 0) tier_->start(queued_.all());
    queued_.count = 0;
}

// Whatever the outcome; the caller looks at each frame's transfer.
void BlockCache::wait_for(std::span<const uint32_t> frames) {
    waited_.count = 0;
    for (const uint32_t frame : frames) waited_.add(&frames_[frame].transfer);
    if (waited_.count != 0) (void)tier_->wait(waited_.all());
}

Status BlockCache::await_reads() {
    if (waiting_.count == 0) return Status::ok();
    const uint64_t started = now_ns();
    if (!kWaitIsMissing) {
        wait_for(waiting_.all());
        retry_late_reads();
    }
    counters_.wait_ns += now_ns() - started;
    Status status = Status::ok();
    for (const uint32_t index : waiting_.all()) {
        const Frame& frame = frames_[index];
        // One that came when the wait had just ended is not compared with its checksum yet.
        if (frame.transfer.ended() && !frame.transfer.checked) wait_for({&index, 1});
        const bool late = !frame.transfer.checked;
        if (kWaitIsMissing || (!late && frame.transfer.error == 0)) {
            end_read(index);
            continue;
        }
        if (status) {
            const bool corrupt = !late && frame.transfer.error == EBADMSG;
            status = Status::error(
                corrupt ? StatusCode::corrupt : StatusCode::unavailable,
                fmt::format("{}: {}", block_name(*frame.owner, frame.block),
                            late      ? "disk did not answer in time (disk.deadline_ms), twice"
                            : corrupt ? "what was read from disk is not what was written there"
                                      : fmt::format("could not be read from disk: {}",
                                                    std::strerror(frame.transfer.error))));
        }
        disown(index);
        if (late) put_aside(index);
        else free_frame(index);
    }
    return status;
}

// A read that did not come in time is tried once more, into another frame: the first may still
// write to its own.
void BlockCache::retry_late_reads() {
    bool again = false;
    for (uint32_t& index : waiting_.all()) {
        if (!frames_[index].transfer.in_flight()) continue;
        const uint32_t other = take_frame_at_once();
        if (other == kNoFrame) break;
        const BlockRef ref{frames_[index].owner, frames_[index].block};
        disown(index);
        put_aside(index);
        own(other, ref);
        hold(other);
        start_read(other, ref);
        index = other;
        again = true;
    }
    if (!again) return;
    start_queued();
    wait_for(waiting_.all());
}

void BlockCache::end_read(uint32_t index) {
    Frame& frame = frames_[index];
    frame.state = FrameState::clean;
    frame.owner->table[frame.block] = memory_of(index);
}

void BlockCache::put_aside(uint32_t index) { aside_.add(index); }

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
    end_writes(true);
    frame = find_victim();
    if (frame == kNoFrame) frame = take_frame_read_ahead();
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
    if (free_first_ != kNoFrame) {
        const uint32_t frame = free_first_;
        free_first_ = frames_[frame].next;
        --free_count_;
        frames_[frame].next = kNoFrame;
        return frame;
    }
    const uint32_t frame = find_victim();
    if (frame != kNoFrame) return frame;
    end_writes(false);
    return find_victim();
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
                                  block_name(*frame.owner, frame.block),
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
