#include "offload/io_engine.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace shoal::offload {

namespace {

constexpr uint64_t kMergedBytesMost = uint64_t{1} << 20;
constexpr uint32_t kPiecesMost = 256;    // of 4 KiB: 1 MiB
constexpr uint32_t kWindow = 256;
// In a row, without a byte moved. EAGAIN and EINTR may come often; a device that returns nothing at
// all again and again is broken.
constexpr uint32_t kAttemptsMost = 64;
constexpr uint32_t kIndexBits = 16;
static_assert(IoEngine::kDepthMost <= 1U << kIndexBits);

void add_one(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

bool by_offset(const Transfer* a, const Transfer* b) { return a->offset < b->offset; }

}  // namespace

struct IoEngine::Operation {
    TransferKind kind = TransferKind::read;
    bool is_submitted = false;
    uint32_t attempts = 0;
    uint64_t generation = 0;     // of the last submission; a tag is never used twice
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint64_t done_bytes = 0;
    TransferList transfers;      // neighbours in the file, in order
    uint32_t transfer_count = 0;
    iovec* pieces = nullptr;     // [kPiecesMost], what is not done yet: from piece_first on
    uint32_t piece_first = 0;
    uint32_t piece_count = 0;

    bool append(Transfer& transfer) {
        iovec& last = pieces[piece_count - 1];
        if (static_cast<std::byte*>(last.iov_base) + last.iov_len == transfer.data) {
            last.iov_len += transfer.bytes;
        } else {
            if (piece_count == kPiecesMost) return false;
            pieces[piece_count++] = {transfer.data, transfer.bytes};
        }
        transfers.push(transfer);
        ++transfer_count;
        bytes += transfer.bytes;
        return true;
    }
};

// Transfers of one kind: those that wait, and the few that are sorted and go next.
struct IoEngine::Lane {
    explicit Lane(TransferKind kind_) : kind(kind_) {}

    const TransferKind kind;
    TransferList waiting;
    std::array<Transfer*, kWindow> window{};
    uint32_t window_next = 0;
    uint32_t window_count = 0;
    uint32_t busy_count = 0;     // operations

