// What the kernel tests share: backends and instruction sets to try, random rows in real block
// layout, buffers with sentinels.
#pragma once

#include <gtest/gtest.h>

#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/q8.hpp"

namespace shoal::kernels::test {

// A backend, and for `cpu` the Highway target it is held to.
struct BackendCase {
    const Backend* backend = nullptr;
    int64_t target = 0;  // 0: leave the choice alone
    std::string name;
};

// ref, then cpu at every instruction set that this machine and this build have.
inline std::vector<BackendCase> all_backends() {
    std::vector<BackendCase> cases{{&ref_backend(), 0, "ref"}};
    for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
        const int64_t target = rest & -rest;
        hwy::SetSupportedTargetsForTest(target);
        // Targets that were not compiled in fall back to another one: skip those.
        const std::string name = cpu_target_name();
        if (name == hwy::TargetName(target)) cases.push_back({&cpu_backend(), target, name});
    }
    hwy::SetSupportedTargetsForTest(0);
    return cases;
}

// Holds the process to the target of a case while it lives.
class TargetScope {
public:
    explicit TargetScope(const BackendCase& backend) {
        hwy::SetSupportedTargetsForTest(backend.target);
    }
    ~TargetScope() { hwy::SetSupportedTargetsForTest(0); }
    TargetScope(const TargetScope&) = delete;
    TargetScope& operator=(const TargetScope&) = delete;
};

inline void PrintTo(const BackendCase& backend, std::ostream* out) { *out << backend.name; }
inline std::string case_name(const BackendCase& backend) { return backend.name; }

inline PieceFormat make_piece_format(uint32_t kv_head_count, uint32_t k_head_dim,
                                     uint32_t v_head_dim, DType k = DType::f16,
                                     DType v = DType::f16) {
    PieceFormat format;
    format.k_dtype = k;
    format.v_dtype = v;
    format.kv_head_count = kv_head_count;
    format.k_head_dim = k_head_dim;
    format.v_head_dim = v_head_dim;
    format.v_offset_bytes = k_head_dim * element_bytes(k);
    format.row_stride_bytes = format.v_offset_bytes + v_head_dim * element_bytes(v);
    format.piece_stride_bytes = (kv_head_count * format.row_stride_bytes + 127U) / 128U * 128U;
    return format;
}

// Rows of one group in blocks that lie apart. Everything starts as NaN.
class TestRows {
public:
    TestRows(const PieceFormat& format, uint32_t slot_count, uint32_t block_tokens_log2 = 4)
        : slot_count_(slot_count) {
        const uint32_t block_tokens = 1U << block_tokens_log2;
        const size_t block_bytes = size_t{block_tokens} * format.piece_stride_bytes;
        const uint32_t block_count = (slot_count + block_tokens - 1) / block_tokens;
        for (uint32_t b = 0; b < block_count; ++b) {
            storage_.push_back(std::make_unique<std::byte[]>(block_bytes + 64));
            // 64 B aligned, as blocks are; 0xff is NaN in every dtype.
            void* base = storage_.back().get();
            size_t space = block_bytes + 64;
            std::align(64, block_bytes, base, space);
            std::memset(base, 0xff, block_bytes);
            blocks_.push_back(static_cast<std::byte*>(base));
        }
        scales_.assign(size_t{slot_count} * format.scale_bytes() / sizeof(uint16_t), 0xffff);
        view_ = KvView{format, blocks_.data(), block_tokens_log2,
                       format.has_scales() ? scales_.data() : nullptr};
    }
    const KvView& view() const { return view_; }
    uint32_t slot_count() const { return slot_count_; }

