#include "runtime/saved_sequence.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "runtime/saved_file.hpp"

namespace shoal {
namespace {

Status invalid(std::string message) {
    return Status::error(StatusCode::invalid_argument, std::move(message));
}

Session::Part part_of(SavedKind kind) {
    return kind == SavedKind::k_rows ? Session::Part::k : Session::Part::v;
}

std::vector<uint32_t> ascending(std::span<const uint32_t> order) {
    std::vector<uint32_t> slots(order.begin(), order.end());
    std::sort(slots.begin(), slots.end());
    return slots;
}

// Slots of a chunk of rows.
std::span<const int64_t> slots_of(const SavedChunk& chunk, std::span<const uint32_t> slots,
                                  std::vector<int64_t>& wide) {
    const auto first = slots.begin() + static_cast<std::ptrdiff_t>(chunk.first);
    wide.assign(first, first + chunk.count);
    return wide;
}

// A vector of notes as bytes, for the kinds that are one.
std::span<const std::byte> note_bytes(const SaveInput& in, SavedKind kind) {
    switch (kind) {
        case SavedKind::order: return std::as_bytes(in.order);
        case SavedKind::token_ids: return std::as_bytes(std::span(in.notes->token_ids));
        case SavedKind::positions: return std::as_bytes(std::span(in.notes->positions));
        case SavedKind::logits: return std::as_bytes(std::span(in.notes->logits));
        case SavedKind::profile: return std::as_bytes(std::span(in.profile));
        default: return {};
    }
}

Status check_count(const char* name, size_t count, size_t tokens) {
    if (count == 0 || count == tokens) return Status::ok();
    return invalid(fmt::format("notes.{}: {} entries: must be one per token of the store = {}, or "
                               "none",
                               name, count, tokens));
}

Result<SavedHeader> complete_header(const SaveInput& in) {
    const size_t tokens = in.order.size();
    if (tokens == 0) return invalid("save: the store is empty: nothing to save");
    SHOAL_TRY(check_count("token_ids", in.notes->token_ids.size(), tokens));
    SHOAL_TRY(check_count("positions", in.notes->positions.size(), tokens));
    if (in.notes->logits.size() > kSavedLogitsMax) {
        return invalid(fmt::format("notes.logits: {} entries: at most {}",
                                   in.notes->logits.size(), kSavedLogitsMax));
    }
    SavedHeader header = in.header;
    header.token_count = static_cast<uint32_t>(tokens);
    header.slot_end = *std::max_element(in.order.begin(), in.order.end()) + 1;
    header.has_token_ids = !in.notes->token_ids.empty();
    header.has_positions = !in.notes->positions.empty();
    header.logit_count = static_cast<uint32_t>(in.notes->logits.size());
    header.profile_bytes = in.profile.size();
    return header;
}

// What is read, piece by piece, and what it has to be.
class Loader {
public:
    Loader(const std::string& path, const SavedHeader& header, const LoadTarget& target)
        : path_(path), header_(header), target_(target) {}

    Status take(const SavedChunk& chunk, std::span<const std::byte> bytes) {
        switch (chunk.kind) {
            case SavedKind::order: return take_order(chunk, bytes);
            case SavedKind::token_ids: return take_numbers(bytes, out_.notes.token_ids);
            case SavedKind::positions: return take_numbers(bytes, out_.notes.positions);
            case SavedKind::logits: return take_numbers(bytes, out_.notes.logits);
            case SavedKind::profile:
                out_.profile.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
                return Status::ok();
            case SavedKind::k_rows:
            case SavedKind::v_rows: return take_rows(chunk, bytes);
        }
        return Status::ok();
    }
    LoadedSequence finish() {
        out_.notes.slots = std::move(slots_);
        return std::move(out_);
    }

private:
    template <typename T>
    Status take_numbers(std::span<const std::byte> bytes, std::vector<T>& out) {
        const size_t count = out.size();
        out.resize(count + bytes.size() / sizeof(T));
        std::memcpy(out.data() + count, bytes.data(), bytes.size());
        return Status::ok();
    }

    // Every slot once, and none behind slot_end.
    Status take_order(const SavedChunk& chunk, std::span<const std::byte> bytes) {
        SHOAL_TRY(take_numbers(bytes, out_.order));
        if (chunk.first + chunk.count < header_.token_count) return Status::ok();
        slots_ = ascending(out_.order);
        const auto twice = std::adjacent_find(slots_.begin(), slots_.end());
        if (twice != slots_.end()) {
            return corrupt(fmt::format("slot {} is there twice", *twice));
        }
        if (slots_.back() + 1 == header_.slot_end) return Status::ok();
        return corrupt(fmt::format("slot_end = {}: its highest slot is {}", header_.slot_end,
                                   slots_.back()));
    }

