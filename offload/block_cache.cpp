#include "offload/block_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace shoal::offload {

namespace {

// The simulation (tests/sim) must find what a forgotten wait does: it is built once with one. Of
// the reads of an acquire(), so many are taken for arrived without having been waited for.
#ifdef SHOAL_BUG_MISSING_WAIT
constexpr uint32_t kForgotten = 1;
#else
constexpr uint32_t kForgotten = 0;
#endif

// Reads that are handed to the disk together; neighbours among them become one.
constexpr uint32_t kStartedTogether = 256;

// Memory that the tier may register with the kernel, which takes all of it at once: of 3.9 GiB,
// create() took more than 8 s. It saves .2 of 2.9 us of processor time of a read, and no time of a
// step (bench/disk_decode, runtime/docs/decisions.md 43).
constexpr size_t kUsedMemoryMost = size_t{256} << 20;

const char* late_text(bool was_read_again) {
    return was_read_again ? "disk did not answer in time (disk.deadline_ms), twice"
                          : "disk did not answer in time (disk.deadline_ms), and there is no room "
                            "in RAM to read it again";
}

}  // namespace

std::string BlockOwner::block_name(uint32_t block) const {
    return fmt::format("{}, block {}", name, block);
}

uint64_t BlockCache::frame_overhead_bytes() {
    return sizeof(Frame) + sizeof(BlockRef) + 2 * sizeof(Transfer*) + 4 * sizeof(uint32_t);
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
    tier->use_memory({cache->rows_.data(),
                      std::min<size_t>(cache->rows_.bytes(), kUsedMemoryMost)});
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
    waiting_for_.items = reinterpret_cast<uint32_t*>(next(count * sizeof(uint32_t)));
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
        tier_->wait_ended({&transfer, 1});
        frames_[frame].~Frame();
    }
    if (frames_ != nullptr) tier_->use_memory({});
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
    if (block < owner.last_block && owner.last_wave != wave_) ++owner.round;
    owner.last_block = block;
    owner.last_wave = wave_;
    BlockEntry& entry = owner.entries[block];
    if (entry.wanted || (entry.has_frame() && frames_[entry.frame()].wave == wave_)) return;
    if (wanted_.count == options_.frame_count) {
        wants_too_much_ = true;
        return;
    }
    entry.wanted = true;
    wanted_.add({&owner, block});
}

// What is in RAM is held before frames are taken for the rest: it must not make room for it.
void BlockCache::start_acquire() {
    waiting_.count = 0;
    waiting_for_.count = 0;
    waited_for_ = 0;
    started_ = wants_too_much_ ? no_frame({}) : Status::ok();
    for (const BlockRef& ref : wanted_.all()) {
        const BlockEntry& entry = ref.owner->entries[ref.block];
        if (entry.has_frame()) hold_resident(entry.frame());
    }
    for (const BlockRef& ref : wanted_.all()) {
        const BlockEntry& entry = ref.owner->entries[ref.block];
        if (!entry.has_frame()) {
            if (started_) started_ = take_in(ref);
        } else if (frames_[entry.frame()].state == FrameState::reading) {
            waiting_.add(entry.frame());
        }
        waiting_for_.add(waiting_.count);
        // The first are read while the last are still looked up.
        if (queued_.count == kStartedTogether) start_queued();
    }
    start_queued();
    want_only(0);
}

Status BlockCache::finish_acquire(uint32_t wanted) {
    if (!started_) wanted = UINT32_MAX;  // there is nothing to go on with
    const uint32_t end = wanted == 0                     ? 0
                         : wanted <= waiting_for_.count ? waiting_for_.items[wanted - 1]
                                                        : waiting_.count;
    const uint32_t begin = std::min(waited_for_, end);
    waited_for_ = std::max(waited_for_, end);
    const Status read = await_reads(waiting_.all().subspan(begin, end - begin));
    if (!started_) return started_;
    if (read) return read;
    // What is left of the wave must not stay in flight: nobody would look at it.
    (void)await_reads(waiting_.all().subspan(waited_for_));
    waited_for_ = waiting_.count;
    return read;
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
                                         owner.block_name(block)));
    }
    mark_dirty(frame);
    return Status::ok();
}

