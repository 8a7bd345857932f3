#include "runtime/saved_format.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "runtime/groups.hpp"

namespace shoal {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie");

constexpr char kMagic[8] = {'S', 'H', 'O', 'A', 'L', 'S', 'E', 'Q'};
constexpr size_t kHashOffset = kSavedFrontHashOffset;
constexpr size_t kFixedBytes = 64;

// A number of bytes that remembers when it no longer was one.
class Size {
public:
    explicit Size(uint64_t value) : value_(value) {}
    Size& add(uint64_t other) {
        good_ = !__builtin_add_overflow(value_, other, &value_) && good_;
        return *this;
    }
    Size& multiply(uint64_t factor) {
        good_ = !__builtin_mul_overflow(value_, factor, &value_) && good_;
        return *this;
    }
    Size& align(uint64_t unit) {
        add(unit - 1);
        value_ -= value_ % unit;
        return *this;
    }
    // Files are addressed by signed 64-bit offsets.
    bool good() const { return good_ && value_ <= INT64_MAX; }
    uint64_t value() const { return value_; }

private:
    uint64_t value_;
    bool good_ = true;
};

// Appends fields to a front.
class FieldWriter {
public:
    template <typename T>
    void put(T value) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&value);
        bytes_.insert(bytes_.end(), bytes, bytes + sizeof(T));
    }
    void text(const std::string& value) {
        put(static_cast<uint32_t>(value.size()));
        const auto* bytes = reinterpret_cast<const std::byte*>(value.data());
        bytes_.insert(bytes_.end(), bytes, bytes + value.size());
    }
    std::vector<std::byte> take() { return std::move(bytes_); }

private:
    std::vector<std::byte> bytes_;
};

// Reads fields of a front; what lies behind its end reads as 0 and is remembered.
class FieldReader {
public:
    explicit FieldReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    template <typename T>
    T get() {
        T value{};
        if (!has(sizeof(T))) return value;
        std::memcpy(&value, bytes_.data(), sizeof(T));
        bytes_ = bytes_.subspan(sizeof(T));
        return value;
    }
    std::string text() {
        const auto length = get<uint32_t>();
        if (length > kSavedNameBytesMax) good_ = false;
        if (!has(length)) return {};
        std::string value(reinterpret_cast<const char*>(bytes_.data()), length);
        bytes_ = bytes_.subspan(length);
        return value;
    }
    bool good() const { return good_; }
    std::span<const std::byte> rest() const { return bytes_; }

private:
    bool has(size_t bytes) {
        if (bytes > bytes_.size()) good_ = false;
        return good_;
    }
    std::span<const std::byte> bytes_;
    bool good_ = true;
};

Status corrupt(const std::string& name, const std::string& what) {
    return Status::error(StatusCode::corrupt, fmt::format("{}: {}", name, what));
}

uint64_t read_u64(std::span<const std::byte> bytes, size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    return value;
}

// The description: everything between the fixed fields and the hashes.
std::vector<std::byte> description_bytes(const SavedHeader& header) {
    FieldWriter out;
    out.text(header.model);
    out.text(header.rope);
    out.text(dtype_name(header.shape.rows.k));
    out.text(dtype_name(header.shape.rows.v));
    out.put(header.shape.q_head_count);
    out.put(static_cast<uint32_t>(header.shape.layers.size()));
    for (const LayerShape& layer : header.shape.layers) {
        out.put(static_cast<uint32_t>(layer.kind));
        out.put(layer.kv_head_count);
        out.put(layer.k_head_dim);
        out.put(layer.v_head_dim);
        out.put(layer.window);
    }
    out.put(header.token_count);
    out.put(header.slot_end);
    out.put(uint32_t{header.has_token_ids});
    out.put(uint32_t{header.has_positions});
    out.put(header.logit_count);
    out.put(header.profile_bytes);
    out.put(uint64_t{0});  // bytes of labels, by profile: none in this version
    return out.take();
}

Status read_dtype(const std::string& value, const char* field, const std::string& name,
                  DType& out) {
    for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::q8}) {
        if (value != dtype_name(dtype)) continue;
        out = dtype;
        return Status::ok();
    }
    return Status::error(StatusCode::unsupported,
                         fmt::format("{}: {} = \"{}\": this build reads f16, bf16, f32 and q8",
                                     name, field, value));
}

