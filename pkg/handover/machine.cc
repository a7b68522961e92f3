#include "pkg/handover/machine.h"

namespace bim::handover {
namespace {

using OE = OwnerEvent;
using OS = OwnerStage;
using Out = OwnerEffect;

// Who waited for a confirmation or a roll-back is answered.
void Answer(OwnerState& state, OwnerEffects& out, Out confirm, Out rollback) {
  if (state.confirm) out.push_back(confirm);
  if (state.rollback) out.push_back(rollback);
  state.confirm = state.rollback = false;
}

void Decide(OwnerState& state, OwnerEffects& out) {
  state.stage = OS::kDeciding;
  out.push_back(Out::kWriteConfirmed);
}

void Undo(OwnerState& state, OwnerEffects& out) {
  state.stage = OS::kUndoing;
  out.push_back(Out::kWriteRolledBack);
}

// Goes on when there is something to go on with.
void Proceed(OwnerState& state, OwnerEffects& out) {
  if (state.down && state.confirm) return Decide(state, out);
  // Nobody else would do it.
  if (state.down && state.automatic) return Undo(state, out);
  if (state.connected && state.ready && (state.confirm || state.automatic)) {
    state.stage = OS::kAsking;
    out.push_back(Out::kAsk);
  }
}

void Lost(OwnerState& state, OwnerEffects& out) {
  if (!state.connected) return;
  state.connected = state.ready = false;
  out.push_back(Out::kStartLease);
}

// The candidate has the time that it has; what is decided stays decided.
OwnerEffects StepDecided(OwnerState& state, OwnerEvent event) {
  OwnerEffects out;
  switch (event) {
    case OE::kConfirm:
      out = {Out::kAnswerOk};
      break;
    case OE::kRollback:
      out = {Out::kAnswerDecided};
      break;
    case OE::kBegin:
    case OE::kBeginAutomatic:
      state.connected = true;
      state.down = false;
      out = {state.stage == OS::kReleased ? Out::kTellReleased
                                          : Out::kTellBegun};
      break;
    case OE::kReleased:
      if (state.stage != OS::kReleasing) break;
      state.stage = state.connected ? OS::kReleased : OS::kGone;
      out = {state.connected ? Out::kTellReleased : Out::kExit};
      break;
    case OE::kDisconnected:
    case OE::kLeaseEnded:
      state.connected = false;
      [[fallthrough]];
    case OE::kOwned:
      if (state.stage != OS::kReleased) break;
      state.stage = OS::kGone;
      out = {Out::kExit};
      break;
    default:
      break;
  }
  return out;
}

// While something is being written: what comes then is taken up afterwards.
OwnerEffects StepWriting(OwnerState& state, OwnerEvent event) {
  OwnerEffects out;
  switch (event) {
    case OE::kDisconnected:
      Lost(state, out);
      break;
    case OE::kLeaseEnded:
      state.connected = state.ready = false;
      state.down = true;
      break;
    case OE::kBegin:
    case OE::kBeginAutomatic:
      state.connected = true;
      state.ready = state.down = false;
      break;
    case OE::kConfirm:
      state.confirm = true;
      out = {Out::kStartDeadline};
      break;
    case OE::kRollback:
      state.rollback = true;
      break;
    default:
      break;
  }
  return out;
}

OwnerEffects Written(OwnerState& state, bool ok) {
  OwnerEffects out;
  switch (state.stage) {
    case OS::kBeginning:
      if (!ok) {
        Answer(state, out, Out::kAnswerNothing, Out::kAnswerNothing);
        out.push_back(Out::kTellRefused);
        state = {};
        break;
      }
      state.stage = OS::kBegun;
      out.push_back(Out::kDrain);
      if (state.connected) out.push_back(Out::kTellBegun);
      if (state.rollback) {
        Undo(state, out);
      } else {
        Proceed(state, out);
      }
      break;
    case OS::kDeciding:
      if (ok) {
        state.stage = OS::kReleasing;
        Answer(state, out, Out::kAnswerOk, Out::kAnswerDecided);
        out.push_back(Out::kRelease);
      } else {
        state.stage = OS::kBegun;
        // Not at once again: the candidate begins anew, or somebody confirms.
        state.ready = false;
        Answer(state, out, Out::kAnswerNotWritten, Out::kAnswerNotWritten);
        if (state.connected) out.push_back(Out::kTellWithdrawn);
      }
      break;
    case OS::kUndoing:
      if (ok) {
        out = {Out::kResume};
      } else {
        state.stage = OS::kBegun;
        Answer(state, out, Out::kAnswerNotWritten, Out::kAnswerNotWritten);
      }
      break;
    default:
      break;
  }
  return out;
}

// Nobody is told before it is so: who was told may come with new work at once.
OwnerEffects Resumed(OwnerState& state) {
  OwnerEffects out;
  if (state.stage != OS::kUndoing) return out;
  if (state.connected) out.push_back(Out::kTellRolledBack);
  Answer(state, out, Out::kAnswerNothing, Out::kAnswerOk);
  out.push_back(Out::kEndTalk);
  state = {};
  return out;
}

}  // namespace

std::string_view OwnerStageName(OwnerStage stage) {
  switch (stage) {
    case OS::kSteady:
      return "steady";
    case OS::kBeginning:
      return "beginning";
    case OS::kBegun:
      return "begun";
    case OS::kAsking:
      return "asking";
    case OS::kDeciding:
      return "deciding";
    case OS::kReleasing:
      return "releasing";
    case OS::kReleased:
      return "released";
    case OS::kUndoing:
      return "rolling-back";
    case OS::kGone:
      return "gone";
  }
  return "gone";
}

OwnerEffects Step(OwnerState& state, OwnerEvent event) {
  OwnerEffects out;
  if (event == OE::kWritten || event == OE::kNotWritten) {
    return Written(state, event == OE::kWritten);
  }
  if (event == OE::kResumed) return Resumed(state);
  switch (state.stage) {
    case OS::kGone:
      // The process still runs for a moment, and can be asked.
      if (event != OE::kConfirm && event != OE::kRollback) return out;
      [[fallthrough]];
    case OS::kReleasing:
    case OS::kReleased:
      return StepDecided(state, event);
    case OS::kBeginning:
    case OS::kDeciding:
    case OS::kUndoing:
      return StepWriting(state, event);
    case OS::kSteady:
      if (event == OE::kBegin || event == OE::kBeginAutomatic) {
        state.stage = OS::kBeginning;
        state.automatic = event == OE::kBeginAutomatic;
        state.connected = true;
        out = {Out::kWriteBegun};
      } else if (event == OE::kConfirm || event == OE::kRollback) {
        out = {Out::kAnswerNothing};
      }
      return out;
    case OS::kBegun:
    case OS::kAsking:
      break;
  }
  switch (event) {
    case OE::kBegin:
    case OE::kBeginAutomatic:
      state.stage = OS::kBegun;
      state.connected = true;
      state.ready = state.down = false;
      out.push_back(Out::kTellBegun);
      break;
    case OE::kReady:
      state.ready = state.connected;
      if (state.stage == OS::kBegun) Proceed(state, out);
      break;
    case OE::kAccepted:
      if (state.stage == OS::kAsking) Decide(state, out);
      break;
    case OE::kConfirm:
      state.confirm = true;
      out.push_back(Out::kStartDeadline);
      if (state.stage == OS::kBegun) Proceed(state, out);
      break;
    case OE::kRollback:
      state.rollback = true;
      Undo(state, out);
      break;
    case OE::kDisconnected:
      state.stage = OS::kBegun;
      Lost(state, out);
      break;
    case OE::kLeaseEnded:
      state.stage = OS::kBegun;
      state.connected = state.ready = false;
      state.down = true;
      Proceed(state, out);
      break;
    case OE::kDeadline:
      if (!state.confirm) break;
      if (state.stage == OS::kAsking) {
        state.stage = OS::kBegun;
        state.ready = false;  // until it says so again
      }
      if (state.connected) out.push_back(Out::kTellWithdrawn);
      Answer(state, out, Out::kAnswerTimeout, Out::kAnswerTimeout);
      break;
    default:
      break;
  }
  return out;
}

// ------------------------------------------------------------ the candidate

namespace {

using CE = CandidateEvent;
using CS = CandidateStage;
using Do = CandidateEffect;

// Who waits here for a decision is answered.
void Answer(CandidateState& state, CandidateEffects& out, Do confirm,
            Do rollback) {
  if (state.intent == Intent::kConfirm) out.push_back(confirm);
  if (state.intent == Intent::kRollback) out.push_back(rollback);
  state.intent = Intent::kNone;
}

CandidateEffects Wanted(CandidateState& state, Intent intent) {
  CandidateEffects out;
  switch (state.stage) {
    case CS::kIdle:
      out = {Do::kAnswerNothing};
      break;
    case CS::kOwning:
    case CS::kClaiming:
      if (intent == Intent::kRollback) {
        out = {Do::kAnswerDecided};
      } else if (state.stage == CS::kOwning) {
        out = {Do::kAnswerOk};
      } else {
        state.intent = intent;
      }
      break;
    case CS::kBeginning:
    case CS::kLoading:
    case CS::kReady:
      state.intent = intent;
      out = {intent == Intent::kConfirm ? Do::kSendConfirm : Do::kSendRollback};
      break;
    case CS::kLost:
    case CS::kInterrupted:
      // When the lock is free, or the owner answers again.
      state.intent = intent;
      out = {Do::kReconnect};
      break;
  }
  return out;
}

CandidateEffects Free(CandidateState& state,
                      std::optional<HandoverPhase> phase) {
  CandidateEffects out;
  if (state.stage == CS::kIdle || state.stage == CS::kClaiming ||
      state.stage == CS::kOwning) {
    return out;
  }
  if (phase == HandoverPhase::kConfirmed) {
    if (state.intent == Intent::kRollback) {
      Answer(state, out, Do::kAnswerOk, Do::kAnswerDecided);
    }
    state.stage = CS::kClaiming;
    out.push_back(Do::kClaim);
  } else if (phase == HandoverPhase::kBegun) {
    if (state.stage != CS::kInterrupted) out.push_back(Do::kTellOperator);
    state.stage = CS::kInterrupted;
  } else {
    Answer(state, out, phase ? Do::kAnswerRolledBack : Do::kAnswerNothing,
           phase ? Do::kAnswerOk : Do::kAnswerNothing);
    state = {};
  }
  return out;
}

}  // namespace

std::string_view CandidateStageName(CandidateStage stage) {
  switch (stage) {
    case CS::kIdle:
      return "idle";
    case CS::kBeginning:
      return "beginning";
    case CS::kLoading:
      return "loading";
    case CS::kReady:
      return "ready";
    case CS::kLost:
      return "lost";
    case CS::kInterrupted:
      return "interrupted";
    case CS::kClaiming:
      return "claiming";
    case CS::kOwning:
      return "owning";
  }
  return "idle";
}

std::optional<HandoverPhase> WriteWhenFree(Role role,
                                           std::optional<HandoverPhase> phase,
                                           bool automatic, Intent intent) {
  if (phase != HandoverPhase::kBegun) return std::nullopt;
  if (intent == Intent::kConfirm) return HandoverPhase::kConfirmed;
  if (intent == Intent::kRollback) return HandoverPhase::kRolledBack;
  if (!automatic) return std::nullopt;
  return role == Role::kCandidate ? HandoverPhase::kConfirmed
                                  : HandoverPhase::kRolledBack;
}

CandidateEffects Step(CandidateState& state, CandidateEvent event) {
  CandidateEffects out;
  const bool talks = state.stage == CS::kBeginning ||
                     state.stage == CS::kLoading || state.stage == CS::kReady;
  switch (event) {
    case CE::kBegin:
    case CE::kBeginAutomatic:
      if (state.stage != CS::kIdle) break;
      state.stage = CS::kBeginning;
      state.automatic = event == CE::kBeginAutomatic;
      out = {Do::kSendBegin};
      break;
    case CE::kBegun:
      if (state.stage != CS::kBeginning && state.stage != CS::kLost &&
          state.stage != CS::kInterrupted) {
        break;
      }
      state.stage = CS::kLoading;
      out = {Do::kLoad};
      // What somebody waits for is said again: it may have been lost.
      if (state.intent == Intent::kConfirm) out.push_back(Do::kSendConfirm);
      if (state.intent == Intent::kRollback) out.push_back(Do::kSendRollback);
      break;
    case CE::kRefused:
      if (state.stage != CS::kBeginning && state.stage != CS::kLost) break;
      Answer(state, out, Do::kAnswerRefused, Do::kAnswerRefused);
      state = {};
      out.push_back(Do::kAnswerRefused);
      break;
    case CE::kLoaded:
      if (state.stage != CS::kLoading) break;
      state.stage = CS::kReady;
      out = {Do::kSendReady};
      break;
    case CE::kAsked:
      if (state.stage == CS::kReady) out = {Do::kSendAccepted};
      break;
    case CE::kWithdrawn:
      if (state.intent == Intent::kConfirm) {
        Answer(state, out, Do::kAnswerTimeout, Do::kAnswerTimeout);
      }
      // It asks for it again: nothing else would make the owner go on.
      if (state.stage == CS::kReady) out.push_back(Do::kSendReady);
      break;
    case CE::kReleased:
      if (state.stage == CS::kOwning || state.stage == CS::kClaiming ||
          state.stage == CS::kIdle) {
        break;
      }
      state.stage = CS::kClaiming;
      out = {Do::kClaim};
      break;
    case CE::kRolledBack:
      if (state.stage == CS::kOwning || state.stage == CS::kClaiming) break;
      Answer(state, out, Do::kAnswerRolledBack, Do::kAnswerOk);
      state = {};
      break;
    case CE::kDisconnected:
      if (!talks) break;
      state.stage = CS::kLost;
      out = {Do::kReconnect};
      break;
    case CE::kConfirm:
      return Wanted(state, Intent::kConfirm);
    case CE::kRollback:
      return Wanted(state, Intent::kRollback);
    case CE::kFreeNone:
      return Free(state, std::nullopt);
    case CE::kFreeBegun:
      return Free(state, HandoverPhase::kBegun);
    case CE::kFreeConfirmed:
      return Free(state, HandoverPhase::kConfirmed);
    case CE::kFreeRolledBack:
      return Free(state, HandoverPhase::kRolledBack);
    case CE::kClaimed:
      if (state.stage != CS::kClaiming) break;
      state.stage = CS::kOwning;
      out.push_back(Do::kSendOwned);
      Answer(state, out, Do::kAnswerOk, Do::kAnswerDecided);
      break;
    case CE::kNotClaimed:
      if (state.stage != CS::kClaiming) break;
      state.stage = CS::kLost;
      out = {Do::kReconnect};
      break;
  }
  return out;
}

}  // namespace bim::handover
