// What is shown on stderr while something runs, on a terminal only: progress bar and live line.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "shoal/text.hpp"

namespace shoal::tool {

bool stdout_is_terminal();
bool stderr_is_terminal();

// "prefill  [#########.......]  57 %  4,096 of 7,168 tokens  312 tokens/s  10 s left".
// Appears only once the work is known to take more than two seconds; leaves nothing behind.
class ProgressBar {
public:
    ProgressBar(std::string label, std::string unit, uint64_t total);
    ~ProgressBar();
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    void update(uint64_t done);

private:
    std::string label_;
    std::string unit_;
    uint64_t total_;
    std::chrono::steady_clock::time_point start_;
    std::chrono::steady_clock::time_point shown_;
    bool visible_ = false;
};

// One line that is rewritten in place. Where stdout is a terminal too, the line is kept at the
// bottom of the screen and text scrolls above it.
class LiveLine {
public:
    LiveLine();
    ~LiveLine();
    LiveLine(const LiveLine&) = delete;
    LiveLine& operator=(const LiveLine&) = delete;
    // Whether show() would draw now: a terminal, and 100 ms since the last time.
    bool due() const;
    void show(const std::string& text);
    void close();

private:
    bool open_;
    bool at_bottom_ = false;
    int rows_ = 0;
    int columns_ = 80;
    std::chrono::steady_clock::time_point shown_;
};

}  // namespace shoal::tool