Status read_layers(FieldReader& in, const std::string& name, std::vector<LayerShape>& layers) {
    const auto count = in.get<uint32_t>();
    if (count == 0 || count > kSavedLayersMax) {
        return corrupt(name, fmt::format("layer count = {}: must be 1 .. {}", count,
                                         kSavedLayersMax));
    }
    for (uint32_t l = 0; l < count && in.good(); ++l) {
        LayerShape layer;
        const auto kind = in.get<uint32_t>();
        if (kind > static_cast<uint32_t>(LayerKind::none)) {
            return corrupt(name, fmt::format("layers[{}].kind = {}: must be 0 .. 2", l, kind));
        }
        layer.kind = static_cast<LayerKind>(kind);
        layer.kv_head_count = in.get<uint32_t>();
        layer.k_head_dim = in.get<uint32_t>();
        layer.v_head_dim = in.get<uint32_t>();
        layer.window = in.get<uint32_t>();
        layers.push_back(layer);
    }
    return Status::ok();
}

Status read_flag(FieldReader& in, const char* field, const std::string& name, bool& out) {
    const auto value = in.get<uint32_t>();
    if (value > 1) return corrupt(name, fmt::format("{} = {}: must be 0 or 1", field, value));
    out = value == 1;
    return Status::ok();
}

Status read_description(FieldReader& in, const std::string& name, SavedHeader& header) {
    header.model = in.text();
    header.rope = in.text();
    const std::string k_dtype = in.text();
    const std::string v_dtype = in.text();
    if (!in.good()) return corrupt(name, "the description is cut, or a name is too long");
    SHOAL_TRY(read_dtype(k_dtype, "rows.k", name, header.shape.rows.k));
    SHOAL_TRY(read_dtype(v_dtype, "rows.v", name, header.shape.rows.v));
    header.shape.q_head_count = in.get<uint32_t>();
    SHOAL_TRY(read_layers(in, name, header.shape.layers));
    header.token_count = in.get<uint32_t>();
    header.slot_end = in.get<uint32_t>();
    SHOAL_TRY(read_flag(in, "has_token_ids", name, header.has_token_ids));
    SHOAL_TRY(read_flag(in, "has_positions", name, header.has_positions));
    header.logit_count = in.get<uint32_t>();
    header.profile_bytes = in.get<uint64_t>();
    const auto label_bytes = in.get<uint64_t>();
    if (!in.good()) return corrupt(name, "the description is cut");
    if (label_bytes != 0) {
        return Status::error(StatusCode::unsupported,
                             fmt::format("{}: label_bytes = {}: this build reads files without "
                                         "labels", name, label_bytes));
    }
    return check_saved_header(header, name, StatusCode::corrupt);
}

// Elements of one kind that lie in chunks of their own, and how many each chunk takes.
struct Series {
    SavedKind kind;
    uint64_t element_count;
    uint32_t element_bytes;
};

std::vector<Series> series_before_rows(const SavedHeader& header) {
    const uint64_t tokens = header.token_count;
    return {{SavedKind::order, tokens, 4},
            {SavedKind::token_ids, header.has_token_ids ? tokens : 0, 4},
            {SavedKind::positions, header.has_positions ? tokens : 0, 4},
            {SavedKind::logits, header.logit_count, 4},
            {SavedKind::profile, header.profile_bytes, 1}};
}

// Tokens of a layer's chunks: the same for K and V, so that both of a token come close together.
uint32_t tokens_per_chunk(const SavedHeader& header, uint32_t layer) {
    return kSavedChunkBytesMax / std::max(saved_row_bytes(header, layer, SavedKind::k_rows),
                                          saved_row_bytes(header, layer, SavedKind::v_rows));
}

uint64_t divide_up(uint64_t a, uint64_t b) { return a / b + (a % b == 0 ? 0 : 1); }

// Adds up `count` elements in chunks of `per_chunk`.
void add_chunks(uint64_t count, uint32_t element_bytes, uint32_t per_chunk, uint64_t& chunks,
                Size& bytes) {
    if (count == 0) return;
    SavedChunk chunk;
    chunk.element_bytes = element_bytes;
    chunk.count = per_chunk;
    bytes.add(Size(count / per_chunk).multiply(chunk.padded_bytes()).value());
    chunk.count = static_cast<uint32_t>(count % per_chunk);
    bytes.add(chunk.padded_bytes());
    chunks += divide_up(count, per_chunk);
}

}  // namespace

uint32_t saved_row_bytes(const SavedHeader& header, uint32_t layer, SavedKind kind) {
    const LayerShape& shape = header.shape.layers[layer];
    const bool is_k = kind == SavedKind::k_rows;
    const size_t head_bytes = is_k ? row_bytes(header.shape.rows.k, shape.k_head_dim)
                                   : row_bytes(header.shape.rows.v, shape.v_head_dim);
    return static_cast<uint32_t>(shape.kv_head_count * head_bytes);
}