    Status take_rows(const SavedChunk& chunk, std::span<const std::byte> bytes) {
        const LayerShape& shape = header_.shape.layers[chunk.layer];
        const bool is_k = chunk.kind == SavedKind::k_rows;
        ConstTensor rows;
        rows.data = bytes.data();
        rows.dtype = is_k ? header_.shape.rows.k : header_.shape.rows.v;
        rows.n = chunk.count;
        rows.heads = shape.kv_head_count;
        rows.head_dim = is_k ? shape.k_head_dim : shape.v_head_dim;
        rows.head_stride_bytes = row_bytes(rows.dtype, rows.head_dim);
        rows.n_stride_bytes = rows.heads * rows.head_stride_bytes;
        const Status status =
            target_.write({chunk.layer}, part_of(chunk.kind), slots_of(chunk, slots_, wide_), rows);
        if (status.code() != StatusCode::invalid_argument) return status;
        return corrupt(status.message());  // NaN or Inf
    }

    Status corrupt(const std::string& what) const {
        return Status::error(StatusCode::corrupt, fmt::format("{}: {}", path_, what));
    }

    const std::string& path_;
    const SavedHeader& header_;
    const LoadTarget& target_;
    std::vector<uint32_t> slots_;  // ascending
    std::vector<int64_t> wide_;
    LoadedSequence out_;
};

}  // namespace

Status save_sequence(const SaveInput& in, const std::string& path) {
    const Result<SavedHeader> header = complete_header(in);
    if (!header) return header.status();
    Result<std::unique_ptr<SavedFileWriter>> made =
        SavedFileWriter::create(path, *header, in.at_boundary);
    if (!made) return made.status();
    SavedFileWriter& writer = **made;
    const std::vector<uint32_t> slots = ascending(in.order);
    std::vector<int64_t> wide;
    const auto write = [&](const SavedChunk& chunk) {
        if (chunk.kind == SavedKind::k_rows || chunk.kind == SavedKind::v_rows) {
            SHOAL_TRY(in.read({chunk.layer}, part_of(chunk.kind), slots_of(chunk, slots, wide),
                              {writer.buffer(), chunk.bytes()}));
        } else {
            std::memcpy(writer.buffer(),
                        note_bytes(in, chunk.kind).data() + chunk.first * chunk.element_bytes,
                        chunk.bytes());
        }
        return writer.write(chunk);
    };
    const Status written = for_each_saved_chunk(*header, writer.sizes(), write);
    return written ? writer.finish() : written;
}

Result<LoadedSequence> load_sequence(const std::string& path, const LoadTarget& target) {
    Result<std::unique_ptr<SavedFileReader>> opened = SavedFileReader::open(path);
    if (!opened) return opened.status();
    SavedFileReader& reader = **opened;
    SHOAL_TRY(target.accept(reader.front().header));
    Loader loader(path, reader.front().header, target);
    const Status read = reader.for_each_chunk(
        [&](const SavedChunk& chunk, std::span<const std::byte> bytes) {
            return loader.take(chunk, bytes);
        });
    if (!read) return read;
    return loader.finish();
}

Status check_saved_model(const SavedHeader& header, const ModelShape& shape,
                         const SessionOptions& options, const std::string& path) {
    const auto check = [&](const std::string& field, const auto& saved, const auto& present) {
        if (saved == present) return Status::ok();
        return invalid(fmt::format("{}: {} = {}: this session has {}", path, field, saved,
                                   present));
    };
    const auto quoted = [](const std::string& text) { return fmt::format("\"{}\"", text); };
    if (!header.model.empty() && !options.model_fingerprint.empty()) {
        SHOAL_TRY(check("model", quoted(header.model), quoted(options.model_fingerprint)));
    }
    if (!header.rope.empty() && !options.rope_fingerprint.empty()) {
        SHOAL_TRY(check("rope", quoted(header.rope), quoted(options.rope_fingerprint)));
    }
    const auto name = [](DType dtype) { return std::string(dtype_name(dtype)); };
    SHOAL_TRY(check("rows.k", name(header.shape.rows.k), name(shape.rows.k)));
    SHOAL_TRY(check("rows.v", name(header.shape.rows.v), name(shape.rows.v)));
    SHOAL_TRY(check("q_head_count", header.shape.q_head_count, shape.q_head_count));
    SHOAL_TRY(check("layer count", header.shape.layers.size(), shape.layers.size()));
    for (size_t l = 0; l < shape.layers.size(); ++l) {
        const LayerShape& saved = header.shape.layers[l];
        const LayerShape& present = shape.layers[l];
        const auto field = [l](const char* text) { return fmt::format("layers[{}].{}", l, text); };
        SHOAL_TRY(check(field("kind"), static_cast<uint32_t>(saved.kind),
                        static_cast<uint32_t>(present.kind)));
        SHOAL_TRY(check(field("kv_head_count"), saved.kv_head_count, present.kv_head_count));
        SHOAL_TRY(check(field("k_head_dim"), saved.k_head_dim, present.k_head_dim));
        SHOAL_TRY(check(field("v_head_dim"), saved.v_head_dim, present.v_head_dim));
        SHOAL_TRY(check(field("window"), saved.window, present.window));
    }
    if (header.slot_end <= options.slots_per_store) return Status::ok();
    return invalid(fmt::format("{}: slot_end = {}: this session has slots_per_store = {}", path,
                               header.slot_end, options.slots_per_store));
}

}  // namespace shoal
