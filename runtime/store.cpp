#include "runtime/store.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "calib/choose_channels.hpp"
#include "offload/executor.hpp"

namespace shoal {

using kernels::kSpanSlots;
using kernels::RowPart;
using offload::HoldFor;
using offload::MemoryTag;

namespace {

uint32_t span_count_of(uint32_t slots) { return (slots + kSpanSlots - 1) / kSpanSlots; }

// Consecutive ascending slots from position i on: [slots[i], slots[i] + length).
SlotRange run_at(std::span<const int64_t> slots, size_t i) {
    size_t end = i + 1;
    while (end < slots.size() && slots[end] == slots[end - 1] + 1) ++end;
    const auto begin = static_cast<uint32_t>(slots[i]);
    return {begin, begin + static_cast<uint32_t>(end - i)};
}

Status take_labels(offload::Arena& arena, const Group& group, uint32_t slot_count_max,
                   const SummaryLimits& labels, GroupStore& out) {
    const uint32_t spans = span_count_of(slot_count_max);
    const uint32_t heads = group.piece.kv_head_count;
    const uint32_t row_bits = calib::label_bit_budget(labels.row_bits, group.piece.k_head_dim);
    Result<offload::Region> region = arena.region(
        MemoryTag::labels,
        uint64_t{spans} * heads * kernels::label_span_bytes_max(row_bits, labels.channel_bits));
    if (!region) return region.status();
    out.label_region = std::move(*region);
    const uint32_t channel_bits_min = labels.channel_bits == 0 ? 2 : labels.channel_bits;
    const uint32_t channels = std::min(row_bits / channel_bits_min, group.piece.k_head_dim);
    region = arena.region(MemoryTag::labels,
                          heads * (uint64_t{channels} * kSpanSlots * 2 + 64 +
                                   LabelIndex::kChannelsMax * sizeof(float)));
    if (!region) return region.status();
    out.open_region = std::move(*region);
    return Status::ok();
}

offload::SpillTo spill_of(const Group& group, const FilePlace& place,
                          const StoreOptions& options) {
    if (options.cache == nullptr) return {};
    offload::SpillTo spill;
    spill.cache = options.cache;
    spill.file_offset = place.offset;
    spill.file_stride = place.stride;
    spill.name = fmt::format("{}, layer {}", options.name, group.layer);
    if (group.piece.kv_head_count == 1) {
        spill.name += fmt::format(", KV head {}", group.kv_head_first);
    }
    return spill;
}

Status create_group(offload::Arena& arena, const Group& group, const FilePlace& place,
                    uint32_t slot_count_max, const StoreOptions& options, GroupStore& out) {
    const SummaryLimits& summaries = options.summaries;
    const offload::BlockLayout layout = offload::make_block_layout(group.piece);
    Result<offload::BlockStore> rows = offload::BlockStore::create(
        arena, layout, slot_count_max, spill_of(group, place, options));
    if (!rows) return rows.status();
    out.rows = std::move(*rows);
    if (!group.keeps_summaries()) return Status::ok();
    if (summaries.labels) {
        SHOAL_TRY(take_labels(arena, group, slot_count_max, summaries, out));
    }
    if (summaries.page_slots == 0) return Status::ok();
    Result<offload::Region> region = arena.region(
        MemoryTag::labels, PageIndex::bytes(group.piece, summaries.page_slots, slot_count_max));
    if (!region) return region.status();
    out.page_region = std::move(*region);
    return Status::ok();
}

// One thread copies 256 KiB in some 60 us: fewer are not worth waking another for.
constexpr uint32_t kAppendPartBytes = 256 << 10;

// Whether all rows are finite.
bool append_rows(const kernels::AppendInput& all, const kernels::Backend& backend,
                 const Executor& executor) {
    const uint32_t rows_each = static_cast<uint32_t>(
        std::max<size_t>(1, kAppendPartBytes / std::max<size_t>(1, all.rows.n_stride_bytes)));
    const uint32_t parts = (all.rows.n + rows_each - 1) / rows_each;
    if (parts <= 1) return backend.append(all).finite;
    std::atomic<bool> finite{true};
    offload::run_on(executor, parts, [&](uint32_t part, uint32_t) {
        kernels::AppendInput in = all;
        const uint32_t first = part * rows_each;
        in.rows.n = std::min(rows_each, all.rows.n - first);
        in.rows.data += first * all.rows.n_stride_bytes;
        in.slots += first;
        if (!backend.append(in).finite) finite = false;
    });
    return finite;
}

}  // namespace

FilePlaces file_places(const Groups& groups, uint32_t slot_count_max) {
    FilePlaces out;
    out.of_group.resize(groups.count());
    for (const Group& first : groups.all()) {
        if (out.of_group[first.index].stride != 0) continue;
        const offload::BlockLayout layout = offload::make_block_layout(first.piece);
        const auto lies_with = [&](const Group& group) {
            return group.anchor == first.anchor &&
                   offload::make_block_layout(group.piece).block_bytes == layout.block_bytes;
        };
        const auto count = static_cast<uint64_t>(
            std::count_if(groups.all().begin(), groups.all().end(), lies_with));
        uint64_t offset = out.bytes;
        for (const Group& group : groups.all()) {
            if (!lies_with(group)) continue;
            out.of_group[group.index] = {offset, count * layout.block_bytes};
            offset += layout.block_bytes;
        }
        out.bytes += count * layout.block_bytes *
                     offload::block_count_of(layout, slot_count_max);
    }
    return out;
}

Result<std::unique_ptr<Store>> Store::create(offload::Arena& arena, const Groups& groups,
                                             uint32_t slot_count_max,
                                             const StoreOptions& options) {
    const uint64_t spans = span_count_of(slot_count_max);
    const uint64_t check_bytes = options.check_rows ? RowCheck::bytes(slot_count_max) : 0;
    Result<offload::Region> index = arena.region(
        MemoryTag::index,
        SlotOrder::bytes(slot_count_max) +
            (spans * sizeof(SpanWritten) + check_bytes) * groups.count());
    if (!index) return index.status();
    auto* written =
        reinterpret_cast<SpanWritten*>(index->data() + SlotOrder::bytes(slot_count_max));
    auto* checks = reinterpret_cast<std::byte*>(written + spans * groups.count());
    auto store = std::unique_ptr<Store>(
        new Store(std::move(*index), arena.is_counting() ? 0 : slot_count_max, options.identity));
    FilePlaces places = file_places(groups, slot_count_max);
    if (options.cache != nullptr) {
        const uint64_t begin = options.cache->take_file_space(places.bytes);
        for (FilePlace& place : places.of_group) place.offset += begin;
    }
    for (const Group& group : groups.all()) {
        auto made = std::make_unique<GroupStore>();
        SHOAL_TRY(create_group(arena, group, places.of_group[group.index], slot_count_max,
                               options, *made));
        made->rows.set_identity(store->identity_of(group.index));
        made->written = {written, spans};
        written += spans;
        if (options.check_rows) {
            made->check = RowCheck(checks, slot_count_max, store->groups_.size());
        }
        checks += check_bytes;
        made->histories.resize(options.queries_max);
        for (SelectHistory& history : made->histories) history.reserve(group.q_head_count());
        store->groups_.push_back(std::move(made));
    }
    return store;
}

Store::Store(offload::Region index, uint32_t slot_count_max, uint64_t identity)
    : index_(std::move(index)), order_(index_.data(), slot_count_max), identity_(identity) {}

Status Store::ensure(uint32_t slot_end, const Executor& executor) {
    for (const auto& group : groups_) SHOAL_TRY(group->rows.ensure(slot_end, &executor));
    return Status::ok();
}

Status Store::own(std::span<const int64_t> slots) {
    for (const auto& group : groups_) SHOAL_TRY(group->rows.own(slots));
    return Status::ok();
}

Status Store::write(uint32_t group_index, const Group& group, RowPart part,
                    std::span<const int64_t> slots, const ConstTensor& rows,
                    const kernels::Backend& backend, const Executor& executor) {
    GroupStore& out = *groups_[group_index];
    SHOAL_TRY(hold_to_write(out, part, slots));
    kernels::AppendInput in;
    in.kv = out.rows.view();
    in.part = part;
    in.rows = rows;
    in.head_first = group.kv_head_first;
    in.slots = slots.data();
    const bool finite = append_rows(in, backend, executor);
    for (const int64_t slot : slots) {
        SpanWritten& span = out.written[static_cast<size_t>(slot) / kSpanSlots];
        uint64_t& bits = (part == RowPart::k ? span.k : span.v)[slot % kSpanSlots / 64];
        const uint64_t bit = uint64_t{1} << (slot % 64);
        bits = finite ? bits | bit : bits & ~bit;  // a refused row counts as never written
    }
    if (finite) out.check.record(in.kv, part, slots);
    if (!finite) {
        return Status::error(StatusCode::invalid_argument,
                             fmt::format("layer {}: a {} row holds NaN, Inf or a value outside the "
                                         "range of {}",
                                         group.layer, part == RowPart::k ? "K" : "V",
                                         dtype_name(part == RowPart::k ? group.piece.k_dtype
                                                                       : group.piece.v_dtype)));
    }
    return part == RowPart::k ? keys_changed(out, slots, executor) : Status::ok();
}

// With a disk: the slots, to be changed, and what labels and page bounds of them are made from.
Status Store::hold_to_write(GroupStore& group, RowPart part, std::span<const int64_t> slots) {
    if (!group.rows.spills()) return Status::ok();
    group.rows.begin_wave();
    for (size_t i = 0; part == RowPart::k && i < slots.size();) {
        const SlotRange run = run_at(slots, i);
        const auto need = [&group](SlotRange rows) { group.rows.want(rows); };
        if (group.labels.started()) group.labels.rows_needed(run, group.written, need);
        if (group.pages.started()) {
            const uint32_t page = group.pages.page_slots();
            need({run.begin / page * page, (run.end + page - 1) / page * page});
        }
        i += run.end - run.begin;
    }
    return group.rows.hold(slots, HoldFor::writing);
}

// Slots of few spans, since an overwrite may need a span's rows for its labels. Without a disk too:
// labels, and so what is selected, must not depend on it.
size_t Store::write_slots(std::span<const int64_t> slots) {
    uint32_t spans = 0;
    int64_t last = -1;
    for (size_t i = 0; i < slots.size(); ++i) {
        const int64_t span = slots[i] / kSpanSlots;
        if (span != last && ++spans > kSpansAtOnce) return i;
        last = span;
    }
    return slots.size();
}

Status Store::keys_changed(GroupStore& group, std::span<const int64_t> slots,
                           const Executor& executor) {
    const kernels::KvView kv = group.rows.view();
    if (!group.labels.started() && !group.pages.started()) return Status::ok();
    for (size_t i = 0; i < slots.size();) {
        const SlotRange run = run_at(slots, i);
        SHOAL_TRY(touch_summaries(group, run.end));
        if (group.labels.started()) group.labels.on_keys(kv, run, group.written, executor);
        if (group.pages.started()) group.pages.on_keys(kv, run, group.written, executor);
        i += run.end - run.begin;
    }
    return Status::ok();
}

void Store::start_pages(const kernels::Backend& backend, uint32_t page_slots) {
    for (const auto& group : groups_) {
        if (!group->keeps_pages()) continue;
        group->pages.start(backend, page_slots, group->page_region.data());
    }
}

Status Store::start_labels(uint32_t group_index, const kernels::Backend& backend,
                           std::span<const kernels::LabelFormat> formats,
                           const Executor& executor) {
    GroupStore& group = *groups_[group_index];
    if (group.labels.started()) return Status::ok();
    size_t open_bytes = 0;
    for (const kernels::LabelFormat& format : formats) {
        open_bytes += kernels::open_span_bytes(format);
    }
    SHOAL_TRY(group.open_region.touch_all());
    LabelIndex::Memory memory;
    memory.spans = group.label_region.data();
    memory.open = group.open_region.data();
    memory.channel_scale_max = reinterpret_cast<float*>(group.open_region.data() + open_bytes);
    group.labels.start(backend, formats, memory);
    const uint32_t slot_end = order_.slot_end();
    if (slot_end == 0) return Status::ok();
    Status labelled = touch_summaries(group, slot_end);
    if (labelled) labelled = label_all(group, slot_end, executor);
    if (!labelled) group.labels = LabelIndex();  // not started: the next step tries again
    return labelled;
}

// Labels of slots [0, slot_end), of which there are none yet.
Status Store::label_all(GroupStore& group, uint32_t slot_end, const Executor& executor) {
    const uint32_t step = group.rows.spills() ? kSpansAtOnce * kSpanSlots : slot_end;
    for (uint32_t begin = 0; begin < slot_end; begin += step) {
        const SlotRange slots{begin, std::min(begin + step, slot_end)};
        group.rows.begin_wave();
        SHOAL_TRY(group.rows.hold(slots, HoldFor::reading));
        group.labels.on_keys(group.rows.view(), slots, group.written, executor);
    }
    return Status::ok();
}

Status Store::touch_summaries(GroupStore& group, uint32_t slot_end) {
    if (group.labels.started()) {
        SHOAL_TRY(group.label_region.touch_until(size_t{span_count_of(slot_end)} *
                                                 group.labels.span_stride_bytes()));
    }
    if (!group.pages.started()) return Status::ok();
    return group.page_region.touch_until(
        PageIndex::bytes(group.rows.view().format, group.pages.page_slots(), slot_end));
}

Status Store::copy_part(uint32_t group_index, RowPart part, const Store& from,
                        const Executor& executor) {
    GroupStore& to = *groups_[group_index];
    const GroupStore& source = *from.groups_[group_index];
    const bool is_k = part == RowPart::k;
    const uint32_t slot_end = from.order_.slot_end();
    if (is_k) SHOAL_TRY(touch_summaries(to, slot_end));
    const uint32_t span_count = span_count_of(slot_end);
    const uint32_t step = source.rows.spills() ? kSpansAtOnce : span_count;
    for (uint32_t span = 0; span < span_count; span += step) {
        SHOAL_TRY(copy_rows(to, source, part, {span, std::min(span + step, span_count)}, executor));
    }
    for (size_t span = 0; span < to.written.size(); ++span) {
        if (is_k) std::copy_n(source.written[span].k, 2, to.written[span].k);
        else std::copy_n(source.written[span].v, 2, to.written[span].v);
    }
    to.check.copy_from(source.check, part);
    if (is_k) to.histories = source.histories;
    return is_k ? copy_summaries(to, source, slot_end, executor) : Status::ok();
}

Status Store::copy_rows(GroupStore& to, const GroupStore& from, RowPart part, SlotRange spans,
                        const Executor& executor) {
    const bool is_k = part == RowPart::k;
    const SlotRange slots{spans.begin * kSpanSlots, spans.end * kSpanSlots};
    to.rows.begin_wave();
    from.rows.want(slots);
    SHOAL_TRY(to.rows.hold(slots, HoldFor::writing));
    const kernels::KvView from_rows = from.rows.view();
    const kernels::KvView to_rows = to.rows.view();
    const kernels::PieceFormat& format = to_rows.format;
    const size_t bytes = is_k ? format.k_head_dim * dtype_bytes(format.k_dtype)
                              : format.v_head_dim * dtype_bytes(format.v_dtype);
    offload::run_on(executor, spans.end - spans.begin, [&](uint32_t i, uint32_t) {
        const uint32_t first = slots.begin + i * kSpanSlots;
        for (uint32_t slot = first; slot < first + kSpanSlots; ++slot) {
            if (!from.has_row(slot, is_k)) continue;
            for (uint32_t h = 0; h < format.kv_head_count; ++h) {
                if (is_k) std::memcpy(to_rows.k_row(slot, h), from_rows.k_row(slot, h), bytes);
                else std::memcpy(to_rows.v_row(slot, h), from_rows.v_row(slot, h), bytes);
                if (!format.has_scales()) continue;
                const uint32_t scale = 2 * h + (is_k ? 0 : 1);
                to_rows.scales_of(slot)[scale] = from_rows.scales_of(slot)[scale];
            }
        }
    });
    return Status::ok();
}

Status Store::copy_summaries(GroupStore& to, const GroupStore& from, uint32_t slot_end,
                             const Executor& executor) {
    const kernels::KvView kv = to.rows.view();
    if (to.pages.started()) to.pages.copy_from(kv.format, from.pages);
    if (!to.labels.started()) return Status::ok();
    if (from.labels.started()) {
        to.labels.copy_from(from.labels);
        return Status::ok();
    }
    to.labels.clear();
    return label_all(to, slot_end, executor);
}

Status Store::fork_from(Store& from, const Executor& executor) {
    clear();
    for (size_t g = 0; g < groups_.size(); ++g) {
        GroupStore& to = *groups_[g];
        GroupStore& source = *from.groups_[g];
        Status status = to.rows.share_from(source.rows);
        if (status) status = touch_summaries(to, from.order_.slot_end());
        if (!status) {
            clear();
            return status;
        }
        std::copy(source.written.begin(), source.written.end(), to.written.begin());
        for (const RowPart part : {RowPart::k, RowPart::v}) {
            to.check.copy_from(source.check, part);
        }
        to.histories = source.histories;
        status = copy_summaries(to, source, from.order_.slot_end(), executor);
        if (!status) {
            clear();
            return status;
        }
    }
    order_.copy_from(from.order_);
    return Status::ok();
}

Status Store::truncate(uint32_t slot_count) {
    // Labels and page bounds of what is left of the last span are made again.
    groups_.front()->rows.begin_wave();
    for (const auto& group : groups_) {
        if (!group->labels.started() && !group->pages.started()) continue;
        group->rows.want({slot_count / kSpanSlots * kSpanSlots, slot_count});
    }
    SHOAL_TRY(groups_.front()->rows.hold(SlotRange{}, HoldFor::reading));
    order_.forget_from(slot_count);
    for (const auto& group : groups_) forget_from(*group, slot_count);
    return Status::ok();
}

void Store::forget_from(GroupStore& group, uint32_t slot_count) {
    const auto keep = [slot_count](uint64_t (&bits)[2], uint32_t span) {
        for (uint32_t word = 0; word < 2; ++word) {
            const uint32_t base = span * kSpanSlots + word * 64;
            if (base >= slot_count) bits[word] = 0;
            else if (slot_count - base < 64) bits[word] &= (uint64_t{1} << (slot_count - base)) - 1;
        }
    };
    for (uint32_t span = slot_count / kSpanSlots; span < group.written.size(); ++span) {
        keep(group.written[span].k, span);
        keep(group.written[span].v, span);
    }
    group.labels.truncate(group.rows.view(), slot_count, group.written);
    group.pages.truncate(group.rows.view(), slot_count, group.written);
    group.rows.release_from(slot_count);
    for (SelectHistory& history : group.histories) history.forget();
}

void Store::clear() {
    SHOAL_ASSERT(truncate(0).is_ok());  // reads no row
    for (const auto& group : groups_) {
        group->labels.clear();
        group->label_region.release_from(0);
        for (SelectHistory& history : group->histories) history.rows_factor = 1;
        group->pages.clear();
        group->page_region.release_from(0);
    }
}

uint64_t Store::identity_of(uint32_t group_index) const {
    const uint64_t what[] = {identity_, generation, group_index};
    return XXH3_64bits(what, sizeof what);
}

void Store::close() {
    is_open = false;
    ++generation;
    for (uint32_t g = 0; g < groups_.size(); ++g) groups_[g]->rows.set_identity(identity_of(g));
}

std::string Store::incomplete_reason(uint32_t group_index, const Group& group) const {
    const GroupStore& data = *groups_[group_index];
    for (uint32_t slot = 0; slot < order_.slot_end(); ++slot) {
        const bool k = data.has_row(slot, true);
        const bool v = data.has_row(slot, false);
        if (k == order_.is_written(slot) && v == k) continue;
        return fmt::format("slot {} has {} in layer {}", slot,
                           k && v ? "K and V but no token" : k ? "K alone" : v ? "V alone"
                                                                            : "neither K nor V",
                           group.layer);
    }
    return "";
}

uint32_t Store::first_missing(uint32_t group_index,
                              std::span<const kernels::SpanMask> masks) const {
    const std::span<const SpanWritten> written = groups_[group_index]->written;
    for (uint32_t span = 0; span < masks.size(); ++span) {
        for (uint32_t word = 0; word < 2; ++word) {
            const uint64_t missing = masks[span].visible[word] &
                                     ~(written[span].k[word] & written[span].v[word]);
            if (missing != 0) {
                return span * kSpanSlots + word * 64 +
                       static_cast<uint32_t>(std::countr_zero(missing));
            }
        }
    }
    return order_.slot_end();
}

}  // namespace shoal