Status check_saved_header(const SavedHeader& header, const std::string& name, StatusCode code) {
    const auto check = [&](const char* field, uint64_t value, uint64_t least, uint64_t most) {
        if (value >= least && value <= most) return Status::ok();
        return Status::error(code, fmt::format("{}: {} = {}: must be {} .. {}", name, field, value,
                                               least, most));
    };
    SHOAL_TRY(check("bytes of model", header.model.size(), 0, kSavedNameBytesMax));
    SHOAL_TRY(check("bytes of rope", header.rope.size(), 0, kSavedNameBytesMax));
    SHOAL_TRY(check("layer count", header.shape.layers.size(), 1, kSavedLayersMax));
    SHOAL_TRY(check("slot_end", header.slot_end, 1, kSavedSlotsMax));
    SHOAL_TRY(check("token_count", header.token_count, 1, header.slot_end));
    SHOAL_TRY(check("logit_count", header.logit_count, 0, kSavedLogitsMax));
    SHOAL_TRY(check("profile_bytes", header.profile_bytes, 0, kSavedProfileBytesMax));
    const std::string shape_error = model_shape_error(header.shape);
    if (!shape_error.empty()) return Status::error(code, fmt::format("{}: {}", name, shape_error));
    for (size_t l = 0; l < header.shape.layers.size(); ++l) {
        const LayerShape& layer = header.shape.layers[l];
        if (layer.kind == LayerKind::none) continue;
        // Dimensions are at most 256 here, and so at most 1 KiB a head.
        SHOAL_TRY(check(fmt::format("layers[{}].kv_head_count", l).c_str(), layer.kv_head_count,
                        1, kSavedChunkBytesMax / 1024));
    }
    return Status::ok();
}

Result<SavedSizes> saved_sizes(const SavedHeader& header, const std::string& name) {
    SavedSizes sizes;
    Size chunk_bytes(0);
    for (const Series& series : series_before_rows(header)) {
        add_chunks(series.element_count, series.element_bytes,
                   kSavedChunkBytesMax / series.element_bytes, sizes.chunk_count, chunk_bytes);
    }
    for (uint32_t l = 0; l < header.shape.layers.size(); ++l) {
        if (header.shape.layers[l].kind == LayerKind::none) continue;
        for (const SavedKind kind : {SavedKind::k_rows, SavedKind::v_rows}) {
            add_chunks(header.token_count, saved_row_bytes(header, l, kind),
                       tokens_per_chunk(header, l), sizes.chunk_count, chunk_bytes);
        }
    }
    const Size front = Size(sizes.chunk_count)
                           .multiply(sizeof(uint64_t))
                           .add(kFixedBytes + description_bytes(header).size())
                           .align(kSavedPageBytes);
    const Size file = Size(chunk_bytes).add(front.value());
    if (!front.good() || !file.good() || front.value() > kSavedFrontBytesMax) {
        return Status::error(StatusCode::unsupported,
                             fmt::format("{}: {} tokens of {} layers: the file would be too large",
                                         name, header.token_count, header.shape.layers.size()));
    }
    sizes.front_bytes = front.value();
    sizes.file_bytes = file.value();
    return sizes;
}

Status for_each_saved_chunk(const SavedHeader& header, const SavedSizes& sizes,
                            const std::function<Status(const SavedChunk&)>& visit) {
    SavedChunk chunk;
    chunk.offset = sizes.front_bytes;
    const auto next = [&](SavedKind kind, uint64_t count, uint32_t element_bytes) {
        chunk.kind = kind;
        chunk.count = static_cast<uint32_t>(count);
        chunk.element_bytes = element_bytes;
        SHOAL_TRY(visit(chunk));
        chunk.offset += chunk.padded_bytes();
        chunk.index++;
        return Status::ok();
    };
    for (const Series& series : series_before_rows(header)) {
        const uint64_t per_chunk = kSavedChunkBytesMax / series.element_bytes;
        for (chunk.first = 0; chunk.first < series.element_count; chunk.first += per_chunk) {
            SHOAL_TRY(next(series.kind, std::min(per_chunk, series.element_count - chunk.first),
                           series.element_bytes));
        }
    }
    for (chunk.layer = 0; chunk.layer < header.shape.layers.size(); ++chunk.layer) {
        if (header.shape.layers[chunk.layer].kind == LayerKind::none) continue;
        const uint64_t per_chunk = tokens_per_chunk(header, chunk.layer);
        for (chunk.first = 0; chunk.first < header.token_count; chunk.first += per_chunk) {
            const uint64_t count = std::min(per_chunk, header.token_count - chunk.first);
            for (const SavedKind kind : {SavedKind::k_rows, SavedKind::v_rows}) {
                SHOAL_TRY(next(kind, count, saved_row_bytes(header, chunk.layer, kind)));
            }
        }
    }
    return Status::ok();
}

