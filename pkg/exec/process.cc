#include "pkg/exec/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "pkg/base/names.h"
#include "pkg/base/unique_fd.h"

namespace bim::exec {
namespace {

constexpr int kPollMs = 50;
constexpr size_t kMaxSaid = 1000;
constexpr int kFirstDescriptor = 3;
// What the child says when it could not become the program.
constexpr int kNoProgram = 127;

void Limit(__rlimit_resource resource, uint64_t bytes) {
  const struct rlimit limit = {bytes, bytes};
  (void)::setrlimit(resource, &limit);
}

// In the child, between fork and exec: system calls only.
[[noreturn]] void Become(const ProcessSpec& spec, char* const* arguments,
                         int error_fd, pid_t parent) {
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kNoProgram);
  const int null_fd = ::open("/dev/null", O_RDWR);
  // Out of the way of the numbers they are to get.
  const int base = kFirstDescriptor + static_cast<int>(spec.descriptors.size());
  const int said = ::fcntl(error_fd, F_DUPFD, base);
  (void)::dup2(null_fd, STDIN_FILENO);
  (void)::dup2(null_fd, STDOUT_FILENO);
  (void)::dup2(said, STDERR_FILENO);
  for (size_t i = 0; i < spec.descriptors.size(); ++i) {
    const int moved = ::fcntl(spec.descriptors[i], F_DUPFD, base);
    if (moved < 0) ::_exit(kNoProgram);
    // Freed only when all have been moved: they are below `base`, or our own.
    const_cast<ProcessSpec&>(spec).descriptors[i] = moved;
  }
  for (size_t i = 0; i < spec.descriptors.size(); ++i) {
    if (::dup2(spec.descriptors[i], kFirstDescriptor + static_cast<int>(i)) <
        0) {
      ::_exit(kNoProgram);
    }
  }
  (void)::close_range(static_cast<unsigned>(base), ~0U, 0);
  Limit(RLIMIT_AS, spec.max_memory);
  Limit(RLIMIT_CORE, 0);
  if (spec.max_file_size > 0) Limit(RLIMIT_FSIZE, spec.max_file_size);
  sigset_t none;
  ::sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  (void)::signal(SIGPIPE, SIG_DFL);
  ::execvp(arguments[0], arguments);
  ::_exit(kNoProgram);
}

void Keep(std::string& said, const char* data, size_t size) {
  said.append(data, size);
  if (said.size() > kMaxSaid) said.erase(0, said.size() - kMaxSaid);
}

}  // namespace

base::Status RunProcess(const ProcessSpec& given, std::stop_token stop) {
  const ProcessSpec spec = given;  // the child changes its copy
  if (stop.stop_requested()) return base::CancelledError("stopped");
  std::vector<char*> arguments;
  for (const std::string& argument : spec.arguments) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  const std::string& program = spec.arguments.front();
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return base::ErrnoError(errno, "cannot run " + program);
  }
  const base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  const pid_t self = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return base::ErrnoError(errno, "cannot run " + program);
  if (child == 0) Become(spec, arguments.data(), write_end.get(), self);
  write_end.Reset();

  std::string said;
  bool killed = false;
  bool open = true;
  int status = 0;
  while (true) {
    struct pollfd poll = {open ? read_end.get() : -1, POLLIN, 0};
    (void)::poll(&poll, 1, kPollMs);
    if ((poll.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      char buffer[1024];
      const ssize_t count = ::read(read_end.get(), buffer, sizeof(buffer));
      if (count > 0) Keep(said, buffer, static_cast<size_t>(count));
      if (count == 0) open = false;
    }
    if (!killed && stop.stop_requested()) {
      (void)::kill(child, SIGKILL);
      killed = true;
    }
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) {
      return base::ErrnoError(errno, "cannot wait for " + program);
    }
  }
  // What it said last; nobody else writes there, or is waited for.
  (void)::fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
  char buffer[1024];
  for (int i = 0; i < 64; ++i) {
    const ssize_t count = ::read(read_end.get(), buffer, sizeof(buffer));
    if (count <= 0) break;
    Keep(said, buffer, static_cast<size_t>(count));
  }
  if (killed) return base::CancelledError("stopped while " + program + " ran");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return base::OkStatus();
  while (!said.empty() && said.back() == '\n') said.pop_back();
  std::replace(said.begin(), said.end(), '\n', ' ');
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoProgram && said.empty()) {
    return base::NotFoundError("cannot find the program " + program);
  }
  return base::FailedPreconditionError(
      program + " failed (" +
      (WIFEXITED(status) ? "exit code " + std::to_string(WEXITSTATUS(status))
                         : "signal " + std::to_string(WTERMSIG(status))) +
      ")" + (said.empty() ? "" : ": " + base::Printable(said, kMaxSaid)));
}

}  // namespace bim::exec
