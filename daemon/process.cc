#include "daemon/process.h"

#include <grpc/support/log.h>
#include <malloc.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <system_error>

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

sigset_t TakenSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  return set;
}

void BlockSignals() {
  const sigset_t set = TakenSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int OpenSignals() {
  const sigset_t set = TakenSignals();
  const int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) {
    throw std::system_error(errno, std::generic_category(), "signalfd");
  }
  return fd;
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
  BlockSignals();
  gpr_set_log_function(LogLineOfGrpc);
}

StopSignal::StopSignal(exec::EventLoop& loop)
    : loop_(loop), signals_(loop.context(), OpenSignals()) {
  loop_.Post([this] { AwaitSignals(); });
}

// Twice around the loop: what was to be called for it has been, then.
StopSignal::~StopSignal() {
  std::promise<void> silent;
  loop_.Post([&] {
    closed_ = true;
    signals_.close();
    loop_.Post([&] { silent.set_value(); });
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

void StopSignal::AwaitSignals() {
  signals_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                      [this](const boost::system::error_code& error) {
                        if (error || closed_) return;
                        signalfd_siginfo info;
                        while (::read(signals_.native_handle(), &info,
                                      sizeof info) == sizeof info) {
                          Take(static_cast<int>(info.ssi_signo));
                        }
                        AwaitSignals();
                      });
}

void StopSignal::Take(int number) {
  if (number == SIGHUP) {
    BIM_LOG_INFO("SIGHUP ignored: restart to apply a changed configuration");
    return;
  }
  if (signalled_) {
    BIM_LOG_WARN("second signal, SIG{}: exiting at once", sigabbrev_np(number));
    _exit(1);
  }
  signalled_ = true;
  Stop(std::string("SIG") + sigabbrev_np(number));
}

}  // namespace bim::daemon
