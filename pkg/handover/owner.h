// The owner's side: listens on its disks for a candidate, and hands them over.
//
// Thread-safety: all functions from any thread. Calls of the Host come from one
// thread at a time, but for Sockets.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/handover/machine.h"
#include "pkg/handover/talk.h"
#include "pkg/store/handover.h"

namespace bim::handover {

// A listening socket, and what it is called.
struct ListeningSocket {
  std::string address;
  base::UniqueFd fd;
};

// A disk that this process owns.
struct OwnedDisk {
  std::string uuid;
  std::string path;
};

// What a person is told about a hand-over, on either side.
struct Status {
  std::string id;
  std::string phase;  // of the stage names; "steady" or "idle": none goes on
  bool automatic = false;
  Party owner;
  Party candidate;
  bool ready = false;      // the candidate has loaded everything
  bool connected = false;  // both talk to each other
  std::string message;     // what it waits for, and what to do
};

// A hand-over to another manager than `candidate` is in progress (`id`).
base::Status OneAtATimeError(const std::string& candidate,
                             const std::string& id);
base::Status NothingToDecideError();

class Owner {
 public:
  // What the daemon does for it. All of them may block, as told.
  class Host {
   public:
    virtual ~Host() = default;
    virtual std::vector<OwnedDisk> Disks() = 0;
    // To every disk that is owned, durable. OK when at least one has it.
    virtual base::Status Write(const store::HandoverRecord& record) = 0;
    // No new work, with this answer; what runs of downloads and uploads goes
    // on.
    virtual void Hold(const std::string& why) = 0;
    virtual void Resume() = 0;
    // Waits for what runs, for as long as it was configured, stops the rest,
    // and lets go of the disks. What is read is served on.
    virtual void Release() = 0;
    // Duplicates of the listening sockets.
    virtual std::vector<ListeningSocket> Sockets() = 0;
    // The daemon ends: `handed_over`, or because a candidate that cannot take
    // over from a living owner asks it to.
    virtual void Exit(bool handed_over) = 0;
  };
  struct Options {
    Party self;
    // A candidate that is silent for so long is down.
    std::chrono::milliseconds lease{30'000};
    // A confirmation waits so long for the candidate.
    std::chrono::milliseconds confirm_timeout{20'000};
  };
  // `host` outlives it.
  static std::unique_ptr<Owner> Start(Options options, Host& host);
  // As Stop, and waits.
  virtual ~Owner() = default;
  // Ends all conversations; who waits for a decision is told UNAVAILABLE.
  virtual void Stop() = 0;

  // Blocks until it is decided, at most for confirm_timeout and a moment.
  // FAILED_PRECONDITION: there is no hand-over, or it was decided otherwise.
  // DEADLINE_EXCEEDED: the candidate did not get ready, or does not answer.
  virtual base::Status Confirm() = 0;
  virtual base::Status Rollback() = 0;
  // What Confirm, or Rollback, would answer at once; OK when it would be begun
  // with, or is so already. Does nothing.
  virtual base::Status Would(bool confirm) = 0;
  virtual Status Now() = 0;
  // Whether a hand-over goes on.
  virtual bool Busy() = 0;
};

}  // namespace bim::handover
