// bench_disk: reads and writes of a spill file through the disk tier, beside fio on the same file.
//
// usage: bench_disk DIR [GiB] [rounds]    (default 2 GiB, 3 rounds; the file has no name and is
//                                          gone at the end)
//
// random   blocks drawn from the whole file, as fio draws them: to 64 MiB of memory, as rows of
//          many layers go, and to as little as fio uses, which stays in the processor's cache
// sorted   ascending blocks with gaps, a sixteenth of those there are: what a selection gives;
//          neighbours are merged, so the device sees fewer. To 64 MiB
// CPU      of the whole process, per block, without and with checksums
// Each row: the medians of the rounds. fio (io_uring, registered buffers and file) runs between two
// measurements with its own amount of memory; the ratio is a median of ratios.
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <random>

#include "bench/support.hpp"
#include "offload/disk_tier.hpp"

namespace shoal::bench {
namespace {

using offload::DiskTier;
using offload::DiskTierOptions;
using offload::IoPathKind;
using offload::SpillFile;
using offload::Transfer;
using offload::TransferKind;

[[noreturn]] void stop(const std::string& why) {
    std::fprintf(stderr, "bench_disk: %s\n", why.c_str());
    std::exit(1);
}

struct Rate {
    double per_s = 0;         // blocks
    double cpu_us = 0;        // a block
    double merged = 1;        // blocks per operation of the device
};

enum class Pattern : uint8_t { random, sorted, sequential };

struct Extras {
    bool checked = false;
    uint64_t memory_bytes = UINT64_MAX;    // that the blocks go to
};

// A tier over a file that has been written from end to end: blocks that never were cost no read.
class Bed {
public:
    Bed(const std::string& dir, uint64_t bytes, uint32_t depth, IoPathKind path,
        const HugeBuffer& memory)
        : memory_(memory) {
        auto file = SpillFile::create(dir, bytes);
        if (!file) stop(file.status().message());
        file_number_ = file->descriptor();
        DiskTierOptions options;
        options.depth = depth;
        options.path = path;
        auto tier = DiskTier::create(std::move(*file), options);
        if (!tier) stop(tier.status().message());
        tier_ = std::move(*tier);
        tier_->use_memory({memory.data(), memory.bytes()});
        write_ = run(TransferKind::write, 1 << 20, bytes >> 20, Pattern::sequential, {});
    }

    // Batches of `count` until it took a second, each drawn anew.
    Rate run(TransferKind kind, uint32_t block, uint64_t count, Pattern pattern, Extras extras) {
        Sum sum;
        do add(kind, block, count, pattern, extras, sum);
        while (sum.seconds < 1 && pattern != Pattern::sequential);
        return {sum.blocks / sum.seconds, sum.cpu / sum.blocks * 1e6, sum.blocks / sum.operations};
    }

    const DiskTier& tier() const { return *tier_; }
    Rate write() const { return write_; }
    std::string file_path() const {
        const std::string number = std::to_string(file_number_);
        return "/proc/" + std::to_string(getpid()) + "/fd" + "/" + number;
    }

private:
    struct Sum {
        double blocks = 0;
        double seconds = 0;
        double cpu = 0;
        double operations = 0;
    };

    void add(TransferKind kind, uint32_t block, uint64_t count, Pattern pattern, Extras extras,
             Sum& sum) {
        const std::vector<uint64_t> blocks = choose(tier_->bytes() / block, count, pattern);
        std::vector<Transfer> transfers(blocks.size());
        std::vector<Transfer*> list;
        uint64_t checksum = 0;
        const uint64_t places = std::min<uint64_t>(memory_.bytes(), extras.memory_bytes) / block;
        for (size_t i = 0; i < blocks.size(); ++i) {
            transfers[i].kind = kind;
            transfers[i].offset = blocks[i] * block;
            transfers[i].data = memory_.data() + i % places * block;
            transfers[i].bytes = block;
            list.push_back(&transfers[i]);
        }
        const offload::TierCounters before = tier_->counters();
        const double cpu_begin = cpu_s();
        const double begin = now_s();
        tier_->start(list);
        const Status status = tier_->wait(list);
        if (extras.checked) {
            for (const Transfer& transfer : transfers) checksum ^= transfer_checksum(transfer);
        }
        sum.seconds += now_s() - begin;
        sum.cpu += cpu_s() - cpu_begin;
        if (!status) stop(status.message());
        const offload::TierCounters after = tier_->counters();
        sum.operations +=
            static_cast<double>(after.device_reads + after.device_writes - before.device_reads -
                                before.device_writes);
        sum.blocks += static_cast<double>(blocks.size());
        sink_ = sink_ + checksum;
    }

