#include "runtime/tool/terminal.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "runtime/tool/exit.hpp"

namespace shoal::tool {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr const char* kResetScrollRegion = "\0337\033[r\0338";
constexpr int kBarWidth = 24;

bool terminal_at(int descriptor) {
    const char* kind = std::getenv("TERM");
    return isatty(descriptor) == 1 && (kind == nullptr || std::strcmp(kind, "dumb") != 0);
}

winsize screen_size() {
    winsize size = {};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
        size.ws_row = 24;
        size.ws_col = 80;
    }
    return size;
}

}  // namespace

bool stdout_is_terminal() { return terminal_at(STDOUT_FILENO); }
bool stderr_is_terminal() { return terminal_at(STDERR_FILENO); }

ProgressBar::ProgressBar(std::string label, std::string unit, uint64_t total)
    : label_(std::move(label)), unit_(std::move(unit)), total_(total), start_(Clock::now()) {}

ProgressBar::~ProgressBar() {
    if (visible_) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::update(uint64_t done) {
    if (done == 0 || total_ == 0 || !stderr_is_terminal()) return;
    const auto now = Clock::now();
    const double elapsed = Seconds(now - start_).count();
    const double whole = elapsed * static_cast<double>(total_) / static_cast<double>(done);
    if (!visible_ && whole < 2.0) return;
    if (visible_ && Seconds(now - shown_).count() < 0.1) return;
    visible_ = true;
    shown_ = now;
    const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
    const int filled = static_cast<int>(part * kBarWidth);
    fmt::print(stderr, "\r\033[K{}  [{}{}]  {:.0f} %  {} of {} {}  {:.0f} {}/s  {:.0f} s left",
               label_, std::string(static_cast<size_t>(filled), '#'),
               std::string(static_cast<size_t>(kBarWidth - filled), '.'), part * 100, grouped(done),
               grouped(total_), unit_, static_cast<double>(done) / elapsed, unit_,
               std::max(0.0, whole - elapsed));
    std::fflush(stderr);
}

LiveLine::LiveLine() : open_(stderr_is_terminal()) {
    if (!open_ || !stdout_is_terminal()) return;
    const winsize size = screen_size();
    rows_ = size.ws_row;
    columns_ = size.ws_col;
    if (rows_ < 4) return;
    at_bottom_ = true;
    set_terminal_reset(kResetScrollRegion);
    std::fflush(stdout);
    // An index (a line feed that keeps the column) makes room, then the last row leaves the
    // scroll region.
    fmt::print(stderr, "\033D\033[A\0337\033[1;{}r\0338", rows_ - 1);
}

LiveLine::~LiveLine() { close(); }

bool LiveLine::due() const {
    return open_ && Seconds(Clock::now() - shown_).count() >= 0.1;
}

void LiveLine::show(const std::string& text) {
    if (!open_) return;
    shown_ = Clock::now();
    const std::string cut = text.substr(0, static_cast<size_t>(std::max(1, columns_ - 1)));
    if (at_bottom_) {
        std::fflush(stdout);
        fmt::print(stderr, "\0337\033[{};1H\033[2K{}\0338", rows_, cut);
    } else {
        fmt::print(stderr, "\r\033[K{}", cut);
    }
    std::fflush(stderr);
}

void LiveLine::close() {
    if (!open_) return;
    open_ = false;
    if (at_bottom_) {
        std::fflush(stdout);
        fmt::print(stderr, "\0337\033[{};1H\033[2K\0338{}", rows_, kResetScrollRegion);
        set_terminal_reset(nullptr);
    } else {
        fmt::print(stderr, "\r\033[K");
    }
    std::fflush(stderr);
}

}  // namespace shoal::tool
