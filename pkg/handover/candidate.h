// The candidate's side: finds the owner of its disks, gets ready, and takes
// them over when that is decided.
//
// Thread-safety: all functions from any thread. Calls of the Host come from one
// thread at a time.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/handover/machine.h"
#include "pkg/handover/owner.h"
#include "pkg/handover/talk.h"

namespace bim::handover {

class Candidate {
 public:
  class Host {
   public:
    virtual ~Host() = default;
    // Of all disks that it is to own.
    virtual std::vector<std::string> DiskPaths() = 0;
    // Reads what there is, so that a take-over is quick. Blocks.
    virtual void Load() = 0;
    // Takes the disks, and serves. Blocks. An error: it is tried again.
    virtual base::Status Claim() = 0;
  };
  struct Options {
    Party self;
    // How often an owner that listens is told that we live.
    std::chrono::milliseconds heartbeat{3'000};
    // A confirmation that is asked for here waits so long for an owner that
    // talks to us. (One that hangs is waited for without an end, until it
    // answers or is gone.)
    std::chrono::milliseconds confirm_timeout{25'000};
  };
  // `host` outlives it. Begins nothing.
  static std::unique_ptr<Candidate> Start(Options options, Host& host);
  virtual ~Candidate() = default;

  // Asks the owner of its disks for a hand-over, and returns when that agreed.
  // NOT_FOUND: no process owns a disk. FAILED_PRECONDITION: the owner refused.
  // UNIMPLEMENTED: no version is spoken by both. UNAVAILABLE: the owner cannot
  // be reached.
  virtual base::Status Begin(bool automatic) = 0;
  // What Begin would be refused with, by what both sides say of themselves and
  // the disks of the hand-over that goes on. Begins nothing.
  virtual base::Status WouldBegin(bool automatic) = 0;
  // Goes on with a hand-over of which the disks tell, if there is one that
  // concerns this manager as candidate: after a restart. True: there is.
  virtual bool Resume() = 0;
  // Blocks until it is done, at most for `wait`. DEADLINE_EXCEEDED: the owner
  // hangs; what was asked for is done when it answers, or is gone.
  virtual base::Status Confirm(std::chrono::milliseconds wait) = 0;
  virtual base::Status Rollback(std::chrono::milliseconds wait) = 0;
  // As Owner::Would.
  virtual base::Status Would(bool confirm) = 0;
  // nullopt: none goes on.
  virtual Status Now() = 0;
  virtual CandidateStage Stage() = 0;
  // The owner's listening sockets, for those that live in our network
  // namespace. Only while the owner talks to us; empty otherwise.
  virtual std::vector<ListeningSocket> TakeSockets() = 0;
  // Blocks until this process owns (true), or the hand-over ended otherwise.
  // False also when `stop` was called.
  virtual bool AwaitOwning() = 0;
  virtual void Stop() = 0;
};

// Asks the owner of the disk at `path` to end, by its socket. The way out when
// there is no version that both speak. Its lock is still to be awaited.
// UNAVAILABLE: it has no socket, or does not answer.
base::Status AskToStop(const std::string& path, const Party& self);

}  // namespace bim::handover
