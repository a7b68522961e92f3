#include "daemon/process.h"

#include <grpc/support/log.h>
#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <future>

#include "pkg/base/log.h"

namespace bim::daemon {
namespace {

// The idle daemon's memory: glibc gives each thread an arena of its own, which
// buys nothing here (the work is I/O).
void BoundMemory() {
  mallopt(M_ARENA_MAX, 2);
  mallopt(M_TRIM_THRESHOLD, 256 << 10);
}

void IgnoreSignals() {
  // A peer that is gone is an error of write(2); a lease on an image file that
  // someone opens raises SIGIO.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGIO, SIG_IGN);
}

void LogLineOfGrpc(gpr_log_func_args* line) {
  if (line->severity == GPR_LOG_SEVERITY_ERROR) {
    BIM_LOG_WARN("gRPC: {}", line->message);
  } else {
    BIM_LOG_DEBUG("gRPC: {}", line->message);
  }
}

}  // namespace

void PrepareProcess() {
  BoundMemory();
  IgnoreSignals();
  gpr_set_log_function(LogLineOfGrpc);
}

StopSignal::StopSignal(exec::EventLoop& loop)
    : loop_(loop),
      stop_signals_(loop.context(), SIGTERM, SIGINT),
      hangups_(loop.context(), SIGHUP) {
  AwaitStop(/*first=*/true);
  AwaitHangup();
}

// The signal sets belong to the loop's thread, so they are silenced there.
StopSignal::~StopSignal() {
  std::promise<void> silent;
  loop_.Post([&] {
    stop_signals_.cancel();
    hangups_.cancel();
    silent.set_value();
  });
  silent.get_future().wait();
}

void StopSignal::Stop(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
  }
  BIM_LOG_INFO("{}: stopping", why);
  changed_.notify_all();
}

void StopSignal::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopped_; });
}

bool StopSignal::WaitFor(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, time, [&] { return stopped_; });
}

void StopSignal::AwaitStop(bool first) {
  stop_signals_.async_wait(
      [this, first](const boost::system::error_code& error, int number) {
        if (error) return;
        if (!first) {
          BIM_LOG_WARN("second signal, SIG{}: exiting at once",
                       sigabbrev_np(number));
          _exit(1);
        }
        Stop(std::string("SIG") + sigabbrev_np(number));
        AwaitStop(/*first=*/false);
      });
}

void StopSignal::AwaitHangup() {
  hangups_.async_wait([this](const boost::system::error_code& error, int) {
    if (error) return;
    BIM_LOG_INFO("SIGHUP ignored: restart to apply a changed configuration");
    AwaitHangup();
  });
}

}  // namespace bim::daemon
