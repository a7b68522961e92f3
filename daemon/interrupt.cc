#include "daemon/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "daemon/exit_code.h"

namespace bim::daemon {
namespace {

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

Interrupt::Interrupt(
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::jthread([this, deadline](std::stop_token end) {
    const sigset_t signals = Signals();
    while (!end.stop_requested()) {
      const timespec tick{.tv_sec = 0, .tv_nsec = 50'000'000};
      const bool signalled = sigtimedwait(&signals, nullptr, &tick) > 0;
      if (end.stop_requested()) return;
      if (!source_.stop_requested() && deadline &&
          std::chrono::steady_clock::now() >= *deadline) {
        timed_out_ = true;
        source_.request_stop();
      }
      if (!signalled) continue;
      if (source_.stop_requested()) {
        _exit(static_cast<int>(ExitCode::kInterrupted));
      }
      source_.request_stop();
    }
  });
}

Interrupt::~Interrupt() {
  thread_.request_stop();
  pthread_kill(thread_.native_handle(), SIGTERM);  // wakes it, no more
  thread_.join();
  const sigset_t set = Signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace bim::daemon
