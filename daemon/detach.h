// A daemon in the background whose starter waits until it serves: how a running
// service starts its successor (systemctl reload).
#pragma once

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"

namespace bim::daemon {

class Detached {
 public:
  // Before any thread is started. Returns in a new process, of a session of its
  // own. The caller ends in here, with 0 when Serving was called, else with the
  // code that the new process ended with.
  static base::Result<Detached> Start();

  // The starter need not wait any longer. Once.
  void Serving();

 private:
  explicit Detached(base::UniqueFd starter) : starter_(std::move(starter)) {}
  base::UniqueFd starter_;  // a pipe to it
};

}  // namespace bim::daemon
