// Whether the other side of a connection stands still, or dribbles. Pure: the
// time comes from the caller.
//
// The clock runs only while the other side is awaited: what we do ourselves (a
// disk, a sink, a rate limit) is not held against it.
#pragma once

#include <chrono>
#include <cstdint>

namespace bim::http {

class Pace {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Verdict {
    kFine,
    kStalled,    // no byte for `stall`
    kDribbling,  // less than `min_rate` over a whole window
  };
  struct Limits {
    std::chrono::milliseconds stall{60'000};
    // Bytes a second, averaged over one window after another; 0: any.
    uint64_t min_rate = 0;
    std::chrono::milliseconds window{30'000};
  };

  explicit Pace(const Limits& limits) : limits_(limits) {}

  // The other side is awaited from now on, or no longer. Said twice it means
  // nothing.
  void Await(Clock::time_point now);
  void Pause(Clock::time_point now);

  // `total`: the bytes that came, or were taken, so far.
  Verdict Look(Clock::time_point now, uint64_t total);
  // When to look again at the latest; while awaited.
  Clock::time_point NextLook() const;
  // Bytes a second over the last window that ended.
  uint64_t rate() const { return rate_; }

 private:
  Clock::duration Awaited(Clock::time_point now) const;

  const Limits limits_;
  bool awaiting_ = false;
  Clock::time_point since_;       // of awaiting_
  Clock::duration awaited_{0};    // before since_
  Clock::duration last_byte_{0};  // on the clock that counts awaiting only
  Clock::duration window_{0};     // likewise: when it began
  uint64_t last_total_ = 0;       // at last_byte_
  uint64_t window_total_ = 0;     // at window_
  uint64_t rate_ = 0;
};

}  // namespace bim::http
