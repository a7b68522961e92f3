// Keeps SIGPIPE away from this thread while it lives.
//
// sendfile(2) and OpenSSL's writes raise SIGPIPE when the peer is gone and take
// no MSG_NOSIGNAL. The signal goes to the writing thread, so it is blocked
// there, and one that came meanwhile is taken before unblocking. The process's
// own disposition is left alone. Use as a local variable.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <time.h>

namespace bim::http {

class SigpipeBlock {
 public:
  SigpipeBlock() {
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    sigset_t block = Set();
    pthread_sigmask(SIG_BLOCK, &block, &before_);
  }
  ~SigpipeBlock() {
    if (sigismember(&before_, SIGPIPE) == 1) return;
    if (!was_pending_) {
      const sigset_t set = Set();
      const timespec at_once{};
      sigtimedwait(&set, nullptr, &at_once);
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SigpipeBlock(const SigpipeBlock&) = delete;
  SigpipeBlock& operator=(const SigpipeBlock&) = delete;

 private:
  static sigset_t Set() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    return set;
  }
  sigset_t before_;
  bool was_pending_ = false;
};

}  // namespace bim::http