    // Normal numbers; K gets a mean and a spread of its own per channel, as real keys have.
    void fill(uint32_t first, uint32_t count, uint32_t seed) {
        const PieceFormat& f = view_.format;
        for (uint32_t slot = first; slot < first + count; ++slot) {
            for (uint32_t h = 0; h < f.kv_head_count; ++h) {
                // A row depends on its slot alone, so that slots can be filled in any order.
                std::minstd_rand random(seed * 7919U + slot * 131U + h * 17U + 1U);
                std::normal_distribution<float> normal;
                std::vector<float> row(f.k_head_dim);
                for (uint32_t c = 0; c < f.k_head_dim; ++c) {
                    const float mean = 0.5F * std::sin(static_cast<float>(c * 3U + h));
                    const float spread = 0.25F + static_cast<float>((c * 29U + h) % 16U) / 8.0F;
                    row[c] = mean + spread * normal(random);
                }
                set_k(slot, h, row);
                row.resize(f.v_head_dim);
                for (float& value : row) value = normal(random);
                set_v(slot, h, row);
            }
        }
    }
    void set_k(uint32_t slot, uint32_t head, const std::vector<float>& row) {
        set(view_.k_row(slot, head), view_.format.k_dtype, row, slot, 2 * head);
    }
    void set_v(uint32_t slot, uint32_t head, const std::vector<float>& row) {
        set(view_.v_row(slot, head), view_.format.v_dtype, row, slot, 2 * head + 1);
    }
    void fill_all(uint32_t seed) { fill(0, slot_count_, seed); }
    float k_at(uint32_t slot, uint32_t head, uint32_t channel) const {
        return load_element(view_.k_row(slot, head), view_.format.k_dtype, channel,
                            k_scale(view_, slot, head));
    }
    float v_at(uint32_t slot, uint32_t head, uint32_t channel) const {
        return load_element(view_.v_row(slot, head), view_.format.v_dtype, channel,
                            v_scale(view_, slot, head));
    }

private:
    void set(std::byte* to, DType dtype, const std::vector<float>& row, uint32_t slot,
             uint32_t scale) {
        if (dtype == DType::q8) {
            view_.scales_of(slot)[scale] =
                q8_store_row(row.data(), static_cast<uint32_t>(row.size()), to);
            return;
        }
        for (size_t c = 0; c < row.size(); ++c) store_element(to, dtype, c, row[c]);
    }

    uint32_t slot_count_ = 0;
    std::vector<uint16_t> scales_;
    std::vector<std::unique_ptr<std::byte[]>> storage_;
    std::vector<std::byte*> blocks_;
    KvView view_;
};

// Which slots a query sees and a selector may pick. random_pages: whole pages hidden, whole pages
// kept from the selector, and slots here and there.
enum class MaskKind { all, safety_set, random, random_pages, hidden_spans };

inline std::vector<SpanMask> make_masks(MaskKind kind, uint32_t slots, uint32_t seed,
                                        uint32_t page_slots = 1) {
    std::mt19937_64 random(seed);
    std::vector<SpanMask> masks((slots + kSpanSlots - 1) / kSpanSlots);
    for (uint32_t slot = 0; slot < slots; ++slot) {
        const uint32_t page = slot / page_slots;
        bool visible = true;
        bool selectable = true;
        switch (kind) {
            case MaskKind::all: break;
            case MaskKind::safety_set: selectable = slot >= 4 && slot + 65 < slots; break;
            case MaskKind::random:
                visible = random() % 4 != 0;
                selectable = visible && random() % 4 != 0;
                break;
            case MaskKind::random_pages:
                visible = page % 3 != 0 && random() % 4 != 0;
                selectable = page % 5 != 1 && random() % 4 != 0;
                break;
            case MaskKind::hidden_spans: visible = slot / kSpanSlots % 2 == 1; break;
        }
        SpanMask& mask = masks[slot / kSpanSlots];
        const uint64_t bit = uint64_t{1} << (slot % 64);
        if (visible) mask.visible[slot % kSpanSlots / 64] |= bit;
        if (visible && selectable) mask.selectable[slot % kSpanSlots / 64] |= bit;
    }
    return masks;
}

inline std::vector<float> random_normal(size_t count, uint32_t seed, float spread = 1.0F) {
    std::minstd_rand random(seed * 2654435761U + 1U);
    std::normal_distribution<float> normal(0.0F, spread);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

// An array between two walls of known bytes, 64 B aligned.
template <typename T>
class Guarded {
public:
    explicit Guarded(size_t count, unsigned char fill = 0xff)
        : bytes_(count * sizeof(T)),
          storage_(static_cast<std::byte*>(::operator new(bytes_ + 2 * kWall, kAlign))) {
        std::memset(storage_, kSentinel, bytes_ + 2 * kWall);
        std::memset(storage_ + kWall, fill, bytes_);
    }
    ~Guarded() { ::operator delete(storage_, kAlign); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    T* data() { return reinterpret_cast<T*>(storage_ + kWall); }
    T& operator[](size_t i) { return data()[i]; }
    size_t bytes() const { return bytes_; }
    bool intact() const {
        for (size_t i = 0; i < kWall; ++i) {
            if (storage_[i] != std::byte{kSentinel}) return false;
            if (storage_[kWall + bytes_ + i] != std::byte{kSentinel}) return false;
        }
        return true;
    }

private:
    static constexpr size_t kWall = 128;
    static constexpr unsigned char kSentinel = 0xa5;
    static constexpr std::align_val_t kAlign{64};
    size_t bytes_ = 0;
    std::byte* storage_ = nullptr;
};

}  // namespace shoal::kernels::test
