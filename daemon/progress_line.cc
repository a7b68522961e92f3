#include "daemon/progress_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

namespace bim::daemon {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};

size_t TerminalWidth() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
    return 80;
  }
  return size.ws_col;
}

}  // namespace

ProgressLine::ProgressLine() : visible_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() { Clear(); }

void ProgressLine::Update(Progress progress) {
  if (!visible_) return;
  const auto now = std::chrono::steady_clock::now();
  if (progress.label != label_ || progress.done_bytes < last_done_) {
    label_ = progress.label;
    rate_since_ = now;
    rate_from_ = progress.done_bytes;
  } else if (drawn_ && now - last_draw_ < kRedraw) {
    last_done_ = progress.done_bytes;
    return;
  }
  last_done_ = progress.done_bytes;
  const std::chrono::duration<double> elapsed = now - rate_since_;
  progress.bytes_per_second =
      elapsed.count() > 0.5
          ? static_cast<double>(progress.done_bytes - rate_from_) /
                elapsed.count()
          : 0;
  // One column is left free: a full line would wrap on some terminals.
  const std::string line = RenderProgress(progress, TerminalWidth() - 1);
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
  last_draw_ = now;
}

void ProgressLine::Clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace bim::daemon