    bool empty() const { return window_next == window_count && waiting.empty(); }
};

IoEngine::IoEngine(IoQueue& queue, uint32_t depth, uint32_t alignment, Finish finish)
    : queue_(queue),
      depth_(depth),
      alignment_(alignment),
      finish_(std::move(finish)),
      reads_(std::make_unique<Lane>(TransferKind::read)),
      writes_(std::make_unique<Lane>(TransferKind::write)),
      operations_(depth),
      pieces_(size_t{depth} * kPiecesMost),
      ready_(depth) {
    SHOAL_ASSERT(depth >= 1 && depth <= kDepthMost);
    for (uint32_t i = 0; i < depth; ++i) {
        operations_[i].pieces = &pieces_[size_t{i} * kPiecesMost];
        free_.push_back(depth - 1 - i);
    }
}

IoEngine::~IoEngine() { SHOAL_ASSERT(is_idle()); }

// --- what waits --------------------------------------------------------------------------------

void IoEngine::add(TransferList& transfers) {
    while (!transfers.empty()) {
        Transfer& transfer = transfers.pop();
        (transfer.kind == TransferKind::read ? *reads_ : *writes_).waiting.push(transfer);
        ++waiting_count_;
    }
}

void IoEngine::drop(Drop wanted) {
    TransferList dropped;
    apart_.move_if(wanted, dropped);
    for (Lane* lane : {reads_.get(), writes_.get()}) {
        uint32_t kept = 0;
        for (uint32_t i = lane->window_next; i < lane->window_count; ++i) {
            Transfer* transfer = lane->window[i];
            if (wanted(*transfer)) dropped.push(*transfer);
            else lane->window[kept++] = transfer;
        }
        lane->window_next = 0;
        lane->window_count = kept;
        lane->waiting.move_if(wanted, dropped);
    }
    while (!dropped.empty()) {
        --waiting_count_;
        finish_(dropped.pop(), ECANCELED);
    }
}

void IoEngine::drop_canceled() {
    drop([](const Transfer& transfer) {
        return transfer.canceled.load(std::memory_order_relaxed);
    });
}

void IoEngine::drop_all() {
    drop([](const Transfer&) { return true; });
}

void IoEngine::refill(Lane& lane) {
    lane.window_next = 0;
    lane.window_count = 0;
    while (lane.window_count < kWindow && !lane.waiting.empty()) {
        lane.window[lane.window_count++] = &lane.waiting.pop();
    }
    const auto begin = lane.window.begin();
    const auto end = begin + lane.window_count;
    if (!std::is_sorted(begin, end, by_offset)) std::sort(begin, end, by_offset);
}

// Somebody sleeps for a read sooner or later, and for a write hardly ever: while both wait, writes
// have an eighth of the depth.
IoEngine::Lane* IoEngine::next_lane() {
    if (reads_->empty() && writes_->empty()) return nullptr;
    if (reads_->empty()) return writes_.get();
    if (writes_->empty()) return reads_.get();
    const uint32_t share = std::max(1U, depth_ / 8);
    return writes_->busy_count < share ? writes_.get() : reads_.get();
}

// --- operations --------------------------------------------------------------------------------

void IoEngine::open(TransferKind kind, Transfer& first) {
    const uint32_t index = free_.back();
    free_.pop_back();
    Operation& operation = operations_[index];
    operation.kind = kind;
    operation.attempts = 0;
    operation.offset = first.offset;
    operation.bytes = first.bytes;
    operation.done_bytes = 0;
    operation.transfers.push(first);
    operation.transfer_count = 1;
    operation.pieces[0] = {first.data, first.bytes};
    operation.piece_first = 0;
    operation.piece_count = 1;
    ready_[(ready_first_ + ready_count_++) % depth_] = index;
    ++busy_count_;
    --waiting_count_;
    const bool is_read = kind == TransferKind::read;
    ++(is_read ? *reads_ : *writes_).busy_count;
    add_one(is_read ? counts_.reads : counts_.writes);
}

// Makes the operation that goes next. false: there is none, or no room.
bool IoEngine::prepare_next() {
    if (free_.empty()) return false;
    if (!apart_.empty()) {
        Transfer& transfer = apart_.pop();
        open(transfer.kind, transfer);
        add_one(counts_.repeats);
        return true;
    }
    Lane* lane = next_lane();
    if (lane == nullptr) return false;
    if (lane->window_next == lane->window_count) refill(*lane);
    open(lane->kind, *lane->window[lane->window_next++]);
    Operation& operation = operations_[ready_[(ready_first_ + ready_count_ - 1) % depth_]];
    while (lane->window_next < lane->window_count) {
        Transfer& next = *lane->window[lane->window_next];
        const bool adjoins = next.offset == operation.offset + operation.bytes &&
                             operation.bytes + next.bytes <= kMergedBytesMost;
        if (!adjoins || !operation.append(next)) break;
        ++lane->window_next;
        --waiting_count_;
    }
    return true;
}

bool IoEngine::submit(Operation& operation) {
    const auto index = static_cast<uint64_t>(&operation - operations_.data());
    const uint64_t tag = (operation.generation + 1) << kIndexBits | index;
    const IoOperation request{
        operation.kind, operation.offset + operation.done_bytes,
        std::span<const iovec>(operation.pieces + operation.piece_first,
                               operation.piece_count - operation.piece_first),
        tag};
    if (!queue_.submit(request)) return false;
    ++operation.generation;
    operation.is_submitted = true;
    return true;
}

void IoEngine::release(Operation& operation) {
    --busy_count_;
    --(operation.kind == TransferKind::read ? *reads_ : *writes_).busy_count;
    free_.push_back(static_cast<uint32_t>(&operation - operations_.data()));
}

// --- completions -------------------------------------------------------------------------------

size_t IoEngine::step() {
    std::array<IoCompletion, 64> completions;
    size_t total = 0;
    size_t count = 0;
    do {
        count = queue_.reap(completions);
        for (size_t i = 0; i < count; ++i) complete(completions[i]);
        total += count;
    } while (count == completions.size());

    while (ready_count_ > 0 || prepare_next()) {
        if (!submit(operations_[ready_[ready_first_]])) break;
        ready_first_ = (ready_first_ + 1) % depth_;
        --ready_count_;
    }
    return total;
}

void IoEngine::complete(const IoCompletion& completion) {
    const uint64_t index = completion.tag & ((1U << kIndexBits) - 1);
    if (index >= depth_ || !operations_[index].is_submitted ||
        operations_[index].generation != completion.tag >> kIndexBits) {
        add_one(counts_.strays);
        return;
    }
    Operation& operation = operations_[index];
    operation.is_submitted = false;
    const uint64_t left = operation.bytes - operation.done_bytes;
    const bool again = completion.result == -EINTR || completion.result == -EAGAIN;
    if (completion.result < 0 && !again) {
        fail(operation, static_cast<int>(-completion.result));
        return;
    }
    const uint64_t got = again ? 0 : static_cast<uint64_t>(completion.result);
    if (got > left) {
        fail(operation, EIO);
        return;
    }
    if (got == left) {
        while (operation.transfer_count-- > 0) finish_(operation.transfers.pop(), 0);
        release(operation);
        return;
    }
    add_one(again ? counts_.repeats : counts_.short_results);
    const uint64_t whole = got & ~uint64_t{alignment_ - 1};
    operation.attempts = whole > 0 ? 0 : operation.attempts + 1;
    if (operation.attempts > kAttemptsMost) {
        fail(operation, again ? static_cast<int>(-completion.result) : EIO);
        return;
    }
    advance(operation, whole);
    ready_[(ready_first_ + ready_count_++) % depth_] = static_cast<uint32_t>(index);
}

void IoEngine::advance(Operation& operation, uint64_t bytes) {
    operation.done_bytes += bytes;
    while (bytes > 0) {
        iovec& piece = operation.pieces[operation.piece_first];
        const uint64_t part = std::min<uint64_t>(bytes, piece.iov_len);
        piece.iov_base = static_cast<std::byte*>(piece.iov_base) + part;
        piece.iov_len -= part;
        bytes -= part;
        if (piece.iov_len == 0) ++operation.piece_first;
    }
}

// One of several may be to blame: those that are not done go again, each on its own.
void IoEngine::fail(Operation& operation, int error) {
    const bool alone = operation.transfer_count == 1;
    const uint64_t done_until = operation.offset + operation.done_bytes;
    while (operation.transfer_count-- > 0) {
        Transfer& transfer = operation.transfers.pop();
        if (alone) {
            finish_(transfer, error);
        } else if (transfer.offset + transfer.bytes <= done_until) {
            finish_(transfer, 0);
        } else {
            apart_.push(transfer);
            ++waiting_count_;
        }
    }
    release(operation);
}

}  // namespace shoal::offload
