// What a process that serves does with itself: memory, signals, log lines of
// libraries.
#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

#include "pkg/exec/event_loop.h"

namespace bim::daemon {

// Before anything is started, in a process of one thread: bounds what the C
// library keeps, ignores SIGPIPE and SIGIO, makes gRPC's lines ours, and blocks
// SIGTERM, SIGINT and SIGHUP for good, in all threads to come: only a
// StopSignal takes them, and one that comes when the process has as good as
// ended does not change how it ends.
void PrepareProcess();

// The first SIGTERM or SIGINT ends Wait(), the second the process. SIGHUP is
// logged. After PrepareProcess, and one in a process (signalfd(2)).
// Thread-safety: one thread, not the loop's.
class StopSignal {
 public:
  // `loop` outlives it. Throws std::system_error without a descriptor.
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
  void AwaitSignals();
  void Take(int number);

  exec::EventLoop& loop_;
  // Of the loop's thread:
  boost::asio::posix::stream_descriptor signals_;
  bool signalled_ = false;
  bool closed_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
};

}  // namespace bim::daemon
