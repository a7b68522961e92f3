// What a control plane or a person can do about the hand-over of a manager's
// disks, whatever this manager is in it.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/handover/owner.h"
#include "pkg/store/history.h"

namespace bim::handover {

// Thread-safety: all functions from any thread. All block, but for Now.
class Control {
 public:
  virtual ~Control() = default;
  // See proto/bim/v1 for semantics and errors. `dry_run`: only the error that
  // it would have now.
  virtual base::Status Begin(bool automatic, bool dry_run) = 0;
  virtual base::Status Confirm(bool force, bool dry_run) = 0;
  virtual base::Status Rollback(bool dry_run) = 0;
  struct Situation {
    std::string role;  // "owner", "candidate", or "": none goes on
    Status status;
  };
  virtual Situation Now() = 0;
  // No new work until it is cancelled; waits for what runs, at most so long.
  // FAILED_PRECONDITION while a hand-over goes on.
  virtual base::Status Drain(std::chrono::milliseconds at_most) = 0;
  virtual base::Status CancelDrain() = 0;
  struct Work {
    bool draining = false;
    std::vector<std::string> running;  // a line each
  };
  virtual Work Running() = 0;
  struct Event {
    std::string disk;  // its path
    store::HistoryEntry entry;
  };
  // Of all disks that can be read, the newest last.
  virtual std::vector<Event> History() = 0;
};

// What the histories of the disks at `paths` tell about hand-overs.
std::vector<Control::Event> ReadEvents(const std::vector<std::string>& paths);

// Of who owned the disks at `paths` when a hand-over of them was interrupted,
// and was started again: writes down what was decided, `confirm` or not, to all
// of them whose owner `manager_id` was; with `dry_run` only looks.
// FAILED_PRECONDITION: there is nothing to decide. ABORTED: a process owns one
// of them.
base::Status DecideAsOwner(const std::vector<std::string>& paths,
                           const std::string& manager_id, bool confirm,
                           bool dry_run);

// Ends the owner of the disk at `path` by SIGKILL, and waits until its lock is
// free. FAILED_PRECONDITION: its process cannot be told for sure, or is in
// another pid namespace. DEADLINE_EXCEEDED: it does not end within 10 s.
base::Status EndOwner(const std::string& path);
// Asks it by SIGTERM, with the same checks; does not wait.
base::Status TerminateOwner(const std::string& path);

}  // namespace bim::handover
