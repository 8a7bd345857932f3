// The file that KV blocks spill to: without a name, so that it is gone with the process whatever
// ends it, readable by its user only, and as large as it will ever be from the start.
#pragma once

#include <cstdint>
#include <string>

#include "shoal/status.hpp"

namespace shoal::offload {

// An open descriptor, closed on destruction. Move-only.
class Descriptor {
public:
    Descriptor() = default;
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept;
    Descriptor& operator=(Descriptor&& other) noexcept;
    ~Descriptor();

    int number() const { return number_; }
    bool is_open() const { return number_ >= 0; }

private:
    int number_ = -1;
};

class SpillFile {
public:
    // A file of `bytes`, rounded up to alignment(), in the directory `dir` (the configuration key
    // disk.dir: messages name it). Opened for direct I/O, mode 0600, its blocks allocated, so that
    // no write meets a full disk. Fails, with nothing left behind:
    //   invalid_argument  `dir` is missing, no directory, not writable, or read-only
    //   unsupported       its file system has no direct I/O (tmpfs) or cannot allocate ahead
    //   out_of_memory     too little space, quota or file size limit: bytes wanted and bytes free
    static Result<SpillFile> create(const std::string& dir, uint64_t bytes);
    // Bytes that a file in `dir` could have now. Takes none of them. Fails as create() does where
    // `dir` is no place for any.
    static Result<uint64_t> room(const std::string& dir);

    int descriptor() const { return file_.number(); }
    uint64_t bytes() const { return bytes_; }
    // Of offsets, lengths and addresses of direct I/O: 4096 or more, a power of two.
    uint32_t alignment() const { return alignment_; }
    const std::string& dir() const { return dir_; }

private:
    static Result<SpillFile> open_in(const std::string& dir);
    SpillFile(Descriptor file, std::string dir) : file_(std::move(file)), dir_(std::move(dir)) {}
    Status find_alignment();
    Status allocate(uint64_t bytes);
    Status probe() const;

    Descriptor file_;
    std::string dir_;
    uint64_t bytes_ = 0;
    uint32_t alignment_ = 4096;
};

}  // namespace shoal::offload
