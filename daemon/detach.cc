#include "daemon/detach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace bim::daemon {
namespace {

[[noreturn]] void AwaitAndExit(pid_t child, base::UniqueFd pipe) {
  char told = 0;
  ssize_t count = 0;
  do {
    count = ::read(pipe.get(), &told, 1);
  } while (count < 0 && errno == EINTR);
  if (count == 1) ::_exit(0);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  // (It ended before it served, which is no success, whatever it says.)
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  ::_exit(code == 0 ? 1 : code);
}

}  // namespace

base::Result<Detached> Detached::Start() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return base::ErrnoError(errno, "cannot make a pipe");
  }
  base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  ::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return base::ErrnoError(errno, "cannot make a process");
  if (child > 0) {
    write_end.Reset();
    AwaitAndExit(child, std::move(read_end));
  }
  read_end.Reset();
  (void)::setsid();
  return Detached(std::move(write_end));
}

void Detached::Serving() {
  (void)!::write(starter_.get(), "1", 1);
  starter_.Reset();
}

}  // namespace bim::daemon