uint64_t saved_chunk_hash(std::span<const std::byte> padded, uint64_t nonce, uint64_t index) {
    return XXH3_64bits_withSeed(padded.data(), padded.size(), nonce + index);
}

uint64_t saved_front_hash(std::span<const std::byte> front) {
    return XXH3_64bits_withSeed(front.data() + kFixedBytes, front.size() - kFixedBytes,
                                XXH3_64bits(front.data(), kHashOffset));
}

std::vector<std::byte> saved_front_bytes(const SavedFront& front) {
    const std::vector<std::byte> description = description_bytes(front.header);
    std::vector<std::byte> bytes(front.sizes.front_bytes);
    const auto put = [&bytes](size_t at, const void* from, size_t count) {
        SHOAL_ASSERT(at + count <= bytes.size());
        if (count != 0) std::memcpy(bytes.data() + at, from, count);
    };
    put(0, kMagic, sizeof(kMagic));
    put(8, &kSavedVersion, sizeof(kSavedVersion));
    put(16, &front.sizes.front_bytes, 8);
    put(24, &front.sizes.file_bytes, 8);
    put(32, &front.sizes.chunk_count, 8);
    put(40, &front.nonce, 8);
    put(kFixedBytes, description.data(), description.size());
    SHOAL_ASSERT(front.hashes.size() == front.sizes.chunk_count);
    put(kFixedBytes + description.size(), front.hashes.data(),
        front.hashes.size() * sizeof(uint64_t));
    const uint64_t hash = saved_front_hash(bytes);
    put(kHashOffset, &hash, sizeof(hash));
    return bytes;
}

Result<uint64_t> saved_front_length(std::span<const std::byte> beginning, uint64_t file_bytes,
                                    const std::string& name) {
    if (beginning.size() < kSavedPageBytes ||
        std::memcmp(beginning.data(), kMagic, sizeof(kMagic)) != 0) {
        return corrupt(name, "no saved sequence: a file that save wrote begins with SHOALSEQ");
    }
    uint32_t version = 0;
    std::memcpy(&version, beginning.data() + 8, sizeof(version));
    if (version != kSavedVersion) {
        return Status::error(StatusCode::unsupported,
                             fmt::format("{}: version = {}: this build reads version {}", name,
                                         version, kSavedVersion));
    }
    const uint64_t front_bytes = read_u64(beginning, 16);
    const uint64_t wanted_bytes = read_u64(beginning, 24);
    if (wanted_bytes != file_bytes) {
        return corrupt(name, fmt::format("file_bytes = {}: the file has {}: it was cut, or is no "
                                         "copy of the whole", wanted_bytes, file_bytes));
    }
    if (front_bytes < kSavedPageBytes || front_bytes % kSavedPageBytes != 0 ||
        front_bytes > std::min(file_bytes, kSavedFrontBytesMax)) {
        return corrupt(name, fmt::format("front_bytes = {}: must be a multiple of {} up to {}",
                                         front_bytes, kSavedPageBytes,
                                         std::min(file_bytes, kSavedFrontBytesMax)));
    }
    return front_bytes;
}

Result<SavedFront> parse_saved_front(std::span<const std::byte> bytes, const std::string& name) {
    SHOAL_ASSERT(bytes.size() >= kSavedPageBytes);
    if (read_u64(bytes, kHashOffset) != saved_front_hash(bytes)) {
        return corrupt(name, "the checksum of the front differs: the file is damaged");
    }
    SavedFront front;
    front.nonce = read_u64(bytes, 40);
    FieldReader in(bytes.subspan(kFixedBytes));
    SHOAL_TRY(read_description(in, name, front.header));
    const Result<SavedSizes> sizes = saved_sizes(front.header, name);
    if (!sizes) return sizes.status();
    front.sizes = *sizes;
    const auto check = [&](const char* field, uint64_t value, uint64_t needed) {
        if (value == needed) return Status::ok();
        return corrupt(name, fmt::format("{} = {}: its description needs {}", field, value,
                                         needed));
    };
    SHOAL_TRY(check("front_bytes", bytes.size(), sizes->front_bytes));
    SHOAL_TRY(check("file_bytes", read_u64(bytes, 24), sizes->file_bytes));
    SHOAL_TRY(check("chunk_count", read_u64(bytes, 32), sizes->chunk_count));
    front.hashes.resize(sizes->chunk_count);
    SHOAL_ASSERT(in.rest().size() >= front.hashes.size() * sizeof(uint64_t));
    std::memcpy(front.hashes.data(), in.rest().data(), front.hashes.size() * sizeof(uint64_t));
    return front;
}

}  // namespace shoal
