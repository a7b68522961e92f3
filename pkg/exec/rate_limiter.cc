#include "pkg/exec/rate_limiter.h"

#include <algorithm>

namespace bim::exec {
namespace {

using std::chrono::duration;
using std::chrono::duration_cast;
using std::chrono::nanoseconds;

// What may pass at once after a pause, in seconds.
constexpr double kBurst = 0.25;

}  // namespace

RateLimiter::RateLimiter(uint64_t bytes_per_second)
    : rate_(bytes_per_second), filled_(Clock::now()) {}

void RateLimiter::SetRate(uint64_t bytes_per_second) {
  std::lock_guard lock(mutex_);
  Refill(Clock::now());
  if (rate_ == bytes_per_second) return;
  // An old debt was made under another limit.
  if (tokens_ < 0) earned_ -= tokens_;
  tokens_ = 0;
  rate_ = bytes_per_second;
  changed_.notify_all();
}

uint64_t RateLimiter::rate() const {
  std::lock_guard lock(mutex_);
  return rate_;
}

void RateLimiter::Refill(Clock::time_point now) {
  if (now <= filled_) return;
  const double rate = static_cast<double>(rate_);
  const double came = std::min(rate * duration<double>(now - filled_).count(),
                               std::max(rate * kBurst - tokens_, 0.0));
  tokens_ += came;
  earned_ += came;
  filled_ = now;
}

nanoseconds RateLimiter::Take(uint64_t bytes, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  if (rate_ == 0) return nanoseconds(0);
  Refill(now);
  tokens_ -= static_cast<double>(bytes);
  if (tokens_ >= 0) return nanoseconds(0);
  return duration_cast<nanoseconds>(
      duration<double>(-tokens_ / static_cast<double>(rate_)));
}

bool RateLimiter::Wait(uint64_t bytes, std::stop_token stop) {
  std::stop_callback wake(stop, [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  if (stop.stop_requested()) return false;
  if (rate_ == 0) return true;
  Refill(Clock::now());
  tokens_ -= static_cast<double>(bytes);
  // What others take from now on is their wait, not this one's.
  const double goal = earned_ - std::min(tokens_, 0.0);
  while (rate_ != 0 && tokens_ < 0 && earned_ < goal) {
    const auto wait =
        duration<double>((goal - earned_) / static_cast<double>(rate_));
    // At least a little: a rest below the clock's grain would spin.
    changed_.wait_for(
        lock, std::clamp<duration<double>>(wait, std::chrono::microseconds(50),
                                           std::chrono::hours(1)));
    Refill(Clock::now());
    if (stop.stop_requested()) {
      if (earned_ < goal) tokens_ += static_cast<double>(bytes);
      return false;
    }
  }
  return true;
}

}  // namespace bim::exec
