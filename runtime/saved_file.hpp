// Saved sequences on disk: a writer that leaves the old file or the new one, and a reader that
// hands out nothing it has not verified.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/saved_format.hpp"
#include "shoal/status.hpp"

namespace shoal {

// Memory as O_DIRECT wants it.
class PageBuffer {
public:
    explicit PageBuffer(size_t bytes);
    std::byte* data() { return data_.get(); }

private:
    struct Free {
        void operator()(std::byte* data) const { std::free(data); }
    };
    std::unique_ptr<std::byte[], Free> data_;
};

// An open file; -1 = none.
class FileDescriptor {
public:
    explicit FileDescriptor(int number) : number_(number) {}
    ~FileDescriptor() { (void)close(); }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    int get() const { return number_; }
    bool is_open() const { return number_ >= 0; }
    bool close();
    void reset(int number) {
        (void)close();
        number_ = number;
    }

private:
    int number_;
};

// Writes chunks in the order of for_each_saved_chunk(), the front last, all to a new file beside
// `path` that takes its place when everything is on disk. Without finish() nothing is left.
class SavedFileWriter {
public:
    // `at_boundary` is called before and after every change of the file system: tests end the
    // process there. Refuses a path that is no regular file, and a file system with too little
    // room: space is taken at once.
    static Result<std::unique_ptr<SavedFileWriter>> create(
        const std::string& path, const SavedHeader& header,
        const std::function<void()>& at_boundary);
    ~SavedFileWriter();
    SavedFileWriter(const SavedFileWriter&) = delete;
    SavedFileWriter& operator=(const SavedFileWriter&) = delete;

    const SavedSizes& sizes() const { return front_.sizes; }
    // Where the next chunk's elements are put; what is behind them is cleared by write().
    std::byte* buffer() { return buffer_.data(); }
    Status write(const SavedChunk& chunk);
    Status finish();

private:
    SavedFileWriter(std::string path, const SavedHeader& header,
                    std::function<void()> at_boundary);
    Status make_temporary();
    Status reserve();
    Status put(uint64_t offset, size_t bytes);
    void boundary() const;

    std::string path_;
    std::string temporary_;  // "": there is none
    std::function<void()> at_boundary_;
    SavedFront front_;
    FileDescriptor file_{-1};
    PageBuffer buffer_{kSavedChunkBytesMax};
};

class SavedFileReader {
public:
    // Opens the file and verifies its front. Refuses symbolic links and what is no regular file.
    static Result<std::unique_ptr<SavedFileReader>> open(const std::string& path);

    const SavedFront& front() const { return front_; }
    // Reads the chunks in their order, each verified before `take` gets it; stops at the first
    // failure. Threads of its own read and verify ahead: up to kBuffers chunks are in memory.
    using Take = std::function<Status(const SavedChunk&, std::span<const std::byte>)>;
    Status for_each_chunk(const Take& take);

private:
    static constexpr uint32_t kReaders = 4;
    static constexpr uint32_t kBuffers = 2 * kReaders;
    class Ahead;
    SavedFileReader(std::string path, int number) : path_(std::move(path)), file_(number) {}
    Status read_front();
    Status read(uint64_t offset, std::span<std::byte> out);
    Status read_verified(const SavedChunk& chunk, std::byte* out);

    std::string path_;
    FileDescriptor file_;
    SavedFront front_;
};

}  // namespace shoal