// No frame for a block: too few of them, or a disk that does not do its part.
Status BlockCache::no_frame(const BlockRef& ref) const {
    const std::string name = ref.owner == nullptr ? "disk" : ref.owner->block_name(ref.block);
    const std::span<const Frame> frames(frames_, options_.frame_count);
    const auto held = std::count_if(frames.begin(), frames.end(), [&](const Frame& frame) {
        return frame.owner != nullptr && frame.wave == wave_;
    });
    if (!wants_too_much_ && held < options_.frame_count) {
        return Status::error(
            StatusCode::unavailable,
            fmt::format("{}: no room for it in RAM: {} blocks of {} there wait for a disk that did "
                        "not take or give them",
                        name, options_.frame_count - held, options_.frame_count));
    }
    return Status::error(
        StatusCode::out_of_memory,
        fmt::format("{}: {} blocks of {} B are too few for what is needed at once: give "
                    "host.kv_bytes more",
                    name, options_.frame_count, options_.frame_bytes));
}

void BlockCache::hold_resident(uint32_t index) {
    Frame& frame = frames_[index];
    if (frame.state == FrameState::reading) {
        ++(frame.transfer.in_flight() ? counters_.prefetched_late : counters_.prefetched_used);
    } else {
        ++counters_.hits;
    }
    frame.prefetched = false;
    hold(index);
}

Status BlockCache::take_in(const BlockRef& ref) {
    const uint32_t index = take_frame();
    if (index == kNoFrame) return no_frame(ref);
    own(index, ref);
    hold(index);
    if (entry_of(frames_[index]).on_disk) {
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
            expect(frames_[entry.frame()]);
            continue;
        }
        if (!entry.on_disk) continue;
        const uint32_t index = take_frame_at_once();
        if (index == kNoFrame) break;
        own(index, ref);
        frames_[index].prefetched = true;
        expect(frames_[index]);
        ++counters_.prefetched;
        start_read(index, ref);
    }
    start_queued();
}

void BlockCache::start_read(uint32_t index, const BlockRef& ref) {
    Frame& frame = frames_[index];
    frame.state = FrameState::reading;
    frame.read_again = false;
    Transfer& transfer = frame.transfer;
    transfer.state.store(TransferState::idle, std::memory_order_relaxed);  // until it is started
    transfer.kind = TransferKind::read;
    transfer.offset = ref.owner->offset_of(ref.block);
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

Status BlockCache::await_reads(std::span<uint32_t> frames) {
    if (frames.empty()) return Status::ok();
    const uint64_t started = now_ns();
    wait_for(frames.first(frames.size() - std::min<size_t>(kForgotten, frames.size() - 1)));
    if (kForgotten == 0) retry_late_reads(frames);
    counters_.wait_ns += now_ns() - started;
    Status status = Status::ok();
    for (const uint32_t index : frames) {
        const Frame& frame = frames_[index];
        // One that came when the wait had just ended is not compared with its checksum yet.
        if (frame.transfer.ended() && !frame.transfer.checked) wait_for({&index, 1});
        const bool late = !frame.transfer.checked;
        if (late ? kForgotten != 0 : frame.transfer.error == 0) {
            end_read(index);
            continue;
        }
        if (status) {
            const bool corrupt = !late && frame.transfer.error == EBADMSG;
            status = Status::error(
                corrupt ? StatusCode::corrupt : StatusCode::unavailable,
                fmt::format("{}: {}", frame.owner->block_name(frame.block),
                            late      ? late_text(frame.read_again)
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
void BlockCache::retry_late_reads(std::span<uint32_t> frames) {
    bool again = false;
    for (uint32_t& index : frames) {
        if (!frames_[index].transfer.in_flight()) continue;
        const uint32_t other = take_frame_at_once();
        if (other == kNoFrame) break;
        const BlockRef ref{frames_[index].owner, frames_[index].block};
        disown(index);
        put_aside(index);
        own(other, ref);
        hold(other);
        start_read(other, ref);
        frames_[other].read_again = true;
        index = other;
        again = true;
    }
    if (!again) return;
    start_queued();
    wait_for(frames);
}

void BlockCache::end_read(uint32_t index) {
    Frame& frame = frames_[index];
    frame.state = FrameState::clean;
    frame.owner->table[frame.block] = memory_of(index);
}

// Its owner may be gone when the transfer ends: nothing is compared then.
void BlockCache::put_aside(uint32_t index) {
    frames_[index].transfer.checksum = nullptr;
    aside_.add(index);
}

}  // namespace shoal::offload
