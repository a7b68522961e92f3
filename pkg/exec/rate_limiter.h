// A limit in bytes per second that many share and that can be changed while
// they wait: a token bucket that holds at most a quarter of a second's worth.
// Whoever comes first passes first, whether it waits by Take or by Wait.
//
// Thread-safety: all functions from any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace bim::exec {

class RateLimiter {
 public:
  using Clock = std::chrono::steady_clock;

  // 0: no limit.
  explicit RateLimiter(uint64_t bytes_per_second = 0);
  RateLimiter(const RateLimiter&) = delete;
  RateLimiter& operator=(const RateLimiter&) = delete;

  // Another rate forgives what was owed under the old one: who waits passes.
  void SetRate(uint64_t bytes_per_second);
  uint64_t rate() const;

  // For those who may not block: takes `bytes` (the bucket may go into debt,
  // so that large pieces pass, too) and returns how long to wait before going
  // on. Zero without a limit. Who waits so looks at rate() now and then: when
  // it changed, there is nothing to wait for any more.
  std::chrono::nanoseconds Take(uint64_t bytes, Clock::time_point now);

  // Blocks until `bytes` may pass. A change of the rate counts at once. False
  // when stopped: then they were not taken.
  bool Wait(uint64_t bytes, std::stop_token stop);

 private:
  // Adds what came since the last look. Locked.
  void Refill(Clock::time_point now);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t rate_;
  double tokens_ = 0;  // negative: debt
  double earned_ = 0;  // all that ever came into the bucket, or was forgiven
  Clock::time_point filled_;
};

}  // namespace bim::exec
