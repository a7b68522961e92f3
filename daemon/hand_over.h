// This daemon's part in a hand-over: what pkg/handover asks for, done with the
// manager, the listening sockets and the process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "daemon/config.h"
#include "daemon/process.h"
#include "daemon/state_dir.h"
#include "pkg/base/status.h"
#include "pkg/handover/control.h"
#include "pkg/handover/owner.h"
#include "pkg/manager/manager.h"

namespace bim::daemon {

// Before anything of this process begins, with handover.mode = auto: when
// another process owns its disks, takes them over from it. Blocks as long as
// that takes.
class TakeOver {
 public:
  // The paths of the disks that are to be owned.
  static std::unique_ptr<TakeOver> Make(const HandoverConfig& config,
                                        const handover::Party& self,
                                        std::vector<std::string> disks,
                                        StopSignal& stop_signal);
  virtual ~TakeOver() = default;
  // Until this process may take its disks. False: it was stopped meanwhile.
  virtual bool Await() = 0;
  // Those of the predecessor, when there is one that hands over.
  virtual std::vector<handover::ListeningSocket> TakeSockets() = 0;
  // The disks are taken and clients served: the predecessor may go. Whether
  // there was one.
  virtual bool Finish() = 0;
};

// While the manager runs: both sides of a hand-over.
class HandOver : public handover::Control {
 public:
  struct Options {
    HandoverConfig config;
    handover::Party self;
    bool ephemeral = false;  // the identity is gone after a restart
  };
  // All references outlive it. `sockets`: for a successor.
  static std::unique_ptr<HandOver> Start(
      Options options, manager::Manager& manager, StateDir& state,
      StopSignal& stop_signal, std::vector<handover::ListeningSocket> sockets);
  // Whether the disks are a successor's now.
  virtual bool handed_over() = 0;
  // No new conversation, no sockets any more: the daemon ends.
  virtual void Close() = 0;
};

}  // namespace bim::daemon
