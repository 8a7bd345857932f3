// What the tests of tiers share: aligned memory, batches of transfers, tiers of every kind.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "offload/disk_tier.hpp"
#include "offload/faulty_tier.hpp"
#include "offload/memory_tier.hpp"
#include "offload/tier_wrappers.hpp"

namespace shoal::offload {

inline constexpr uint32_t kUnit = 4096;

// Zeroed memory at a multiple of 4096.
class AlignedMemory {
public:
    explicit AlignedMemory(size_t bytes)
        : bytes_(bytes), data_(static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
    ~AlignedMemory() { munmap(data_, bytes_); }
    AlignedMemory(const AlignedMemory&) = delete;
    AlignedMemory& operator=(const AlignedMemory&) = delete;
    std::byte* data() const { return data_; }
    std::byte* unit(size_t index) const { return data_ + index * kUnit; }
    size_t bytes() const { return bytes_; }
    std::span<std::byte> span() const { return {data_, bytes_}; }
    void fill(uint64_t seed) const {
        uint64_t word = seed * 0x9E3779B97F4A7C15 + 1;
        for (size_t at = 0; at < bytes_; at += 8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            std::memcpy(data_ + at, &word, 8);
        }
    }

private:
    size_t bytes_;
    std::byte* data_;
};

inline bool same(const std::byte* a, const std::byte* b, size_t bytes) {
    return std::memcmp(a, b, bytes) == 0;
}

// Transfers that stay where they are, and the list that start() and wait() take.
class Batch {
public:
    explicit Batch(size_t count) : transfers_(count) {
        for (Transfer& transfer : transfers_) list_.push_back(&transfer);
    }
    Transfer& operator[](size_t index) { return transfers_[index]; }
    size_t size() const { return transfers_.size(); }
    std::span<Transfer* const> all() const { return list_; }
    std::span<Transfer* const> part(size_t begin, size_t count) const {
        return std::span<Transfer* const>(list_).subspan(begin, count);
    }
    void set(size_t index, TransferKind kind, uint64_t unit, std::byte* data, uint32_t units = 1) {
        Transfer& transfer = transfers_[index];
        transfer.kind = kind;
        transfer.offset = unit * kUnit;
        transfer.data = data;
        transfer.bytes = units * kUnit;
    }
    size_t count_in(TransferState state) const {
        size_t count = 0;
        for (const Transfer& transfer : transfers_) count += transfer.state == state ? 1 : 0;
        return count;
    }
    size_t count_of_error(int error) const {
        size_t count = 0;
        for (const Transfer& transfer : transfers_) count += transfer.error == error ? 1 : 0;
        return count;
    }

private:
    std::vector<Transfer> transfers_;
    std::vector<Transfer*> list_;
};

// A directory of this machine in which spill files work; "" if there is none.
inline const std::string& spill_dir() {
    static const std::string dir = [] {
        for (const auto& candidate : {std::filesystem::current_path(),
                                      std::filesystem::temp_directory_path()}) {
            if (SpillFile::create(candidate.string(), kUnit)) return candidate.string();
        }
        return std::string();
    }();
    return dir;
}

inline bool uring_works() {
    static const bool works = probe_io_path().is_uring;
    return works;
}

// Memory that a tier is over, with the tier.
class OwnedMemoryTier final : public TierWrapper {
public:
    OwnedMemoryTier(std::unique_ptr<AlignedMemory> memory, TierOptions options)
        : TierWrapper(std::make_unique<MemoryTier>(memory->span(), kUnit, std::move(options))),
          memory_(std::move(memory)) {}
    ~OwnedMemoryTier() override { close(); }

private:
    void do_start(std::span<Transfer* const> transfers) override { start_in(inner(), transfers); }
    std::unique_ptr<AlignedMemory> memory_;
};

inline std::unique_ptr<Tier> make_memory_tier(uint64_t bytes, TierOptions options = {}) {
    return std::make_unique<OwnedMemoryTier>(std::make_unique<AlignedMemory>(bytes),
                                             std::move(options));
}

inline std::unique_ptr<Tier> make_disk_tier(uint64_t bytes, const DiskTierOptions& options) {
    Result<SpillFile> file = SpillFile::create(spill_dir(), bytes);
    EXPECT_TRUE(file) << file.status().message();
    Result<std::unique_ptr<DiskTier>> tier = DiskTier::create(std::move(*file), options);
    EXPECT_TRUE(tier) << tier.status().message();
    return std::move(*tier);
}

enum class Base : uint8_t { memory, uring, threads };

inline const char* base_name(Base base) {
    return base == Base::memory ? "memory" : base == Base::uring ? "uring" : "threads";
}

inline bool is_available(Base base) {
    if (base == Base::memory) return true;
    return !spill_dir().empty() && (base == Base::threads || uring_works());
}

inline std::unique_ptr<Tier> make_base(Base base, uint64_t bytes, TierOptions options = {}) {
    if (base == Base::memory) return make_memory_tier(bytes, std::move(options));
    DiskTierOptions disk;
    disk.tier = std::move(options);
    disk.path = base == Base::uring ? IoPathKind::io_uring : IoPathKind::threads;
    return make_disk_tier(bytes, disk);
}

}  // namespace shoal::offload
