// A hand-over of disks from their owner to a candidate: both sides as pure
// functions of a state and an event. Who runs them does what they answer, in
// order, and tells what came of it as further events.
//
// What decides is what lies on the disk (store::HandoverPhase), written only by
// who holds the disk's lock: begun, then confirmed or rolled back. Messages
// only make it quicker. Until it is decided the owner owns; when the owner is
// gone and it is undecided, nobody does.
// Values; no I/O, no clock.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "pkg/store/handover.h"

namespace bim::handover {

using store::HandoverPhase;

// ----------------------------------------------------------------- the owner

enum class OwnerStage {
  kSteady,     // nothing goes on, or it was rolled back
  kBeginning,  // "begun" is being written
  kBegun,      // the candidate gets ready, or is; new work is refused
  kAsking,     // the candidate was asked whether it is still there
  kDeciding,   // "confirmed" is being written
  kReleasing,  // decided; running work ends, then the locks go
  kReleased,   // no disk is ours; the candidate is awaited while we still serve
  kUndoing,    // "rolled back" is being written; then work goes on as before
  kGone,
};
std::string_view OwnerStageName(OwnerStage stage);

struct OwnerState {
  OwnerStage stage = OwnerStage::kSteady;
  bool automatic = false;  // confirms itself
  bool connected = false;  // the candidate talks to us
  bool ready = false;      // and has loaded everything
  bool down = false;       // it was silent for longer than its lease
  bool confirm = false;    // somebody waits for a confirmation
  bool rollback = false;   // or for a roll-back
  friend auto operator<=>(const OwnerState&, const OwnerState&) = default;
};

enum class OwnerEvent {
  kBegin,           // the candidate begins, or is back
  kBeginAutomatic,  // the same, to be confirmed when it is ready
  kReady,
  kAccepted,      // it is still there
  kOwned,         // it serves
  kDisconnected,  // its end of the conversation is gone
  kLeaseEnded,    // nothing came from it for so long
  kConfirm,       // a control plane decides
  kRollback,
  kDeadline,  // a confirmation waited too long
  kWritten,   // the last kWrite...
  kNotWritten,
  kReleased,  // the last kRelease
  kResumed,   // the last kResume
};

enum class OwnerEffect {
  kWriteBegun,
  kWriteConfirmed,
  kWriteRolledBack,
  kTellBegun,
  kTellRefused,  // it could not be recorded
  kAsk,          // are you still there?
  kTellWithdrawn,
  kTellReleased,
  kTellRolledBack,
  kDrain,          // no new work
  kResume,         // as before
  kEndTalk,        // with the candidate: what was said still arrives
  kRelease,        // end what runs, let go of the locks
  kStartDeadline,  // of a confirmation
  kStartLease,     // to a kLeaseEnded, unless it comes back
  kExit,
  // To who confirms or rolls back:
  kAnswerOk,
  kAnswerNothing,     // there is no hand-over
  kAnswerDecided,     // it was confirmed already
  kAnswerTimeout,     // the candidate did not get ready or does not answer
  kAnswerNotWritten,  // no disk takes it
};

using OwnerEffects = std::vector<OwnerEffect>;
// Events that mean nothing in a state change nothing.
OwnerEffects Step(OwnerState& state, OwnerEvent event);

// ------------------------------------------- who does not hold the locks (yet)

// Which side of what lies on the disk a process is.
enum class Role { kCandidate, kOwner };

enum class Intent { kNone, kConfirm, kRollback };

// What is to be written to a disk that was found with its lock free (which is
// held for the moment) and this phase on it, if anything. Who may claim the
// disk then follows from what lies on it (store::MayClaim).
std::optional<HandoverPhase> WriteWhenFree(Role role,
                                           std::optional<HandoverPhase> phase,
                                           bool automatic, Intent intent);

enum class CandidateStage {
  kIdle,         // no hand-over
  kBeginning,    // the owner was asked
  kLoading,      // it agreed; everything is being read
  kReady,        // to take over
  kLost,         // the owner does not answer
  kInterrupted,  // the owner is gone, and nobody has decided
  kClaiming,     // the disks are being taken
  kOwning,
};
std::string_view CandidateStageName(CandidateStage stage);

struct CandidateState {
  CandidateStage stage = CandidateStage::kIdle;
  bool automatic = false;
  Intent intent = Intent::kNone;  // of somebody who waits here
  friend auto operator<=>(const CandidateState&,
                          const CandidateState&) = default;
};

enum class CandidateEvent {
  kBegin,
  kBeginAutomatic,
  kBegun,    // the owner agreed
  kRefused,  // or did not
  kLoaded,
  kAsked,      // are you still there?
  kWithdrawn,  // the owner did not confirm
  kReleased,   // the locks are free
  kRolledBack,
  kDisconnected,
  kConfirm,  // a control plane decides, here
  kRollback,
  // The locks were found free (and are not held any more), what WriteWhenFree
  // says was written, and this is on the disk now:
  kFreeNone,
  kFreeBegun,
  kFreeConfirmed,
  kFreeRolledBack,
  kClaimed,
  kNotClaimed,
};

enum class CandidateEffect {
  kSendBegin,
  kSendReady,
  kSendAccepted,
  kSendConfirm,
  kSendRollback,
  kSendOwned,
  kLoad,
  kReconnect,
  kClaim,         // take the disks; then kClaimed or kNotClaimed
  kTellOperator,  // log and event: interrupted, and what resolves it
  kAnswerOk,
  kAnswerRefused,
  kAnswerNothing,
  kAnswerTimeout,
  kAnswerDecided,     // confirmed already
  kAnswerRolledBack,  // rolled back already
};

using CandidateEffects = std::vector<CandidateEffect>;
CandidateEffects Step(CandidateState& state, CandidateEvent event);

}  // namespace bim::handover
