#include "pkg/http/pace.h"

#include <algorithm>

namespace bim::http {

void Pace::Await(Clock::time_point now) {
  if (awaiting_) return;
  awaiting_ = true;
  since_ = now;
}

void Pace::Pause(Clock::time_point now) {
  awaited_ = Awaited(now);
  awaiting_ = false;
}

Pace::Clock::duration Pace::Awaited(Clock::time_point now) const {
  if (!awaiting_ || now < since_) return awaited_;
  return awaited_ + (now - since_);
}

Pace::Verdict Pace::Look(Clock::time_point now, uint64_t total) {
  const Clock::duration clock = Awaited(now);
  if (total > last_total_) {
    last_total_ = total;
    last_byte_ = clock;
  }
  if (clock - last_byte_ >= limits_.stall) return Verdict::kStalled;
  if (limits_.min_rate == 0 || clock - window_ < limits_.window)
    return Verdict::kFine;
  const double seconds = std::chrono::duration<double>(clock - window_).count();
  const double rate =
      static_cast<double>(last_total_ - window_total_) / seconds;
  rate_ = static_cast<uint64_t>(rate);
  window_ = clock;
  window_total_ = last_total_;
  return rate < static_cast<double>(limits_.min_rate) ? Verdict::kDribbling
                                                      : Verdict::kFine;
}

Pace::Clock::time_point Pace::NextLook() const {
  Clock::duration next = last_byte_ + limits_.stall;
  if (limits_.min_rate > 0) next = std::min(next, window_ + limits_.window);
  return since_ + (next - awaited_);
}

}  // namespace bim::http
