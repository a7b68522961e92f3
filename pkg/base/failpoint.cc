#include "pkg/base/failpoint.h"

#ifdef BIM_FAILPOINTS

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace bim::base {
namespace {

struct Action {
  std::string verb;  // kill, error, pause, trace
  std::string argument;
  int from = 1;
  int reached = 0;
};

std::map<std::string, Action> Parse(const char* text) {
  std::map<std::string, Action> actions;
  std::string rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string item = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    const size_t equals = item.find('=');
    if (equals == std::string::npos) continue;
    Action action;
    std::string spec = item.substr(equals + 1);
    if (const size_t at = spec.rfind('@'); at != std::string::npos) {
      action.from = std::atoi(spec.c_str() + at + 1);
      spec.resize(at);
    }
    const size_t colon = spec.find(':');
    action.verb = spec.substr(0, colon);
    if (colon != std::string::npos) action.argument = spec.substr(colon + 1);
    actions[item.substr(0, equals)] = action;
  }
  return actions;
}

std::mutex mutex;

}  // namespace

int ReachFailpoint(const char* name) {
  static std::map<std::string, Action> actions =
      Parse(std::getenv("BIM_FAILPOINTS"));
  std::unique_lock lock(mutex);
  auto it = actions.find(name);
  if (it == actions.end()) it = actions.find("*");
  if (it == actions.end()) return 0;
  Action& action = it->second;
  ++action.reached;
  if (action.verb == "trace") {
    const int fd = ::open(action.argument.c_str(),
                          O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
      const std::string line = std::string(name) + "\n";
      [[maybe_unused]] auto written = ::write(fd, line.data(), line.size());
      ::close(fd);
    }
    return 0;
  }
  if (action.reached < action.from) return 0;
  if (action.verb == "kill") {
    ::kill(::getpid(), SIGKILL);
    ::pause();
  }
  if (action.verb == "error") return std::atoi(action.argument.c_str());
  if (action.verb == "pause") {
    const std::string path = action.argument;
    lock.unlock();
    for (int i = 0; i < 6000 && ::access(path.c_str(), F_OK) == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  return 0;
}

}  // namespace bim::base

#endif
