// What a process that serves does with itself: memory, signals, log lines of
// libraries.
#pragma once

#include <boost/asio/signal_set.hpp>
#include <future>

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

  void Wait() { stopped_.get_future().wait(); }

 private:
  void AwaitStop(bool first);
  void AwaitHangup();

  exec::EventLoop& loop_;
  boost::asio::signal_set stop_signals_;
  boost::asio::signal_set hangups_;
  std::promise<void> stopped_;
};

}  // namespace bim::daemon