    std::vector<uint64_t> choose(uint64_t there, uint64_t count, Pattern pattern) {
        std::vector<uint64_t> blocks;
        if (pattern == Pattern::sorted) {
            for (uint64_t block = random_() % there / 2; blocks.size() < count; ++block) {
                if (block == there) break;
                if (random_() % 16 == 0) blocks.push_back(block);
            }
            return blocks;
        }
        for (uint64_t i = 0; i < count; ++i) {
            blocks.push_back(pattern == Pattern::random ? random_() % there : i % there);
        }
        return blocks;
    }

    const HugeBuffer& memory_;
    int file_number_ = -1;
    std::unique_ptr<DiskTier> tier_;
    Rate write_;
    std::mt19937_64 random_{1};
    volatile uint64_t sink_ = 0;
};

struct Fio {
    double per_s = 0;
    double cpu_us = 0;
};

// Fields of fio's terse output, version 3: 7 read IOPS, 87 and 88 user and system time in percent.
Fio run_fio(const std::string& file, uint32_t block, uint32_t depth, uint64_t bytes,
            const char* direction) {
    const std::string command =
        "fio --name=b --filename=" + file + " --rw=" + direction + " --bs=" +
        std::to_string(block) + " --iodepth=" + std::to_string(depth) +
        " --ioengine=io_uring --fixedbufs --registerfiles --direct=1 --allow_file_create=0 "
        "--runtime=1 --time_based --size=" + std::to_string(bytes / block * block) +
        " --output-format=terse --terse-version=3 2>&1";
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return {};
    std::string text;
    char part[4096];
    for (size_t got = 0; (got = fread(part, 1, sizeof part, pipe)) > 0;) text.append(part, got);
    if (pclose(pipe) != 0) return {};
    std::vector<std::string> fields(1);
    for (const char letter : text) {
        if (letter == ';') fields.emplace_back();
        else fields.back() += letter;
    }
    if (fields.size() < 89) return {};
    const double per_s = std::atof(fields[7].c_str());
    const double busy = std::atof(fields[87].c_str()) + std::atof(fields[88].c_str());
    return {per_s, per_s > 0 ? busy / 100 * 1e6 / per_s : 0};
}

double median_by(const std::vector<Rate>& rates, double Rate::*member) {
    std::vector<double> values;
    for (const Rate& rate : rates) values.push_back(rate.*member);
    return median(std::move(values));
}

void random_rows(Bed& bed, uint32_t depth, int rounds, bool has_fio) {
    for (const uint32_t block : {4096U, 12288U, 65536U}) {
        const uint64_t count = std::min<uint64_t>(30000, 2000 * depth) * 4096 / block;
        const auto read = [&](Pattern pattern, Extras extras) {
            return bed.run(TransferKind::read, block, count, pattern, extras);
        };
        const Extras little = {false, std::max<uint64_t>(1 << 20, uint64_t{depth} * block)};
        std::vector<Rate> random;
        std::vector<Rate> near;
        std::vector<Rate> sorted;
        std::vector<Rate> checked;
        std::vector<double> fio_per_s;
        std::vector<double> fio_cpu;
        std::vector<double> ratios;
        for (int round = 0; round < rounds; ++round) {
            random.push_back(read(Pattern::random, {}));
            near.push_back(read(Pattern::random, little));
            if (has_fio) {
                const Fio fio = run_fio(bed.file_path(), block, depth, bed.tier().bytes(),
                                        "randread");
                near.push_back(read(Pattern::random, little));
                fio_per_s.push_back(fio.per_s);
                fio_cpu.push_back(fio.cpu_us);
                const double around = (near.back().per_s + near[near.size() - 2].per_s) / 2;
                if (fio.per_s > 0) ratios.push_back(around / fio.per_s);
            }
            sorted.push_back(read(Pattern::sorted, {}));
            checked.push_back(read(Pattern::random, {true, UINT64_MAX}));
        }
        const double per_s = median_by(random, &Rate::per_s);
        std::printf("| %5u | %4u | %7.0f | %5.2f | %5.2f | %5.2f | %7.0f | %5.2f | %7.0f | %5.2f | "
                    "%7.0f | %5.2f | %4.2f |\n",
                    block, depth, per_s, per_s * block * 1e-9, median_by(random, &Rate::cpu_us),
                    median_by(checked, &Rate::cpu_us), median_by(sorted, &Rate::per_s),
                    median_by(sorted, &Rate::merged), median_by(near, &Rate::per_s),
                    median_by(near, &Rate::cpu_us), median(fio_per_s), median(fio_cpu),
                    median(ratios));
        std::fflush(stdout);
    }
}

void sequential_row(Bed& bed, uint32_t depth, int rounds, bool has_fio) {
    constexpr uint32_t kBlock = 1 << 20;
    std::vector<Rate> reads;
    std::vector<Rate> writes = {bed.write()};
    std::vector<double> ratios;
    for (int round = 0; round < rounds; ++round) {
        const uint64_t count = bed.tier().bytes() / kBlock;
        reads.push_back(bed.run(TransferKind::read, kBlock, count, Pattern::sequential, {}));
        if (has_fio) {
            const Fio fio = run_fio(bed.file_path(), kBlock, std::min(depth, 64U),
                                    bed.tier().bytes(), "read");
            if (fio.per_s > 0) ratios.push_back(reads.back().per_s / fio.per_s);
        }
        writes.push_back(bed.run(TransferKind::write, kBlock, count, Pattern::sequential, {}));
    }
    std::printf("1 MiB one after another, depth %u: read %.2f GB/s (fio: %.2f of it), write %.2f "
                "GB/s (the first, into fresh blocks: %.2f)\n",
                depth, median_by(reads, &Rate::per_s) * kBlock * 1e-9, median(ratios),
                median_by(writes, &Rate::per_s) * kBlock * 1e-9,
                bed.write().per_s * kBlock * 1e-9);
}

int run_all(const std::string& dir, uint64_t bytes, int rounds) {
    const HugeBuffer memory(uint64_t{64} << 20);
    const bool has_fio = std::system("fio --version >/dev/null 2>&1") == 0;
    if (!has_fio) std::printf("fio is not installed: no ratios\n");
    for (const IoPathKind path : {IoPathKind::automatic, IoPathKind::threads}) {
        for (const uint32_t depth : {1U, 8U, 32U, 64U, 128U}) {
            if (path == IoPathKind::threads && depth != 1 && depth != 32) continue;
            Bed bed(dir, bytes, depth, path, memory);
            if (depth == 1) {
                std::printf("\n%s\n\n", bed.tier().path().text.c_str());
                std::printf("| block | depth | random blocks/s | GB/s | CPU us | with checksums | "
                            "sorted blocks/s | merged | little memory | CPU us | fio | CPU us | "
                            "of fio |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
            }
            random_rows(bed, depth, rounds, has_fio);
            if (depth == 128 || path == IoPathKind::threads) {
                sequential_row(bed, depth, rounds, has_fio);
            }
        }
    }
    return 0;
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: bench_disk DIR [GiB] [rounds]\n");
        return 2;
    }
    const uint64_t gib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 2;
    const int rounds = argc > 3 ? std::atoi(argv[3]) : 3;
    if (gib < 1 || gib > 8 || rounds < 1) {
        std::fprintf(stderr, "bench_disk: GiB: 1 to 8; rounds: 1 or more\n");
        return 2;
    }
    return shoal::bench::run_all(argv[1], gib << 30, rounds);
}
