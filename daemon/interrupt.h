// Why a client command should end early: Ctrl-C (SIGINT), SIGTERM, or its
// --timeout. A stop token instead of a sudden death, so that it can tidy up; a
// second signal ends the process at once.
//
// Construct one before any other thread is started (they inherit its mask), and
// destroy it when they are gone; while it lives the two signals are blocked in
// the process and read by a thread of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <stop_token>
#include <thread>

namespace bim::daemon {

class Interrupt {
 public:
  // `deadline`: when it times out; never without one.
  explicit Interrupt(
      std::optional<std::chrono::steady_clock::time_point> deadline);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  std::stop_token token() const { return source_.get_token(); }
  bool requested() const { return source_.stop_requested(); }
  // Whether the deadline was the reason.
  bool timed_out() const { return timed_out_; }

 private:
  std::stop_source source_;
  std::atomic<bool> timed_out_ = false;
  std::jthread thread_;
};

}  // namespace bim::daemon
