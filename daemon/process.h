// What a process that serves does with itself: memory, signals, log lines of
// libraries.
#pragma once

#include <boost/asio/signal_set.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

#include "pkg/exec/event_loop.h"

namespace bim::daemon {

// Before anything is started: bounds what the C library keeps, ignores SIGPIPE
// and SIGIO, and makes gRPC's lines ours.
void PrepareProcess();

// The first SIGTERM or SIGINT ends Wait(), the second the process. SIGHUP is
// logged. Thread-safety: one thread, not the loop's.
class StopSignal {
 public:
  // `loop` outlives it.
  explicit StopSignal(exec::EventLoop& loop);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The same, by the program itself; `why` is logged. Any thread, also before
  // Wait.
  void Stop(const std::string& why);
  void Wait();
  // False: not stopped within that time.
  bool WaitFor(std::chrono::milliseconds time);

 private:
  void AwaitStop(bool first);
  void AwaitHangup();

  exec::EventLoop& loop_;
  boost::asio::signal_set stop_signals_;
  boost::asio::signal_set hangups_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
};

}  // namespace bim::daemon
